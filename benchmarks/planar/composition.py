"""Claim: with the shipped, learned energies, annealed HMC comes closer to a composed target than reverse diffusion
with the same networks, and as close as those networks allow.

    python -m benchmarks composition [--chains 300] [--seeds 5]

Two distances are reported. "MMD" is the distance to the true composition, which includes the errors of the sampler and
of the models. "MMD own" is the distance to the composed density of the models themselves (by quadrature of their
energies at level 0), which includes the sampler's error only. The row "own density" is the score of a perfect sampler
of these models.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import Record, check_choice, last, say, summarise, table
from benchmarks.planar.problems import PROBLEMS, Problem, Truth, exact_row, judge, log_constant, mmd
from bridges.blackjax import HMC, MALA, UHMC, ULA
from bridges.torch_jax import to_jax
from ppl_diffusion import Ladder, Potential, Trace, anneal, load, reverse_diffusion
from ppl_diffusion.potentials.planar import SCHEDULE, exact
from ppl_diffusion.sampling.kernel import Kernel

STEPS = 5
SAMPLERS: dict[str, tuple[Kernel | None, dict[str, Any]]] = {
    "reverse diffusion": (None, {}),
    "ULA, paper's step": (ULA(step=(2 * 0.001) ** 0.5), {}),
    "UHMC, paper's step": (UHMC(step=0.03, refreshment=0.5), {}),
    "MALA": (MALA(), {}),
    "HMC": (HMC(), {}),
    "weighted HMC": (HMC(), {"resample": 0.5}),
}
QUICK = {"chains": 20, "seeds": 1, "problems": ["product"], "samplers": ["reverse diffusion"]}
COLUMNS = ("out", "LL", "MMD", "MMD own", "energy gap", "mode std", "balance", "acceptance", "seconds")


def main(
    record: Record,
    chains: Annotated[int, typer.Option(min=2, help="Chains of each walk.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each walk.")] = 5,
    problems: Annotated[list[str], typer.Option(help="Compositions to sample.")] = list(PROBLEMS),  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help="Samplers to run.")] = list(SAMPLERS),  # noqa: B006
) -> None:
    """Run every sampler on every problem, print the tables and write the results."""
    check_choice("--problems", problems, PROBLEMS)
    check_choice("--samplers", samplers, SAMPLERS)
    models = {name: load(name) for name in ("ring", "bar", "left", "right", "wide")}
    content: dict[str, Any] = {"chains": chains, "seeds": seeds, "steps": STEPS, "problems": {}}
    for key in problems:
        problem = PROBLEMS[key]
        target = to_jax(problem.build(models.__getitem__))
        truth = Truth.of(problem.build(lambda name: exact(name, backend="jax")))
        own, constant = Truth.of(target), log_constant(problem)
        references = truth.sample(4000, seed=1), own.sample(4000, seed=2)
        rest = own.mean(own.energies)

        measure = partial(repetition, target, problem, constant, references, rest)
        rows: dict[str, Any] = {
            "exact, level 0": exact_row(problem, truth, constant),
            "own density": exact_row(problem, own, constant) | {"MMD": {"mean": mmd(references[1], references[0])}},
        }
        told: dict[str, list[str]] = {}
        for sampler in samplers:
            found = [
                record.kept(
                    f"composition/{key}-{sampler}-{seed}", {"chains": chains}, partial(measure, sampler, chains, seed)
                )
                for seed in range(seeds)
            ]
            rows[sampler] = summarise([one["row"] for one in found])
            told[sampler] = list(dict.fromkeys(warning for one in found for warning in one["warnings"]))
            say(f"{problem.name}: {sampler}: out {rows[sampler]['out']['mean']:.4f}")
        content["problems"][key] = {"expression": problem.name, "rows": rows, "warnings": told}
        say(f"\n{problem.name}\n{table(rows, COLUMNS)}\n")
    record.write("composition", content)


def repetition(
    target: Potential,
    problem: Problem,
    constant: float,
    references: tuple[np.ndarray, np.ndarray],
    rest: float,
    sampler: str,
    chains: int,
    seed: int,
) -> dict[str, Any]:
    """Return figures of merit and warnings of one run; references are draws of the truth and of the models' density."""
    trace, seconds = run(target, sampler, chains=chains, seed=seed)
    x = last(trace)
    row = judge(problem, x, references[0], constant)
    row["MMD own"] = mmd(x, references[1])
    row["energy gap"] = float(-trace.sample_stats.lp[:, -1].mean() - rest)
    row["acceptance"] = float(np.mean(trace.stats.acceptance_rate))
    return {"row": row | {"seconds": seconds}, "warnings": list(trace.attributes["warnings"])}


def run(target: Potential, sampler: str, *, chains: int, seed: int) -> tuple[Trace, float]:
    """Run one sampler once; return its trace and the seconds it took."""
    kernel, extra = SAMPLERS[sampler]
    ladder, begun = Ladder.full(SCHEDULE, steps=STEPS), time.perf_counter()
    if kernel is None:
        trace = reverse_diffusion(target, ladder=ladder, chains=chains, seed=seed)
    else:
        trace = anneal(target, kernel, ladder=ladder, chains=chains, seed=seed, **extra)
    return trace, time.perf_counter() - begun
