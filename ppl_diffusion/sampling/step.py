"""Step-size policies for the leapfrog step, and length scales of coordinates.

All kernels have one step-size parameter, the leapfrog step ``eps``. A :class:`StepPolicy` sets it: to a fixed
number, to a multiple of the level's sigma, or by dual averaging.

A step that suits most chains can be too long for a chain in a region of high curvature: this chain rejects every
proposal, and the mean acceptance rate hardly shows it. An adapted step is therefore an upper limit: for each chain and
move it is multiplied by a random factor that is occasionally small (:meth:`StepPolicy.jittered`). The factor does not
depend on the state, so the kernel still leaves its density invariant.

Source of dual averaging: The No-U-Turn Sampler (Hoffman and Gelman, 2014), section 3.2,
https://jmlr.org/papers/v15/hoffman14a.html; of random steps: MCMC Using Hamiltonian Dynamics (Neal, 2011),
section 5.4.2.2, https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array


class StepState(NamedTuple):
    """State of a step policy, in the notation of dual averaging; floats, or scalar arrays in compiled code.

    Attributes:
        log_step: log of the current leapfrog step.
        log_average: log of the averaged step.
        error: running average of target minus observed acceptance rate.
        count: number of updates.
        centre: value towards which ``log_step`` shrinks.
    """

    log_step: Any
    log_average: Any
    error: Any
    count: Any
    centre: Any


@dataclass(frozen=True)
class StepPolicy(ABC):
    """How the leapfrog step is chosen at each rung."""

    @abstractmethod
    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        """Return the state at the start of a rung.

        Args:
            previous: the state at the end of the previous rung, or None at the first one.
            sigma: standard deviation of the noise at the level.
            guess: a step that suits the start density, for policies without an initial step.
            rescale: factor by which length scales have changed since the previous rung, see :func:`rescaling`.
        """

    def update(self, state: StepState, acceptance: Any) -> StepState:
        """Return the state after one kernel step with mean acceptance rate ``acceptance`` over the chains."""
        return state

    def freeze(self, state: StepState) -> StepState:
        """Return the state for recorded draws, during which the step is constant."""
        return state

    def jittered(self, step: Any, uniform: Any) -> Any:
        """Return the randomised step of one move of one chain, given a uniform random number in [0, 1)."""
        return step


@dataclass(frozen=True)
class Fixed(StepPolicy):
    """The same leapfrog step at every level; ``step=0.1`` is short for ``step=Fixed(0.1)``."""

    value: float

    def __post_init__(self) -> None:
        _check_positive("step", self.value)

    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        return centred(float(np.log(self.value)))


@dataclass(frozen=True)
class SigmaScaled(StepPolicy):
    """A leapfrog step of ``factor`` times the level's sigma."""

    factor: float

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)

    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        return centred(float(np.log(self.factor * sigma)))


@dataclass(frozen=True)
class Adaptive(StepPolicy):
    """Dual averaging towards a target acceptance rate, pooled over all chains and continued from rung to rung.

    Every kernel step of a rung adapts. The next rung starts from the last step of the previous one, rescaled
    by the change of the gradients (:func:`rescaling`), and shrinks towards it, so that even one kernel step per
    rung adapts usefully. For recorded draws the step is frozen at the average over the last rung; a ladder without
    any steps, ``Ladder((0,), steps=0)``, leaves it at its first value: give ``initial``. Unadjusted
    kernels adapt to the acceptance rate that a Metropolis test would have had.

    Args:
        target_acceptance: target of the mean acceptance rate, between 0 and 1.
        initial: first leapfrog step; by default one that suits the start density.
        shrinkage: how strongly the step is pulled towards its centre, ``gamma`` in the paper. The paper's 0.05 is for
            one chain; pooled acceptance rates are less noisy and need less gain.
        jitter: the smallest random factor of the step, in (0, 1]; 1 for none. A move takes the adapted step times
            ``jitter ** (u ** 8)``, ``u`` uniform: for 0.03 the factor is above 0.5 in 80% and below 0.1 in 5% of moves.

    Raises:
        ValueError: ``target_acceptance`` is outside (0, 1), ``initial`` or ``shrinkage`` is not positive, or
            ``jitter`` is outside (0, 1].
    """

    target_acceptance: float = 0.8
    initial: float | None = None
    shrinkage: float = 0.15
    jitter: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.jitter <= 1:
            raise ValueError(f"jitter is a factor in (0, 1], 1 for none, got {self.jitter}: try 0.03")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance must lie between 0 and 1, got {self.target_acceptance}: try 0.7")
        _check_positive("initial", 1.0 if self.initial is None else self.initial)
        _check_positive("shrinkage", self.shrinkage)

    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        if previous is not None:
            return centred(float(previous.log_step) + float(np.log(rescale)))
        return centred(float(np.log(self.initial or guess)))

    def update(self, state: StepState, acceptance: Any) -> StepState:
        count = state.count + 1
        share = 1 / (count + 10)
        error = (1 - share) * state.error + share * (self.target_acceptance - acceptance)
        log_step = state.centre - count**0.5 / self.shrinkage * error
        decay = count**-0.75
        return StepState(log_step, decay * log_step + (1 - decay) * state.log_average, error, count, state.centre)

    def freeze(self, state: StepState) -> StepState:
        return centred(float(state.log_average))

    def jittered(self, step: Any, uniform: Any) -> Any:
        """Return ``step * jitter ** (uniform ** 8)``."""
        return step if self.jitter == 1 else step * self.jitter ** (uniform**8)


