"""How far a kernel moves: leapfrog steps, and length scales of coordinates.

The size of a move is one number everywhere, the leapfrog step ``eps``. Where it comes from is a
:class:`StepPolicy`: a fixed number, a multiple of the level's sigma, or dual averaging.

One step that suits most chains is too long for a chain in a steep place: it would be refused for ever, at every
level, and no mean acceptance rate shows it. So an adaptive step is an upper end, which every chain and move
multiplies by a random factor that is now and then small (:meth:`StepPolicy.jittered`). The factor does not depend on
the state, so invariance is not touched.

Source of dual averaging: The No-U-Turn Sampler (Hoffman and Gelman, 2014), section 3.2,
https://jmlr.org/papers/v15/hoffman14a.html; of random steps: MCMC Using Hamiltonian Dynamics (Neal, 2011),
section 5.4.2.2, https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array


class StepState(NamedTuple):
    """What a step policy remembers; numbers, or scalar arrays inside a compiled walk."""

    log_step: Any
    log_average: Any
    error: Any
    count: Any
    centre: Any


@dataclass(frozen=True)
class StepPolicy(ABC):
    """Where the leapfrog step of a rung comes from."""

    @abstractmethod
    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        """The state at the start of a rung.

        Args:
            previous: the state at the end of the rung before, or None at the first.
            sigma: noise of the level.
            guess: a step that suits the start density, for a policy that has none.
            rescale: factor by which length scales have changed since the rung before, see :func:`rescaling`.
        """

    def update(self, state: StepState, acceptance: Any) -> StepState:
        """The state after one kernel step whose acceptance rate, averaged over chains, was ``acceptance``."""
        return state

    def freeze(self, state: StepState) -> StepState:
        """The state for recorded draws, whose step no longer changes."""
        return state

    def jittered(self, step: Any, uniform: Any) -> Any:
        """The step of one move of one chain, from a uniform number in [0, 1) that is drawn for it."""
        return step


@dataclass(frozen=True)
class Fixed(StepPolicy):
    """The same leapfrog step at every level; a plain number given as ``step=`` becomes this."""

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
    """Dual averaging of the acceptance rate over all chains, carried from rung to rung.

    All steps of a rung adapt. The next rung starts from the step that the last one ended with, rescaled
    as the gradients have changed (:func:`rescaling`), and averages around it, so that even one step a rung
    is useful; for recorded draws the step is frozen at the rung's average. Unadjusted kernels adapt to the
    acceptance rate that a Metropolis test would have had.

    Args:
        target_acceptance: acceptance rate aimed at, between 0 and 1.
        initial: first leapfrog step; by default one that suits the start density.
        shrinkage: how strongly the step is held at its centre (``gamma`` of the paper, where .05 serves
            the noisy acceptance of one chain; pooled chains need less gain).
        jitter: smallest factor, in (0, 1], of the step of a move, ``jitter ** (u ** 8)`` times the adapted one with
            ``u`` uniform: for .03 over half of it for four moves in five, under a tenth for one in twenty. 1 for none.

    Raises:
        ValueError: a target outside (0, 1), a step that is not positive, or a factor outside (0, 1].
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
        """See :class:`StepPolicy`."""
        return step if self.jitter == 1 else step * self.jitter ** (uniform**8)


def as_policy(step: StepPolicy | float) -> StepPolicy:
    """A number as a :class:`Fixed` step; a policy as it is.

    Raises:
        TypeError: neither.
    """
    if isinstance(step, StepPolicy):
        return step
    if isinstance(step, (int, float, np.number)) and not isinstance(step, bool):
        return Fixed(float(step))
    raise TypeError(f"step must be a number, SigmaScaled(0.5) or Adaptive(target_acceptance=0.7), got {step!r}")


LOG_NORMAL_SIZE = 0.635
"""Minus the mean of ``log |z|`` of a standard normal ``z``: ``(log 2 + Euler's constant) / 2``."""


WIDEST = 30.0
"""Ratio of scales at most: a chain that is far from where it belongs has gradients that tell its distance."""


def rescaling(before: Array, after: Array) -> float:
    """The change of length scale between two densities, from their gradients at the same positions.

    Draws of a Gaussian of variance ``v`` have gradients of root mean square ``v ** -0.5``, and ``v ** 0.5 / w`` under
    a Gaussian of variance ``w``: the square root of the ratio is ``(w / v) ** 0.5``, the change of scale.

    Args:
        before: gradients at the rung that is left, shape ``(chains, *event_shape)``.
        after: gradients at the rung that is entered, of the same shape.

    Returns:
        A factor between 1/4 and 4, from the median chain; 1 when it cannot be told.
    """
    flat = (np.asarray(g).reshape(len(g), -1) for g in (before, after))
    norms = np.sqrt([np.einsum("ij,ij->i", g, g) for g in flat])
    norms = np.sort(norms[:, np.isfinite(norms).all(0)])
    count = norms.shape[1]
    if count == 0:
        return 1.0
    left, entered = (norms[:, (count - 1) // 2] + norms[:, count // 2]).tolist()  # twice the medians
    factor = (left / entered) ** 0.5 if left > 0 and entered > 0 else 1.0
    return min(max(factor, 0.25), 4.0)


def block_scales(previous: Array, gradient: Array, diffused: Array) -> np.ndarray:
    """Length scales of coordinates, relative to those that a noise level belongs to, whose own are 1.

    At a noisy level ``x`` may go a long way, while another latent site, such as the scale of the noise, is known
    closely: one step for both would hold ``x`` up. Draws of a Gaussian of standard deviation ``v`` have gradients of
    standard deviation ``1 / v``: their size tells the scales, on the logarithm, averaged over chains and rungs.

    Args:
        previous: scales of the rung that is left, shape ``(size,)``.
        gradient: of the energy there, shape ``(chains, size)``.
        diffused: which coordinates a noise level belongs to, bool ``(size,)``.
    """
    if diffused.all() or not diffused.any():
        return previous
    finite = gradient[np.all(np.isfinite(gradient), axis=1)]
    if not len(finite):
        return previous
    tiny = np.finfo(float).tiny
    typical = 0.5 * np.log(np.maximum(np.mean(finite[:, diffused] ** 2, axis=1), tiny))
    others = np.log(np.maximum(np.abs(finite[:, ~diffused]), tiny))
    found = np.clip(typical.mean() - others.mean(0) - LOG_NORMAL_SIZE, -np.log(WIDEST), np.log(WIDEST))
    share = len(finite) / (len(finite) + 8)
    scales = previous.copy()
    scales[~diffused] = np.exp((1 - share) * np.log(previous[~diffused]) + share * found)
    return scales


def scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """``values (..., size)`` times ``scales (size,)``; themselves where all of those are 1, as copies take time."""
    return values if np.all(scales == 1) else values * scales


def unscaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The way back from :func:`scaled`."""
    return values if np.all(scales == 1) else values / scales


def centred(log_step: float) -> StepState:
    """The state of a policy that has learned nothing yet but this step."""
    return StepState(log_step, log_step, 0.0, 0.0, log_step)


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")
