"""Claim: a change of the code that is not meant to change what walks compute leaves every number of them as it was.

    python -m benchmarks.same_walks > after
    diff before after

Six walks are run with stated seeds, and of each the SHA-256 digest of its positions and statistics is printed: a
weighted product of planar models, digits given a class, a conjunction of two positions of cubes with reverse steps, a
Pyro model with two latent sites by BlackJAX's HMC and by Pyro's NUTS, and a walk that was interrupted and goes on from
its checkpoint. Two versions of the code compute the same if they print the same, on one machine with the same
libraries.

The file runs alone too, on a version that does not have it: ``python same_walks.py`` where that version is installed.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import typer

import bridges.pyro as in_turn
from bridges.blackjax import HMC
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model
from ppl_diffusion import Ladder, Potential, SamplingWarning, Trace, anneal, conjunction, load

QUICK = {"walks": ["resumed"], "seeds": 1}
STATS = (
    "acceptance_rate",
    "step_size",
    "diverging",
    "nonfinite",
    "jump_distance",
    "energy_arrival",
    "energy_midway",
    "energy",
    "log_weight",
    "ancestor",
    "ess",
    "log_normaliser",
    "resampled",
    "gradient_calls",
)
"""Statistics of rungs that are compared; those that another version adds are not."""
SAMPLE_STATS = ("lp", "acceptance_rate", "diverging", "step_size")


@cache
def target(walk: str) -> Potential:
    """Return what a walk is on; the same object for every seed, so that what was compiled for it is used again."""
    if walk == "planar":
        return load("ring") * load("bar")
    if walk == "cubes":
        base = load("cubes")
        return conjunction([base.given(x=0.3, y=0.4), base.given(x=0.7, y=0.6)], base)
    return load("digits").given(3) if walk == "digits" else load("left")


def planar(seed: int) -> Trace:
    """A product of planar models, with weights that resample."""
    product = target("planar")
    ladder = Ladder.spaced(product.schedule, rungs=12, steps=4)
    return anneal(product, HMC(), ladder=ladder, chains=32, draws=5, seed=seed, resample=0.5)


def digits(seed: int) -> Trace:
    """Digits given their class."""
    threes = target("digits")
    return anneal(threes, HMC(), ladder=Ladder.spaced(threes.schedule, rungs=4, steps=2), chains=3, draws=2, seed=seed)


def cubes(seed: int) -> Trace:
    """A conjunction of two positions, with reverse steps."""
    ladder = Ladder(levels=(80, 60, 40), steps=1)
    return anneal(target("cubes"), HMC(leapfrogs=2), ladder=ladder, chains=2, seed=seed, reverse_step=True)


RING = load("ring")
SEEN = torch.tensor([0.4, 0.3])


def two_sites(y: torch.Tensor) -> None:
    """Measurements ``y (2,)`` of a point of the ring, with noise of unknown scale."""
    x = pyro.sample("x", DiffusionPrior(RING))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    pyro.sample("y", dist.Normal(x, noise + 0.05).to_event(1), obs=y)


@cache
def joint() -> JointPotential:
    """Return the joint density of the Pyro model."""
    return JointPotential(two_sites, (SEEN,), likelihood="widened")


def posterior(seed: int) -> Trace:
    """The posterior of a Pyro model with two latent sites, by BlackJAX's HMC."""
    ladder = Ladder.spaced(RING.schedule, rungs=8, steps=3)
    return anneal_model(joint(), kernel=HMC(), ladder=ladder, chains=8, draws=4, seed=seed)


def pyro_nuts(seed: int) -> Trace:
    """The same posterior by Pyro's NUTS."""
    ladder = Ladder.spaced(RING.schedule, rungs=3, steps=2)
    kernel = in_turn.NUTS(max_doublings=3)
    return anneal_model(joint(), kernel=kernel, ladder=ladder, chains=2, draws=2, seed=seed)


class _InterruptionError(Exception):
    pass


def resumed(seed: int) -> Trace:
    """A walk with a persistent momentum that is interrupted after its fifth rung and goes on from its checkpoint."""
    left = target("left")
    ladder = Ladder.spaced(left.schedule, rungs=10, steps=3)
    calls: list[None] = []

    def interrupt(_: object) -> None:
        calls.append(None)
        if len(calls) == 5:
            raise _InterruptionError

    def walk(kept: Path, progress: Callable[[object], None] | None) -> Trace:
        kernel = HMC(refreshment=0.3)
        return anneal(
            left,
            kernel,
            ladder=ladder,
            chains=16,
            draws=6,
            seed=seed,
            resample=0.9,
            checkpoint=kept,
            progress=progress,
        )

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "walk"
        try:
            walk(kept, interrupt)
        except _InterruptionError:
            return walk(kept, None)
    raise AssertionError("the walk was not interrupted")


WALKS: dict[str, Callable[[int], Trace]] = {
    "planar": planar,
    "digits": digits,
    "cubes": cubes,
    "posterior": posterior,
    "pyro-nuts": pyro_nuts,
    "resumed": resumed,
}


def digest(trace: Trace) -> str:
    """Return the SHA-256 digest of positions, sites and statistics of a trace, in hexadecimal digits."""
    found = hashlib.sha256()
    parts = {"positions": trace.positions}
    parts |= {f"site {name}": trace.sites[name] for name in sorted(trace.sites)}
    parts |= {name: trace.stats[name].to_numpy() for name in STATS}
    parts |= {f"draw {name}": trace.sample_stats[name].to_numpy() for name in SAMPLE_STATS}
    for name, values in parts.items():
        array = np.ascontiguousarray(values)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def main(
    walks: Annotated[list[str], typer.Option(help="Walks to run.")] = list(WALKS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each walk.")] = 10,
) -> None:
    """Print one line for each walk and seed: its name, the seed, and the digest."""
    unknown = set(walks) - set(WALKS)
    if unknown:
        raise ValueError(f"there is no walk {', '.join(sorted(unknown))}: use {', '.join(WALKS)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums would otherwise depend on how many processors there are
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # the walks are short
            for name in walks:
                for seed in range(seeds):
                    print(name, seed, digest(WALKS[name](seed)), flush=True)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    typer.run(main)