def as_policy(step: StepPolicy | float) -> StepPolicy:
    """Return a number as a :class:`Fixed` policy, and a policy unchanged.

    Raises:
        TypeError: ``step`` is neither a number nor a policy.
        ValueError: the number is not positive.
    """
    if isinstance(step, StepPolicy):
        return step
    if isinstance(step, (int, float, np.number)) and not isinstance(step, bool):
        return Fixed(float(step))
    raise TypeError(f"step must be a number, SigmaScaled(0.5) or Adaptive(target_acceptance=0.7), got {step!r}")


MINUS_MEAN_LOG_ABS_NORMAL = 0.635
"""Minus the mean of ``log |z|`` of a standard normal ``z``: ``(log 2 + Euler's constant) / 2``."""


MAX_SCALE_RATIO = 30.0
"""Bound on ratios of length scales. Far from the mode the size of a gradient reflects distance rather than scale."""


def rescaling(before: np.ndarray, after: np.ndarray) -> float:
    """Estimate the change of length scale between two densities from their gradients at the same positions.

    For draws of ``N(0, v)`` the energy gradient of ``N(0, v)`` has the root mean square ``v ** -0.5``, and that of
    ``N(0, w)`` has ``v ** 0.5 / w``. The square root of their ratio is ``(w / v) ** 0.5``, the change of scale.

    Args:
        before: norms of the gradients at the previous rung, shape ``(chains,)``.
        after: norms of the gradients at the new rung, same shape.

    Returns:
        A factor between 1/4 and 4, from the medians over chains whose norms are finite; 1 if there is none or a median
        is zero.
    """
    norms = np.array([before, after], dtype=float)
    norms = np.sort(norms[:, np.isfinite(norms).all(0)])
    count = norms.shape[1]
    if count == 0:
        return 1.0
    left, entered = (norms[:, (count - 1) // 2] + norms[:, count // 2]).tolist()  # twice the medians
    factor = (left / entered) ** 0.5 if left > 0 and entered > 0 else 1.0
    return min(max(factor, 0.25), 4.0)


def block_scales(previous: Array, gradient: Array, diffused: Array) -> np.ndarray:
    """Estimate length scales of coordinates, relative to the diffused coordinates, whose scale is 1.

    At a noisy level the diffused ``x`` is wide while another latent site, such as a noise scale, may be narrow. A
    common step would be too short for ``x``. Draws of ``N(0, v^2)`` have energy gradients of standard deviation
    ``1 / v``: ``log v`` is estimated from the mean of ``log |gradient|`` over chains, and averaged over rungs.

    Args:
        previous: scales at the previous rung, shape ``(size,)``.
        gradient: gradient of the energy there, shape ``(chains, ...)`` of ``size`` numbers a chain.
        diffused: which coordinates the schedule adds noise to, bool, shape ``(size,)``.

    Returns:
        Scales at the new rung, shape ``(size,)``.
    """
    if diffused.all() or not diffused.any():
        return previous
    gradient = np.asarray(gradient, dtype=float).reshape(-1, diffused.size)
    finite = gradient[np.all(np.isfinite(gradient), axis=1)]
    if not len(finite):
        return previous
    tiny = np.finfo(float).tiny
    typical = 0.5 * np.log(np.maximum(np.mean(finite[:, diffused] ** 2, axis=1), tiny))
    others = np.log(np.maximum(np.abs(finite[:, ~diffused]), tiny))
    limit = np.log(MAX_SCALE_RATIO)
    found = np.clip(typical.mean() - others.mean(0) - MINUS_MEAN_LOG_ABS_NORMAL, -limit, limit)
    share = len(finite) / (len(finite) + 8)
    scales = previous.copy()
    scales[~diffused] = np.exp((1 - share) * np.log(previous[~diffused]) + share * found)
    return scales


def scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return ``values * scales``, shapes ``(..., size)`` and ``(size,)``; without a copy if all scales are 1."""
    return values if np.all(scales == 1) else values * scales


def centred(log_step: float) -> StepState:
    """Return the state of a policy that starts from this step and has had no updates."""
    return StepState(log_step, log_step, 0.0, 0.0, log_step)


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")
