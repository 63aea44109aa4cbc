"""Claim: with the shipped, learned energies, annealed HMC comes closer to a composed target than reverse diffusion
with the same networks, and as close as those networks allow.

    python -m benchmarks.planar.composition [--chains 300] [--seeds 5]

Two distances are reported. "MMD" is the distance to the true composition, which includes the errors of the sampler and
of the models. "MMD own" is the distance to the composed density of the models themselves (by quadrature of their
energies at level 0), which includes the sampler's error only. The row "own density" is the score of a perfect sampler
of these models.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.harness import last, summarise, table, write
from benchmarks.planar.problems import PROBLEMS, Truth, exact_row, judge, log_constant, mmd
from bridges.blackjax import HMC, MALA, UHMC, ULA
from bridges.torch_jax import to_jax
from ppl_diffusion import Ladder, SamplingWarning, anneal, load, reverse_diffusion
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
COLUMNS = ("out", "LL", "MMD", "MMD own", "energy gap", "mode std", "balance", "acceptance", "seconds")


def main() -> None:
    """Run every sampler on every problem, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SamplingWarning)  # recorded in the results instead
    models = {name: load(name) for name in ("ring", "bar", "left", "right", "wide")}
    ladder = Ladder.full(SCHEDULE, steps=STEPS)
    content: dict[str, Any] = {"chains": options.chains, "seeds": options.seeds, "steps": STEPS, "problems": {}}
    for key, problem in PROBLEMS.items():
        target = to_jax(problem.build(models.__getitem__))
        truth = Truth.of(problem.build(lambda name: exact(name, backend="jax")))
        own, constant = Truth.of(target), log_constant(problem)
        references = truth.sample(4000, seed=1), own.sample(4000, seed=2)
        rest = own.mean(own.energies)
        rows: dict[str, Any] = {
            "exact, level 0": exact_row(problem, truth, constant),
            "own density": exact_row(problem, own, constant) | {"MMD": {"mean": mmd(references[1], references[0])}},
        }
        told: dict[str, list[str]] = {}
        for sampler, (kernel, extra) in SAMPLERS.items():
            found = []
            for seed in range(options.seeds):
                begun = time.perf_counter()
                if kernel is None:
                    trace = reverse_diffusion(target, ladder=ladder, chains=options.chains, seed=seed)
                else:
                    trace = anneal(target, kernel, ladder=ladder, chains=options.chains, seed=seed, **extra)
                seconds, x = time.perf_counter() - begun, last(trace)
                row = judge(problem, x, references[0], constant)
                row["MMD own"] = mmd(x, references[1])
                row["energy gap"] = float(-trace.sample_stats.lp[:, -1].mean() - rest)
                row["acceptance"] = float(np.mean(trace.stats.acceptance_rate))
                found.append(row | {"seconds": seconds})
                told[sampler] = list(dict.fromkeys([*told.get(sampler, []), *trace.attributes["warnings"]]))
            rows[sampler] = summarise(found)
            print(f"{problem.name}: {sampler}: out {rows[sampler]['out']['mean']:.4f}", flush=True)
        content["problems"][key] = {"expression": problem.name, "rows": rows, "warnings": told}
        print(f"\n{problem.name}\n{table(rows, COLUMNS)}\n", flush=True)
        write("composition", content)


if __name__ == "__main__":
    main()
