"""Claim: annealing with weights gives the exact answer for at most a tenth of the evaluations of the paper's sampler,
and of plain HMC at the clean level, where those reach it at all.

    python -m benchmarks evaluations [--targets oracle mixture_64 mixture_784] [--samplers exchange] [--seeds 4]

Targets are known in closed form: the paper's product in the plane, and in 64 and 784 dimensions three modes, of which a
wide factor shifts the weights. The error is the total variation distance between the shares of chains by mode, those
outside of all modes apart, and their exact probabilities. Each sampler is run with growing budgets. Reported is the
least budget, in gradient evaluations of a chain, from which on the error stays below a tolerance, and the error at the
largest budget where there is none.

* *weighted*: annealed HMC with weights, one step of three leapfrogs a rung, and more rungs for a larger budget.
* *unweighted*: the same walk over a hundred rungs without weights, and more steps for a larger budget.
* *paper's code*: the released sampler, whose leapfrogs evaluate a point twice and whose chains are accepted together.
* *plain HMC*: at the clean level, from standard normal draws.
* *exchange*: replica exchange, one such step at each level in a round. ``Ladder.spread`` places the rungs, closer for a
  larger budget. Of each of 50 replicas 400 rounds are draws, after as many of warm-up; all evaluations at all levels
  are divided by the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import Record, check_choice, last, say
from benchmarks.planar.problems import PROBLEMS, Truth
from benchmarks.speed.baselines import LEAPFROGS, paper_hmc
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Potential, anneal, exchange
from ppl_diffusion.potentials.planar import exact
from ppl_diffusion.targets.gaussians import LogQuadratics

SCHEDULE = NoiseSchedule.cosine(100)
TOLERANCE = 0.02
"""Total variation distance that counts as exact; that of 4,000 independent draws has a noise of .01."""
BUDGETS: dict[str, tuple[int, ...]] = {
    "weighted": (12, 25, 50, 100),
    "unweighted": (1, 3, 10),
    "paper's code": (1, 3, 10),
    "plain HMC": (100, 400, 1600),
    "exchange": (1, 2),
}
"""Rungs of the first sampler, steps a level of the next two, steps of plain HMC, rungs a nat of exchange."""
REPLICAS, ROUNDS = 50, 400
"""Replicas of exchange and their recorded rounds, which are also those of its warm-up."""
CHAINS = {"oracle": 4000, "mixture_64": 2000, "mixture_784": 1000}
FEW = 100
QUICK = {"targets": ["oracle"], "few": True, "seeds": 1}


@dataclass(frozen=True)
class Case:
    """A target that is known.

    Attributes:
        build: returns the potential in a backend.
        part: maps points ``(n, d)`` to the number of their part ``(n,)``.
        shares: exact probabilities of the parts.
    """

    build: Callable[[str], Potential]
    part: Callable[[np.ndarray], np.ndarray]
    shares: np.ndarray


def oracle() -> Case:
    """Return the paper's product of a ring and a bar; parts are its two modes, and what is outside of them."""
    problem = PROBLEMS["product"]

    def build(backend: Any) -> Potential:
        return problem.build(lambda name: exact(name, backend=backend))

    def part(x: np.ndarray) -> np.ndarray:
        nearest = np.linalg.norm(x[:, None] - problem.modes[None], axis=2).argmin(1)
        return np.where(problem.outside(x), 2, nearest)

    truth = Truth.of(build("jax"))
    parts = part(truth.points)
    return Case(build, part, np.array([truth.masses[parts == k].sum() for k in range(3)]))


def modes(dimensions: int) -> Case:
    """Return three Gaussians of equal weight times a wide one, which leaves weights of about .6, .3 and .1."""
    means = 1.5 * np.linalg.qr(np.random.default_rng(dimensions).standard_normal((dimensions, 3)))[0].T
    middle = np.linalg.lstsq(means, np.log([0.6, 0.3, 0.1]) - np.log(0.3), rcond=None)[0]

    def factors(backend: Any) -> tuple[GaussianMixture, GaussianMixture]:
        given: dict[str, Any] = {"schedule": SCHEDULE, "backend": backend}
        return GaussianMixture(means, [0.2] * 3, **given), GaussianMixture(middle[None], [1.0], **given)

    first, second = (LogQuadratics.of(factor, level=0) for factor in factors("torch"))
    product = first * second
    centres = np.linalg.solve(product.precisions, product.linears[..., None])[..., 0]

    def build(backend: Any) -> Potential:
        narrow, wide = factors(backend)
        return narrow * wide

    def part(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - centres[None], axis=2).argmin(1)

    return Case(build, part, product.shares)


