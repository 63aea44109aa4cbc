"""Eight kinds of runs, each by its intent, on small closed-form targets that are drawn anew for every setting.

A kind has five settings. What a run is intended to be does not decide whether it is right: its moments and shares do,
see :mod:`benchmarks.verdicts.truth`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.verdicts.truth import Truth, noised, product
from bridges.blackjax import HMC, MALA, NUTS, UHMC, ULA
from ppl_diffusion import GaussianMixture, Kernel, Ladder, NoiseSchedule, Potential, Trace, anneal

SCHEDULE = NoiseSchedule.cosine(50)


@dataclass(frozen=True)
class Target:
    """A potential, and its truth at level 0; None if it cannot be normalised."""

    potential: Potential
    truth: Truth | None


@dataclass(frozen=True)
class Setting:
    """A target and how it is sampled; ``options`` are those of ``anneal``, beside the kernel and the seed."""

    target: Target
    kernel: Kernel
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, seed: int) -> Trace:
        """Return the trace of one seed."""
        return anneal(self.target.potential, self.kernel, **self.options, seed=seed)


def mixture(means: np.ndarray, scales: np.ndarray, weights: np.ndarray, name: str = "p") -> Target:
    """A mixture with means and scales ``(K, D)``, exact at every level."""
    p = GaussianMixture(means, scales, weights=weights, schedule=SCHEDULE, backend="jax", name=name)
    return Target(p, noised(means, scales, weights, SCHEDULE.alpha(0), SCHEDULE.sigma(0)))


def times(p: Target, q: Target, exponent: float = 1.0) -> Target:
    """The product ``p * q**exponent``, an annealing path whose levels are not noised versions of the last one."""
    assert p.truth is not None
    assert q.truth is not None
    powered = q.potential**exponent if exponent != 1.0 else q.potential
    try:
        truth = product(p.truth, q.truth, exponent)
    except ValueError:
        truth = None
    return Target(p.potential * powered, truth)


def one_mode(rng: np.random.Generator, size: int, low: float, high: float, name: str = "p") -> Target:
    """A Gaussian of ``size`` dimensions, whose standard deviations lie between ``low`` and ``high``."""
    scales = np.exp(rng.uniform(np.log(low), np.log(high), size=(1, size)))
    return mixture(rng.normal(0, 0.3, (1, size)), scales, np.ones(1), name)


def modes(rng: np.random.Generator, count: int, size: int, scale: float, name: str = "p") -> Target:
    """A mixture of uneven Gaussians, 12 of their standard deviations apart or more."""
    while True:
        means = rng.uniform(-1, 1, (count, size))
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(count, 1)]
        if apart.min() > 12 * scale:
            break
    weights = rng.dirichlet(np.full(count, 5.0)) * 0.8 + 0.2 / count
    return mixture(means, scale * rng.uniform(0.7, 1.3, (count, size)), weights / weights.sum(), name)


def pair(rng: np.random.Generator, size: int, scale: float, share: float) -> Target:
    """Two modes on either side of the origin, of which the first holds ``share``."""
    direction = rng.standard_normal(size)
    direction *= 0.8 / np.linalg.norm(direction)
    return mixture(np.stack([direction, -direction]), np.full((2, size), scale), np.array([share, 1 - share]))


def every(steps: int, rungs: int | None = None) -> Ladder:
    """A ladder of every level, or of so many."""
    return Ladder.spaced(SCHEDULE, rungs=rungs or len(SCHEDULE), steps=steps)


def converged_in_one_mode(rng: np.random.Generator) -> Iterator[Setting]:
    """Enough steps and draws by adjusted kernels."""
    long = {"ladder": every(5), "chains": 256, "draws": 100}
    yield Setting(one_mode(rng, 2, 0.1, 0.5), HMC(), long)
    yield Setting(one_mode(rng, 16, 0.3, 0.6), HMC(leapfrogs=5), long | {"chains": 128})
    yield Setting(times(one_mode(rng, 4, 0.3, 0.8), one_mode(rng, 4, 0.3, 0.8, "q")), MALA(), long)
    yield Setting(times(one_mode(rng, 3, 0.2, 0.4), one_mode(rng, 3, 0.8, 1.2, "q"), -0.5), NUTS(), long)
    yield Setting(one_mode(rng, 4, 0.2, 0.5), HMC(), long | {"chains": 512, "draws": 1, "resample": 0.5})


def converged_in_several_modes(rng: np.random.Generator) -> Iterator[Setting]:
    """Chains stay in their modes, and weights set the shares."""
    weighted = {"ladder": every(3), "chains": 512, "draws": 40, "resample": 0.5}
    yield Setting(modes(rng, 2, 2, 0.06), HMC(), weighted)
    yield Setting(modes(rng, 4, 6, 0.08), HMC(), weighted | {"chains": 1000})
    yield Setting(times(modes(rng, 3, 2, 0.08), one_mode(rng, 2, 0.5, 1.0, "q")), HMC(), weighted | {"chains": 1000})
    yield Setting(times(modes(rng, 2, 4, 0.1), one_mode(rng, 4, 0.7, 1.2, "q")), MALA(), weighted | {"chains": 1000})
    yield Setting(modes(rng, 3, 3, 0.06), NUTS(), weighted | {"draws": 1})


def stuck(rng: np.random.Generator) -> Iterator[Setting]:
    """A step so large that hardly a proposal is accepted, or so small that chains stay where they are."""
    plain = {"ladder": every(5), "chains": 256, "draws": 50}
    yield Setting(one_mode(rng, 2, 0.1, 0.3), HMC(step=50.0), plain)
    yield Setting(one_mode(rng, 4, 0.05, 0.1), HMC(step=0.6), plain)
    yield Setting(one_mode(rng, 3, 0.1, 0.3), HMC(step=1e-4), plain)
    yield Setting(modes(rng, 3, 6, 0.06), MALA(step=3.0), plain | {"resample": 0.5})
    yield Setting(one_mode(rng, 8, 0.05, 0.1), MALA(step=0.7), plain | {"draws": 1})


def collapsed_modes(rng: np.random.Generator) -> Iterator[Setting]:
    """All chains start in one of the modes, or the path down the ladder leads most of them into one of them."""
    plain = {"chains": 256, "draws": 60}
    for size, level in ((2, 0), (5, 3)):
        target = pair(rng, size, 0.08, 0.6)
        assert target.truth is not None
        start = target.truth.means[0] + 0.08 * rng.standard_normal((256, size))
        levels = tuple(range(level, -1, -1))
        yield Setting(target, HMC(), plain | {"ladder": Ladder(levels, steps=10), "init": start})
    for size, share, width in ((2, 0.8, 0.5), (3, 0.85, 0.6), (2, 0.9, 0.45)):
        # The second factor turns the shares about, and at noisy levels it is too wide to do so.
        p = pair(rng, size, 0.06, share)
        assert p.truth is not None
        q = mixture(1.3 * p.truth.means[1:], np.full((1, size), width), np.ones(1), "q")
        yield Setting(times(p, q), HMC(), plain | {"ladder": every(2, 25)})


def under_annealed(rng: np.random.Generator) -> Iterator[Setting]:
    """A few rungs with a few steps, too short for the chains to arrive."""
    short = {"chains": 256, "draws": 25}
    yield Setting(one_mode(rng, 8, 0.05, 0.4), HMC(step=0.03), short | {"ladder": every(2, 8)})
    yield Setting(one_mode(rng, 24, 0.03, 0.5), MALA(), short | {"ladder": every(1, 5)})
    yield Setting(one_mode(rng, 4, 0.02, 0.05), HMC(step=0.004), short | {"ladder": every(1, 6), "draws": 1})
    yield Setting(one_mode(rng, 6, 0.1, 0.5), MALA(step=0.03), short | {"ladder": every(3, 10), "draws": 60})
    yield Setting(modes(rng, 3, 4, 0.06), HMC(step=0.005), short | {"ladder": every(1, 8)})


def too_large_a_step(rng: np.random.Generator) -> Iterator[Setting]:
    """Unadjusted kernels whose step is 1.3 to 1.7 of the smallest standard deviation."""
    long = {"ladder": every(10), "chains": 512, "draws": 50}
    for size, ratio, kernel in ((2, 1.5, ULA), (8, 1.3, ULA), (2, 1.7, ULA), (4, 1.5, UHMC), (3, 1.4, UHMC)):
        target = one_mode(rng, size, 0.15, 0.4)
        assert target.truth is not None
        yield Setting(target, kernel(step=ratio * float(np.sqrt(target.truth.variances.min()))), long)


def too_coarse_a_ladder(rng: np.random.Generator) -> Iterator[Setting]:
    """A handful of rungs, between which the density changes by too much for its weights."""
    weighted = {"chains": 256, "draws": 40, "resample": 0.5}
    yield Setting(modes(rng, 4, 12, 0.06), HMC(), weighted | {"ladder": every(10, 4)})
    yield Setting(modes(rng, 3, 8, 0.04), HMC(), weighted | {"ladder": every(10, 3)})
    yield Setting(modes(rng, 3, 16, 0.06), MALA(), weighted | {"ladder": every(10, 5), "draws": 1})
    product_of_modes = times(modes(rng, 4, 10, 0.06), one_mode(rng, 10, 1.0, 1.5, "q"))
    yield Setting(product_of_modes, HMC(), weighted | {"ladder": every(10, 6)})
    yield Setting(modes(rng, 2, 24, 0.08), HMC(), weighted | {"ladder": every(10, 4), "chains": 64})


def improper(rng: np.random.Generator) -> Iterator[Setting]:
    """Quotients that have no tails, in one direction or in all, at level 0."""
    plain = {"ladder": every(5), "chains": 256, "draws": 50}
    for size, kernel, exponent in (
        (2, HMC(), 0.6),
        (4, HMC(), 0.5),
        (3, MALA(), 0.7),
        (2, NUTS(), 0.5),
        (8, HMC(), 0.8),
    ):
        narrow = mixture(np.zeros((1, size)), np.array([[0.3] + [1.0] * (size - 1)]), np.ones(1), "q")
        yield Setting(times(one_mode(rng, size, 0.6, 0.9), narrow, -exponent), kernel, plain)


KINDS: dict[str, Callable[[np.random.Generator], Iterator[Setting]]] = {
    "converged, one mode": converged_in_one_mode,
    "converged, several modes": converged_in_several_modes,
    "stuck": stuck,
    "mode-collapsed": collapsed_modes,
    "under-annealed": under_annealed,
    "step too large": too_large_a_step,
    "ladder too coarse": too_coarse_a_ladder,
    "improper quotient": improper,
}
"""The kinds of runs by name."""
