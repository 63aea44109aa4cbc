"""The interface between annealed sampling and MCMC kernels.

A :class:`Kernel` is a frozen description of an MCMC kernel by its parameters. ``kernel.bind(potential)``
returns a :class:`Walker`, which owns what the sampler library needs (compiled functions, caches).
:func:`ppl_diffusion.anneal` only calls walkers, so that kernels of any library can be annealed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..arrays import Array
from ..potentials.target import Target
from .step import StepPolicy, StepState, as_policy, block_scales, rescaling


class State(NamedTuple):
    """The state of all chains at a level, built by a walker from an evaluation at that level.

    Positions and gradients may be JAX arrays, which stay on their device until ``np.asarray`` reads them. No array is
    changed in place; a checkpoint stores all of them, and those of ``carried`` as a JAX pytree.

    Attributes:
        level: noise level.
        positions: shape ``(chains, *event_shape)``.
        energy: shape ``(chains,)``, float64; infinite or NaN where the density could not be evaluated.
        gradient: gradient of the energy, shape ``(chains, *event_shape)``.
        step: state of the step policy.
        carried: other state of the walker; the first axis of every array is the chains.
        scales: length scales of coordinates, shape ``(size,)``, ``size`` being that of an event; the walker moves in
            ``positions / scales`` or an equivalent metric, see :func:`ppl_diffusion.sampling.step.block_scales`.
    """

    level: int
    positions: Array
    energy: Array
    gradient: Array
    step: StepState
    carried: Any = None
    scales: Any = 1.0


class Walker(Protocol):
    """A kernel bound to a potential.

    Energies are float64: a walker that computes with JAX enters ``jax.enable_x64(True)`` in every method.
    """

    def arrive(self, positions: Array, level: int, previous: State | None, *, seed: int) -> State:
        """Evaluate the potential at positions ``(chains, *event_shape)`` and a new level, in one call for all chains.

        The step size and the momentum, if there is one, are carried over from ``previous``.
        """

    def place(self, state: State, positions: Array, *, seed: int) -> State:
        """Evaluate the potential at other positions ``(chains, *event_shape)`` of the level of ``state``, in one call.

        The step size, the scales and whatever else has been adapted at this level are those of ``state``, so that
        chains of both can be put together. A momentum is drawn anew. Only :func:`ppl_diffusion.exchange` calls it.
        """

    def move(self, state: State, steps: int, *, seed: int) -> tuple[State, Mapping[str, np.ndarray]]:
        """Take ``steps`` kernel steps, adapting the step size.

        Returns:
            The new state, and per chain (shape ``(chains,)``): ``acceptance_rate``, ``step_size``,
            ``diverging`` and ``nonfinite`` (counts), ``jump_distance`` (mean Euclidean length of a
            step), ``energy_midway``; and ``gradient_calls``, a scalar. NaN for what the kernel does not report.
        """

    def record(self, state: State, draws: int, *, seed: int) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        """Take and record ``draws`` kernel steps without adapting the step size.

        Returns:
            The new state, positions ``(chains, draws, *event_shape)``, and statistics per chain and draw, shape
            ``(chains, draws)``: ``lp``, the log-density (minus the energy), and others under ArviZ's names, such as
            ``acceptance_rate``, ``diverging`` and ``energy``; ``gradient_calls`` is a scalar.
        """

    def select(self, state: State, ancestors: np.ndarray) -> State:
        """Return the state whose chain ``i`` is chain ``ancestors[i]`` of ``state``, with its carried arrays."""

    def freeze(self, state: State) -> State:
        """Fix the step size for recorded draws."""


@runtime_checkable
class Kernel(Protocol):
    """The description of an MCMC kernel; implemented in ``bridges.blackjax`` and ``bridges.pyro``."""

    @property
    def adjusted(self) -> bool:
        """Whether it leaves the density invariant, by a Metropolis test or similar."""

    @property
    def needs_energy(self) -> bool:
        """Whether it compares energies; if not, it also moves on targets of which only the gradient is known."""

    def bind(self, potential: Target) -> Walker:
        """Return a walker that samples ``potential``."""


@dataclass(frozen=True)
class SteppedKernel(ABC):
    """Base class of kernels of any library that have a leapfrog step.

    Attributes:
        step: leapfrog step: a number, ``SigmaScaled(0.5)`` or ``Adaptive(...)``.
    """

    step: StepPolicy | float

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", as_policy(self.step))

    @property
    def adjusted(self) -> bool:
        """Whether the kernel leaves the density invariant."""
        return True

    @property
    def needs_energy(self) -> bool:
        """Whether the kernel compares energies, as a Metropolis test does."""
        return True

    @abstractmethod
    def bind(self, potential: Target) -> Walker:
        """Return a walker that samples ``potential``."""

    def scales(self, previous: State | None, diffused: np.ndarray) -> np.ndarray:
        """Return the length scales of coordinates, shape ``(size,)``, on arrival from ``previous``.

        Coordinates that are ``diffused``, bool, shape ``(size,)``, have the scale 1.
        """
        if previous is None:
            return np.ones(diffused.size)
        return block_scales(previous.scales, previous.gradient, diffused)

    def enter(
        self, previous: State | None, norms: tuple[np.ndarray, np.ndarray] | None, *, size: int, sigma: float
    ) -> StepState:
        """Return the state of the step policy on arrival from ``previous`` at a level with this ``sigma``.

        ``norms``, each of shape ``(chains,)``, are those of the gradients at the old and the new level in the
        coordinates in which the walker moves, ``size`` of them; None if ``previous`` is.
        """
        policy, guess = as_policy(self.step), max(1.0, sigma) * size**-0.25
        if previous is None or norms is None:
            return policy.enter(None, sigma=sigma, guess=guess)
        return policy.enter(previous.step, sigma=sigma, guess=guess, rescale=rescaling(*norms))
