"""Claim: positions of cubes compose: a conjunction of one, three or five positions has a cube at each.

    python -m benchmarks.cubes [--pictures 8]

A picture: one row for reverse diffusion and one for annealed HMC for each number of cubes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.problems import RESULTS
from bridges.blackjax import HMC
from ppl_diffusion import Ladder, Potential, SamplingWarning, Trace, anneal, conjunction, load, reverse_diffusion

POSITIONS = ((0.5, 0.5), (0.2, 0.35), (0.8, 0.35), (0.3, 0.75), (0.7, 0.75))
LADDER = Ladder(levels=(*range(99, 9, -3), 8, 6, 4, 3, 2, 1, 0), steps=3)


def target(count: int) -> Potential:
    """The first ``count`` positions at once."""
    cubes = load("cubes")
    return conjunction([cubes.given(x=x, y=y) for x, y in POSITIONS[:count]], cubes)


def samples(count: int, pictures: int) -> dict[str, Trace]:
    """Pictures by sampler."""
    potential = target(count)
    return {
        "reverse": reverse_diffusion(potential, chains=pictures, seed=count),
        "HMC": anneal(potential, HMC(), ladder=LADDER, chains=pictures, seed=count, reverse_step=True),
    }


def draw_grid(*, counts: Sequence[int], pictures: int) -> Figure:
    """Rows are numbers of cubes and samplers; crosses are where cubes are wanted."""
    figure = Figure(figsize=(pictures * 1.1 + 0.6, len(counts) * 2.3), layout="constrained")
    axes = figure.subplots(2 * len(counts), pictures)
    for i, count in enumerate(counts):
        for j, (name, trace) in enumerate(samples(count, pictures).items()):
            for axis, x in zip(axes[2 * i + j], trace.positions[:, -1], strict=True):
                axis.imshow((np.clip(x.transpose(1, 2, 0), -1, 1) + 1) / 2)
                axis.set(xticks=[], yticks=[])
                for px, py in POSITIONS[:count]:
                    axis.plot(32 * px - 0.5, 32 * py - 0.5, "+", color="white", markersize=5, markeredgewidth=0.6)
            axes[2 * i + j][0].set_ylabel(f"{count}: {name}", fontsize=8)
    return figure


def main() -> None:
    """Draw the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SamplingWarning)
    draw_grid(counts=(1, 3, 5), pictures=options.pictures).savefig(RESULTS / "cubes.png", dpi=100)


if __name__ == "__main__":
    main()
