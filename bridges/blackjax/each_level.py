"""The chains of several levels at once: one compiled call, and one call of every network, with a level for each chain.

Replica exchange moves the chains of all levels of a ladder in every round. Level by level, a hundred levels would be a
hundred small calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_diffusion.sampling.kernel import State

from .context import in_jax_context

MOST = 2**22
"""Most coordinates of the chains of one call; the levels of more are called in blocks."""


class EachLevel:
    """What a BlackJAX walker does for states of several levels; see ``ppl_diffusion.sampling.levels.Levels``."""

    def _compile_each(self: Any) -> None:
        def moved(steps: Any, chains: Any, step: Any, level: Any, seed: Any, scales: Any) -> Any:
            return self._move(chains, step, level, steps, seed, scales)

        def recorded(draws: int, chains: Any, step: Any, level: Any, seed: Any, scales: Any) -> Any:
            return self._record(chains, step, level, seed, scales, draws)

        def arrived(_: Any, positions: Any, level: Any, seed: Any, scales: Any) -> Any:
            return self._arrive(positions, None, level, seed, scales)

        self._move_each = jax.jit(_mapped(moved))
        self._record_each = jax.jit(_mapped(recorded), static_argnums=0)
        self._arrive_each = jax.jit(_mapped(arrived))

    @in_jax_context
    def move_each(
        self: Any, states: Sequence[State], steps: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, Mapping[str, np.ndarray]]]:
        if self._divided(states):
            return [self.move(state, steps, seed=seed) for state, seed in zip(states, seeds, strict=True)]

        def block(part: slice) -> list[Any]:
            begun = self._calls()
            given = [
                (state.carried, np.array(state.step, dtype=np.float64), state.level, seed, state.scales)
                for state, seed in zip(states[part], seeds[part], strict=True)
            ]
            done = _unstacked(self._move_each(steps, _stacked(given)), len(given))
            return [self._moved(state, one, begun) for state, one in zip(states[part], done, strict=True)]

        return _in_blocks(states, block)

    @in_jax_context
    def record_each(
        self: Any, states: Sequence[State], draws: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, np.ndarray, Mapping[str, np.ndarray]]]:
        if self._divided(states):
            return [self.record(state, draws, seed=seed) for state, seed in zip(states, seeds, strict=True)]

        def block(part: slice) -> list[Any]:
            begun = self._calls()
            given = [
                (state.carried, np.exp(np.float64(state.step.log_step)), state.level, seed, state.scales)
                for state, seed in zip(states[part], seeds[part], strict=True)
            ]
            done = _unstacked(self._record_each(draws, _stacked(given)), len(given))
            return [self._recorded(state, one, begun) for state, one in zip(states[part], done, strict=True)]

        return _in_blocks(states, block)

    @in_jax_context
    def place_each(
        self: Any, states: Sequence[State], positions: Sequence[Any], *, seeds: Sequence[int]
    ) -> list[State]:
        if self._divided(states):
            each = zip(states, positions, seeds, strict=True)
            return [self.place(state, x, seed=seed) for state, x, seed in each]

        def block(part: slice) -> list[State]:
            given = [
                (x, state.level, seed, state.scales)
                for x, state, seed in zip(positions[part], states[part], seeds[part], strict=True)
            ]
            done = _unstacked(self._arrive_each(0, _stacked(given)), len(given))
            return [
                self._state(state.level, chains, found, state.step, state.scales)
                for state, (chains, found) in zip(states[part], done, strict=True)
            ]

        return _in_blocks(states, block)

    def _divided(self: Any, states: Sequence[State]) -> bool:
        """Whether devices divide the chains of a level among themselves."""
        return len(self._devices(len(states[0].energy))) > 1


def _in_blocks(states: Sequence[State], act: Callable[[slice], list[Any]]) -> list[Any]:
    """Return what ``act`` returns of blocks of states."""
    size = max(1, MOST // max(1, np.size(states[0].positions)))
    return [one for begin in range(0, len(states), size) for one in act(slice(begin, begin + size))]


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda common, given: jax.vmap(lambda values: function(common, *values))(given)


def _stacked(trees: Sequence[Any]) -> Any:
    """Return one tree of the arrays of several, stacked in the host's memory: to compile that takes seconds."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays) if _are_keys(arrays[0]) else np.stack(arrays), *trees)


def _unstacked(tree: Any, count: int) -> list[Any]:
    """Return the ``count`` trees of which ``tree`` has the arrays, in the host's memory."""
    held = jax.tree.map(lambda array: array if _are_keys(array) else np.asarray(array), tree)
    return [jax.tree.map(lambda array, i=i: array[i], held) for i in range(count)]


def _are_keys(array: Any) -> bool:
    """Whether an array is one of random keys, which NumPy does not know."""
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
