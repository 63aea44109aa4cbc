"""Bounds of a log-normaliser from both sides, by annealing down the ladder and back up.

    down   from noise to the last rung: the weights w have the mean Z, the normaliser
    up     from exact draws of the last rung to noise: the weights w have the mean 1 / Z

The logarithm of a mean of positive weights is too low on average, so that the walk down gives a lower bound of log Z
and the walk up an upper one: each is beyond log Z by b nats with a probability of at most exp(-b). Both hold however
few steps are taken; more rungs, steps or chains bring them together. Kernels that adapt while they walk, and
unadjusted ones, loosen this a little.

Source: Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015),
https://arxiv.org/abs/1511.02543
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import as_numpy, outside_inference_mode
from ..ladder import Ladder
from ..potentials.algebra import Potential
from ..potentials.target import require_energy
from .ancestry import log_normaliser_error
from .anneal import anneal
from .arrival import check_gradient
from .kernel import Kernel, State
from .transitions import Reverse, log_forward, log_reverse
from .walk import Walk


@dataclass(frozen=True)
class Bounds:
    """Bounds of the log-normaliser of a potential at a level, in nats; returned by :func:`bound_log_normaliser`.

    Attributes:
        lower, upper: stochastic bounds of ``log int exp(-U(x)) dx``.
        lower_error, upper_error: their standard errors, see ``Trace.log_normaliser_error``.
        level: the level.
        potential: the potential.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float
    level: int
    potential: Potential = field(repr=False)

    @property
    def gap(self) -> float:
        """How far the bounds are apart, in nats: what one does not know of the log-normaliser."""
        return self.upper - self.lower

    def log_density(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return a lower and an upper bound of ``log p(x)``, each ``(n,)``, in nats, for ``x (n, *event_shape)``.

        ``x`` is at :attr:`level`: to judge clean data, noise it first.
        """
        energy = as_numpy(self.potential.energy(x, level=self.level)).astype(np.float64)
        return -energy - self.upper, -energy - self.lower

    def bits(self, x: Any) -> tuple[float, float]:
        """Return a lower and an upper bound of the mean of ``-log2 p(x)`` per dimension, for ``x (n, *event_shape)``.

        It is that of a density. For pixels of 256 values on [-1, 1] add ``log2(127.5)``.
        """
        scale = np.log(2) * np.prod(self.potential.event_shape)
        low, high = self.log_density(x)
        return -float(high.mean()) / scale, -float(low.mean()) / scale


@outside_inference_mode()
def bound_log_normaliser(
    potential: Potential,
    kernel: Kernel,
    *,
    exact: Any,
    ladder: Ladder | None = None,
    seed: int,
    resample: float | None = None,
    reverse_step: Reverse = False,
) -> Bounds:
    """Bound the log-normaliser of a potential at the last rung of a ladder, from both sides.

    >>> from ppl_diffusion import GaussianMixture, NoiseSchedule
    >>> from bridges.blackjax import HMC
    >>> p = GaussianMixture([[0.0]], [0.5], schedule=NoiseSchedule.cosine(20), backend="jax")
    >>> found = bound_log_normaliser(3 * p, HMC(), exact=p.sample(200, level=0, seed=0), seed=0)
    >>> bool(abs(found.lower - np.log(3)) < 0.5), bool(abs(found.upper - np.log(3)) < 0.5)
    (True, True)

    Args:
        potential: the density.
        kernel: an MCMC kernel, from ``bridges.blackjax`` or ``bridges.pyro``.
        exact: independent draws of the potential at the last rung, ``(chains, *event_shape)``. Draws of something else,
            such as held-out data for a learned model, give an upper value that is no bound.
        ladder: levels, and kernel steps at each, in both directions; by default every level with one step.
        seed: the same seed gives the same bounds.
        resample: as for :func:`ppl_diffusion.anneal`, in both directions.
        reverse_step: go down by reverse-diffusion steps and up by the forward kernel; the bounds are then closer in
            many dimensions. "wide" as for :func:`ppl_diffusion.anneal`; the weights of the way up take the variances of
            the way down, which know nothing of the draws that go up, so that both bounds hold.

    Raises:
        ValueError, TypeError: an argument is invalid, or only the gradient of the potential is known.
    """
    if not isinstance(potential, Potential):
        raise TypeError(f"bounds are for potentials, got {potential!r}: of a Pyro model take trace.log_normaliser")
    require_energy(potential, "log-normalisers")
    ladder = Ladder.full(potential.schedule, steps=1) if ladder is None else ladder
    draws = np.array(as_numpy(exact), dtype=np.float64)
    if draws.shape[1:] != potential.event_shape or len(draws) < 2:
        raise ValueError(
            f"exact has the shape {draws.shape}: pass two or more draws, (chains, *event_shape), here with event_shape "
            f"{potential.event_shape}, at level {ladder.levels[-1]}"
        )
    finite = np.isfinite(draws).reshape(len(draws), -1).all(1)
    if not finite.all():
        raise ValueError(f"exact holds values that are not finite, in draw {np.argmin(finite)}: leave these draws out")
    down = anneal(
        potential,
        kernel,
        ladder=ladder,
        chains=len(draws),
        seed=seed,
        resample=resample,
        reverse_step=reverse_step,
    )
    widened: dict[int, float] | None = None
    if reverse_step:
        factors = down.stats["widening"].to_numpy() if reverse_step == "wide" else np.ones(len(ladder))
        widened = dict(zip(ladder.levels, factors.tolist(), strict=True))
    up = _Ascent(potential, kernel, ladder, draws, seed=seed + 1, resample=resample, widened=widened)
    upper, error = up.walked()
    return Bounds(down.log_normaliser, down.log_normaliser_error, -upper, error, ladder.levels[-1], potential)


class _Ascent:
    """Chains on their way up a ladder, from exact draws of its last rung to its first one, and their weights.

    ``widened``, the factor of the variance of the reverse step to each level, is for chains that go by the forward
    kernel; without it they stay in place.
    """

    def __init__(
        self,
        potential: Potential,
        kernel: Kernel,
        ladder: Ladder,
        draws: np.ndarray,
        *,
        seed: int,
        resample: float | None,
        widened: Mapping[int, float] | None,
    ) -> None:
        self.potential, self.ladder, self.resample, self.widened = potential, ladder, resample, widened
        self.walk = Walk(potential, kernel, ladder.levels[-1], chains=len(draws), init=draws, seed=seed)
        self.rows: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self.log_ratio = 0.0

    def walked(self) -> tuple[float, float]:
        """Return the log of the estimate of ``1 / Z``, and its standard error."""
        walk, levels = self.walk, self.ladder.levels[::-1]
        state = walk.walker.arrive(walk.start, levels[0], None, seed=walk.next_seed())
        check_gradient(state, self.widened is not None, "reverse_step")
        self._weigh(np.where(np.isfinite(state.energy), 0.0, -np.inf))
        for level, steps in zip(levels[1:], self.ladder.steps_per_rung[-2::-1], strict=True):
            state = self._climb(state, level)
            state, _ = walk.walker.move(state, steps, seed=walk.next_seed())
        log_density = self.potential.log_start(np.asarray(state.positions), levels[-1])
        self._weigh(np.asarray(state.energy) + log_density)
        increments, ancestors, resampled = (np.array(column) for column in zip(*self.rows, strict=True))
        return self.log_ratio, log_normaliser_error(increments, ancestors, resampled)

    def _climb(self, state: State, level: int) -> State:
        """Take the chains to a noisier level, weigh them there, and resample them if it is due."""
        walk, potential = self.walk, self.potential
        before = np.asarray(state.positions, dtype=np.float64)
        positions: Any = state.positions
        if self.widened is not None:
            alpha, sigma = potential.schedule.forward(state.level, level)
            noised = alpha * before + sigma * walk.rng.standard_normal(before.shape)
            positions = np.where(np.broadcast_to(potential.diffused, potential.event_shape), noised, before)
        arrived = walk.walker.arrive(positions, level, state, seed=walk.next_seed())
        with np.errstate(invalid="ignore"):
            increments = np.asarray(state.energy) - np.asarray(arrived.energy)
            if self.widened is not None:
                gradient, t = np.asarray(arrived.gradient, dtype=np.float64), state.level
                factor = self.widened[t]
                increments = increments + log_reverse(potential, before, positions, gradient, level, t, widened=factor)
                increments = increments - log_forward(potential, positions, before, level, state.level)
        ancestors = self._weigh(increments)
        return arrived if ancestors is None else walk.walker.select(arrived, ancestors)

    def _weigh(self, increments: np.ndarray) -> np.ndarray | None:
        weights = self.walk.weights
        self.log_ratio += weights.move(increments)["log_normaliser"]
        ancestors = weights.resample(self.resample, last=False, rng=self.walk.rng)
        same = np.arange(len(increments)) if ancestors is None else ancestors
        self.rows.append((increments, same, ancestors is not None))
        return ancestors
