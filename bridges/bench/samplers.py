"""How a group of chains is adapted and moved in JAX: by a kernel of ours, by a plain function, by a library's own
adaptation.

A :class:`Sampler` is what a contender becomes for a target. Its functions take the log-density of one flat position
``(size,)`` and move all chains of a group; they are compiled once per target, since the level is traced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.target import Target
from ppl_diffusion.sampling.step import StepState, as_policy

from ..blackjax.density import LogDensity
from ..blackjax.walker import BlackJAXKernel


class Drawn(NamedTuple):
    """One draw of all chains; NaN for what a kernel does not report.

    Attributes:
        position: shape ``(chains, size)``.
        log_density: shape ``(chains,)``.
        acceptance_rate: shape ``(chains,)``.
        diverging: shape ``(chains,)``.
        leapfrogs: evaluations that the kernel says it has made, shape ``(chains,)``; shown, never used.
    """

    position: Array
    log_density: Array
    acceptance_rate: Array
    diverging: Array
    leapfrogs: Array


class Sampler(ABC):
    """How a group of chains is adapted and moved.

    Attributes:
        adapts: whether steps adapt anything before :meth:`freeze`.
    """

    adapts: ClassVar[bool] = False

    def settings(self, target: Target, level: int) -> Any:
        """Return numbers that depend on the level, a pytree of arrays, for :meth:`begin`."""
        return jnp.zeros(())

    @abstractmethod
    def begin(self, log_density: LogDensity, key: Array, positions: Array, settings: Any) -> Any:
        """Return the state of chains at ``positions (chains, size)``, adapted where a library does it in one go."""

    def freeze(self, walk: Any) -> Any:
        """Return the state for draws, during which nothing adapts."""
        return walk

    @abstractmethod
    def step(self, log_density: LogDensity, key: Array, walk: Any) -> tuple[Any, Drawn]:
        """Return the state after one step of all chains, which adapts unless it is frozen, and what was drawn."""


@dataclass(frozen=True)
class StepAdapted(Sampler):
    """A kernel of ``bridges.blackjax``, its step adapted by its own policy over all chains of the group.

    Chains move in the coordinates of the target, as they do on one rung of :func:`ppl_diffusion.anneal`.
    """

    kernel: BlackJAXKernel
    adapts: ClassVar[bool] = True

    def settings(self, target: Target, level: int) -> Any:
        size = int(np.prod(target.event_shape))
        return np.array(self.kernel.enter(None, None, size=size, sigma=target.schedule.sigma(level)), dtype=float)

    def begin(self, log_density: LogDensity, key: Array, positions: Array, settings: Any) -> Any:
        keys = jax.random.split(key, len(positions))
        init = partial(self.kernel.init_chain, momentum=None, log_density=log_density)
        return jax.vmap(lambda key, x: init(key, x))(keys, positions), StepState(*settings), jnp.array(True)

    def freeze(self, walk: Any) -> Any:
        chains, step, _ = walk
        averaged = jnp.where(step.count > 0, step.log_average, step.log_step)
        return chains, step._replace(log_step=averaged), jnp.array(False)

    def step(self, log_density: LogDensity, key: Array, walk: Any) -> tuple[Any, Drawn]:
        chains, step, adapting = walk
        moved, info = self._move(log_density, key, chains, step)
        # A chain that cannot leave where the density is zero rejects every step, however short.
        alive = jnp.isfinite(chains.logdensity) | jnp.isfinite(moved.logdensity)
        rate = jnp.nanmean(jnp.where(alive | ~alive.any(), info.adaptation, jnp.nan))
        updated = as_policy(self.kernel.step).update(step, rate)
        step = jax.tree.map(partial(jnp.where, adapting), updated, step)
        drawn = Drawn(moved.position, moved.logdensity, info.acceptance_rate, info.diverging, info.n_steps)
        return (moved, step, adapting), drawn

    def _move(self, log_density: LogDensity, key: Array, chains: Any, step: StepState) -> tuple[Any, Any]:
        key_chains, key_steps = jax.random.split(key)
        keys = jax.random.split(key_chains, len(chains.position))
        uniform = jax.random.uniform(key_steps, keys.shape, dtype=jnp.float64)
        policy = as_policy(self.kernel.step)
        steps = jnp.broadcast_to(policy.jittered(jnp.exp(step.log_step), uniform), uniform.shape)
        return jax.vmap(lambda key, chain, step: self.kernel.step_chain(key, chain, log_density, step))(
            keys, chains, steps
        )


@dataclass(frozen=True)
class Unadapted(Sampler):
    """A plain function ``kernel(log_density)`` that returns an algorithm in BlackJAX's form.

    Args:
        kernel: returns an object with ``init(position[, rng_key])`` and ``step(rng_key, state)``, for a flat position.
        name: what it is called in errors.
    """

    kernel: Callable[[LogDensity], Any]
    name: str

    def begin(self, log_density: LogDensity, key: Array, positions: Array, settings: Any) -> Any:
        algorithm = self._algorithm(log_density)
        keys = jax.random.split(key, len(positions))
        states = jax.vmap(lambda key, x: algorithm.init(x, key))(keys, positions)
        for needed in ("position", "logdensity"):
            if not hasattr(states, needed):
                raise TypeError(
                    f"the state of {self.name} has no {needed}: give it one, as the states of blackjax.hmc have"
                )
        return states

    def step(self, log_density: LogDensity, key: Array, walk: Any) -> tuple[Any, Drawn]:
        algorithm = self._algorithm(log_density)
        return move_chains(algorithm.step, key, walk)

    def _algorithm(self, log_density: LogDensity) -> Any:
        try:
            algorithm = self.kernel(log_density)
        except TypeError as error:
            raise TypeError(
                f"{self.name}(log_density) failed, {error}: write def kernel(log_density): return "
                "blackjax.mala(log_density, step_size=0.1)"
            ) from error
        if not (callable(getattr(algorithm, "init", None)) and callable(getattr(algorithm, "step", None))):
            raise TypeError(
                f"{self.name}(log_density) returned {type(algorithm).__name__}, which has no init and step: return an "
                "algorithm such as blackjax.mala(log_density, step_size=0.1)"
            )
        return algorithm


@dataclass(frozen=True)
class LibraryAdapted(Sampler):
    """A kernel with the adaptation that its library ships.

    Args:
        warm_up: ``warm_up(log_density, key, positions, step)`` adapts on chains at ``positions (chains, size)``,
            ``step`` being a guess of the leapfrog step. It returns the states of chains and the parameters of the
            kernel, in both of which the first axis of every array is the chains.
        move: ``move(log_density, key, state, parameters)`` takes a step of one chain; returns its state and info.
    """

    warm_up: Callable[..., tuple[Any, Any]]
    move: Callable[..., tuple[Any, Any]]

    def settings(self, target: Target, level: int) -> Any:
        size = int(np.prod(target.event_shape))
        return jnp.asarray(min(1.0, target.schedule.sigma(level)) * size**-0.25)

    def begin(self, log_density: LogDensity, key: Array, positions: Array, settings: Any) -> Any:
        return self.warm_up(log_density, key, positions, settings)

    def step(self, log_density: LogDensity, key: Array, walk: Any) -> tuple[Any, Drawn]:
        states, parameters = walk
        states, drawn = move_chains(partial(self.move, log_density), key, states, parameters)
        return (states, parameters), drawn


def move_chains(move: Callable[..., tuple[Any, Any]], key: Array, states: Any, *parameters: Any) -> tuple[Any, Drawn]:
    """Take one step of all chains by ``move(key, state, *parameters)`` and describe it."""
    keys = jax.random.split(key, len(states.position))
    states, info = jax.vmap(move)(keys, states, *parameters)
    missing = jnp.full(keys.shape, jnp.nan)

    def told(name: str) -> Array:
        return jnp.broadcast_to(jnp.asarray(getattr(info, name, missing), dtype=jnp.float64), keys.shape)

    diverging = 1 - told("nonans") if hasattr(info, "nonans") else told("is_divergent")
    return states, Drawn(
        states.position, states.logdensity, told("acceptance_rate"), diverging, told("num_integration_steps")
    )
