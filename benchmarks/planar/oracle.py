"""Claim: with exact noised densities, annealed MCMC on composed energies approaches the composed target, reverse
diffusion on summed scores does not, and weights between rungs make the walk exact at no gradient cost.

    python -m benchmarks oracle [--chains 2000] [--seeds 5]

There is no network: every density is known in closed form at every level, so that all error is the sampler's. The best
score that a walk can reach is "exact, level 0", since its last rung still contains the noise of level 0.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import typer

from benchmarks.harness import Record, check_choice, last, say, summarise, table
from benchmarks.planar.problems import PROBLEMS, Problem, Truth, exact_row, judge, log_constant
from bridges.blackjax import HMC, MALA, UHMC, ULA
from ppl_diffusion import Ladder, Potential, anneal, reverse_diffusion
from ppl_diffusion.potentials.planar import SCHEDULE, exact
from ppl_diffusion.sampling.kernel import Kernel

LANGEVIN = (2 * 0.001) ** 0.5
"""The paper's Langevin step h = .001 as a leapfrog step ``sqrt(2 h)``."""

SAMPLERS: dict[str, tuple[Kernel | None, int, dict[str, Any]]] = {
    "reverse diffusion": (None, 0, {}),
    "ULA, paper's step": (ULA(step=LANGEVIN), 10, {}),
    "MALA, paper's step": (MALA(step=LANGEVIN), 10, {}),
    "UHMC, paper's step": (UHMC(step=0.03, refreshment=0.5), 10, {}),
    "HMC, paper's step": (HMC(step=0.03, refreshment=0.5), 10, {}),
    "MALA": (MALA(), 10, {}),
    "HMC": (HMC(), 10, {}),
    "HMC, 50 steps a level": (HMC(), 50, {}),
    "weighted HMC": (HMC(), 10, {"resample": 0.5}),
    "weighted HMC, 1 step a level": (HMC(), 1, {"resample": 0.5}),
    "weighted HMC, reverse step": (HMC(), 10, {"resample": 0.5, "reverse_step": True}),
}
QUICK = {
    "chains": 50,
    "seeds": 1,
    "problems": ["product"],
    "samplers": ["reverse diffusion", "weighted HMC, 1 step a level"],
}
COLUMNS = ("out", "LL", "MMD", "mode std", "balance", "acceptance", "calls", "seconds")


def run(target: Potential, sampler: str, chains: int, seed: int) -> tuple[Any, float]:
    """Run one sampler once; return its trace and the seconds it took."""
    kernel, steps, options = SAMPLERS[sampler]
    begun = time.perf_counter()
    ladder = Ladder.full(SCHEDULE, steps=steps)
    if kernel is None:
        trace = reverse_diffusion(target, ladder=ladder, chains=chains, seed=seed)
    else:
        trace = anneal(target, kernel, ladder=ladder, chains=chains, seed=seed, **options)
    return trace, time.perf_counter() - begun


def repetition(target: Potential, problem: Problem, truth: Truth, constant: float, **settings: Any) -> dict[str, float]:
    """Return figures of merit and costs of one run of a sampler."""
    trace, seconds = run(target, **settings)
    costs = {"acceptance": float(trace.stats.acceptance_rate.mean()), "calls": float(trace.gradient_calls)}
    costs |= {"seconds": seconds, "resamplings": float(trace.stats.resampled.sum())}
    return judge(problem, last(trace), truth.sample(4000, seed=1), constant) | costs


def main(
    record: Record,
    chains: Annotated[int, typer.Option(min=2, help="Chains of each walk.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each walk.")] = 5,
    problems: Annotated[list[str], typer.Option(help="Compositions to sample.")] = list(PROBLEMS),  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help="Samplers to run.")] = list(SAMPLERS),  # noqa: B006
) -> None:
    """Run every sampler on every problem, print the tables and write the results."""
    check_choice("--problems", problems, PROBLEMS)
    check_choice("--samplers", samplers, SAMPLERS)
    content: dict[str, Any] = {"chains": chains, "seeds": seeds, "problems": {}}
    for key in problems:
        problem = PROBLEMS[key]
        target = problem.build(lambda name: exact(name, backend="jax"))
        truth, constant = Truth.of(target), log_constant(problem)
        rows: dict[str, Any] = {"exact, level 0": exact_row(problem, truth, constant)}
        for sampler in samplers:
            settings: dict[str, Any] = {"sampler": sampler, "chains": chains}
            found = [
                record.kept(
                    f"oracle/{key}-{sampler}-{seed}",
                    settings,
                    partial(repetition, target, problem, truth, constant, seed=seed, **settings),
                )
                for seed in range(seeds)
            ]
            rows[sampler] = summarise(found)
            say(f"{problem.name}: {sampler}: out {rows[sampler]['out']['mean']:.4f}")
        content["problems"][key] = {"expression": problem.name, "rows": rows}
        say(f"\n{problem.name}\n{table(rows, COLUMNS)}\n")
    record.write("oracle", content)