CASES: dict[str, Callable[[], Case]] = {
    "oracle": oracle,
    "mixture_64": partial(modes, 64),
    "mixture_784": partial(modes, 784),
}


def walked(case: Case, sampler: str, budget: int, *, chains: int, seed: int) -> tuple[np.ndarray, float]:
    """Return points at level 0, and the evaluations that each took."""
    if sampler == "paper's code":
        potential, generator = case.build("torch"), torch.manual_seed(seed)
        x = torch.randn((chains, *potential.event_shape), generator=generator, dtype=torch.float64)
        for level in reversed(range(len(SCHEDULE))):
            x = paper_hmc(potential, x, level, budget)
        return x.numpy(), float(len(SCHEDULE) * budget * (LEAPFROGS + 2))
    kernel = HMC(leapfrogs=LEAPFROGS)
    if sampler == "exchange":
        potential, rounds = case.build("jax"), min(ROUNDS, chains)
        ladder = Ladder.spread(potential, nats=1 / budget, steps=1)
        given: dict[str, Any] = {"chains": min(REPLICAS, chains), "draws": rounds, "warm_up": rounds, "seed": seed}
        trace = exchange(potential, kernel, ladder=ladder, **given)
        points = trace.positions.reshape(-1, *trace.positions.shape[2:])
        return points, float(trace.gradient_calls) / rounds
    ladder = {
        "weighted": lambda: Ladder.spaced(SCHEDULE, rungs=budget, steps=1),
        "unweighted": lambda: Ladder.full(SCHEDULE, steps=budget),
        "plain HMC": lambda: Ladder(levels=(0,), steps=budget),
    }[sampler]()
    share = 0.5 if sampler == "weighted" else None
    trace = anneal(case.build("jax"), kernel, ladder=ladder, chains=chains, seed=seed, resample=share)
    return last(trace), float(trace.gradient_calls)


def measured(case: Case, sampler: str, budget: int, *, chains: int, seed: int) -> dict[str, Any]:
    """Return the shares of parts and the evaluations of one run."""
    points, calls = walked(case, sampler, budget, chains=chains, seed=seed)
    counts = np.bincount(case.part(points), minlength=len(case.shares))
    return {"shares": (counts / len(points)).tolist(), "calls": calls}


def reached(errors: Mapping[float, float]) -> float | None:
    """Return the least number of evaluations from which on errors stay below the tolerance; None if there is none."""
    least: float | None = None
    for calls in sorted(errors, reverse=True):
        if errors[calls] >= TOLERANCE:
            break
        least = calls
    return least


def main(
    record: Record,
    targets: Annotated[list[str], typer.Option(help="Targets.")] = list(CASES),  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help=f"Of {', '.join(BUDGETS)}.")] = list(BUDGETS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each budget, whose shares are averaged.")] = 4,
    few: Annotated[bool, typer.Option("--few", help="A hundred chains and one budget.")] = False,
) -> None:
    """Run samplers with growing budgets on targets, and write the results, beside those of others that are alike."""
    check_choice("--targets", targets, CASES)
    check_choice("--samplers", samplers, BUDGETS)
    content: dict[str, Any] = {"seeds": seeds, "tolerance": TOLERANCE, "targets": {}}
    before = record.read("evaluations")
    if all(before.get(key) == content[key] for key in ("seeds", "tolerance")):
        content["targets"] = before["targets"]
    for name in targets:
        case, chains = CASES[name](), FEW if few else CHAINS[name]
        earlier = content["targets"].get(name, {})
        rows: dict[str, dict[str, Any]] = dict(earlier["rows"]) if earlier.get("chains") == chains else {}
        for sampler in samplers:
            budgets, errors = BUDGETS[sampler], {}
            for budget in budgets[:1] if few else budgets:
                settings: dict[str, Any] = {"sampler": sampler, "budget": budget, "chains": chains}
                found = [
                    record.kept(
                        f"evaluations/{name}-{sampler}-{budget}-{seed}",
                        settings,
                        partial(measured, case, sampler, budget, chains=chains, seed=seed),
                    )
                    for seed in range(seeds)
                ]
                shares = np.mean([run["shares"] for run in found], axis=0)
                errors[found[0]["calls"]] = float(0.5 * np.abs(shares - case.shares).sum())
            rows[sampler] = {"errors": {f"{calls:g}": error for calls, error in errors.items()}}
            rows[sampler]["reached"] = reached(errors)
            say(f"{name}, {sampler}: {rows[sampler]}")
        content["targets"][name] = {"chains": chains, "shares": case.shares.tolist(), "rows": rows}
    record.write("evaluations", content)
