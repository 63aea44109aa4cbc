"""Claim: with exact noised densities, annealed MCMC on composed energies approaches the composed target, reverse
diffusion on summed scores does not, and weights between rungs make the walk exact at no gradient cost.

    python -m benchmarks.planar.oracle [--chains 2000] [--seeds 5]

There is no network: every density is known in closed form at every level, so that all error is the sampler's. The best
score that a walk can reach is "exact, level 0", since its last rung still contains the noise of level 0.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.harness import last, summarise, table, write
from benchmarks.planar.problems import PROBLEMS, Truth, exact_row, judge, log_constant
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


def main() -> None:
    """Run every sampler on every problem, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    densities = {name: exact(name, backend="jax") for name in ("ring", "bar", "left", "right", "wide")}
    content: dict[str, Any] = {"chains": options.chains, "seeds": options.seeds, "problems": {}}
    for key, problem in PROBLEMS.items():
        target = problem.build(densities.__getitem__)
        truth, constant = Truth.of(target), log_constant(problem)
        reference = truth.sample(4000, seed=1)
        rows: dict[str, Any] = {"exact, level 0": exact_row(problem, truth, constant)}
        for sampler in SAMPLERS:
            found = []
            for seed in range(options.seeds):
                trace, seconds = run(target, sampler, options.chains, seed)
                rate = float(trace.stats.acceptance_rate.mean())
                extra = {"acceptance": rate, "calls": float(trace.gradient_calls), "seconds": seconds}
                extra["resamplings"] = float(trace.stats.resampled.sum())
                found.append(judge(problem, last(trace), reference, constant) | extra)
            rows[sampler] = summarise(found)
            print(f"{problem.name}: {sampler}: out {rows[sampler]['out']['mean']:.4f}", flush=True)
        content["problems"][key] = {"expression": problem.name, "rows": rows}
        print(f"\n{problem.name}\n{table(rows, COLUMNS)}\n", flush=True)
        write("oracle", content)


if __name__ == "__main__":
    main()
