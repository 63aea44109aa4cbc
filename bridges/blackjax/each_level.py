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
        def moved(steps: Any, own: Any, level: Any, seed: Any, scales: Any) -> Any:
            return self._move(*own, level, steps, seed, scales)

        def recorded(draws: int, own: Any, level: Any, seed: Any, scales: Any) -> Any:
            return self._record(*own, level, seed, scales, draws)

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
        own = [(state.carried, np.array(state.step, dtype=np.float64)) for state in states]
        return self._at_once(self._move_each, steps, states, own, seeds, self._moved)

    @in_jax_context
    def record_each(
        self: Any, states: Sequence[State], draws: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, np.ndarray, Mapping[str, np.ndarray]]]:
        if self._divided(states):
            return [self.record(state, draws, seed=seed) for state, seed in zip(states, seeds, strict=True)]
        own = [(state.carried, np.exp(np.float64(state.step.log_step))) for state in states]
        return self._at_once(self._record_each, draws, states, own, seeds, self._recorded)

    @in_jax_context
    def place_each(
        self: Any, states: Sequence[State], positions: Sequence[Any], *, seeds: Sequence[int]
    ) -> list[State]:
        if self._divided(states):
            each = zip(states, positions, seeds, strict=True)
            return [self.place(state, x, seed=seed) for state, x, seed in each]

        def placed(state: State, done: Any, _: Any) -> State:
            return self._state(state.level, *done, state.step, state.scales)

        return self._at_once(self._arrive_each, 0, states, positions, seeds, placed)

    def _at_once(
        self: Any,
        compiled: Callable[..., Any],
        common: Any,
        states: Sequence[State],
        own: Sequence[Any],
        seeds: Sequence[int],
        made: Callable[[State, Any, Any], Any],
    ) -> list[Any]:
        """Call a compiled function for blocks of levels, and return what is ``made`` of its results for each.

        Args:
            compiled: maps what is ``common`` to all levels, and the stacked values of each.
            common: steps, or draws.
            states: of each level.
            own: what else the function takes of each level, before the level itself.
            seeds: of each level.
            made: maps a state, its result, and :meth:`_calls` from before the call.
        """
        found: list[Any] = []
        size = max(1, MOST // max(1, np.size(states[0].positions)))
        for part in (slice(begin, begin + size) for begin in range(0, len(states), size)):
            begun = self._calls()
            block = list(zip(own[part], states[part], seeds[part], strict=True))
            given = _stacked([(values, state.level, seed, state.scales) for values, state, seed in block])
            done = _unstacked(compiled(common, given), len(block))
            found += [made(state, one, begun) for (_, state, _), one in zip(block, done, strict=True)]
        return found

    def _divided(self: Any, states: Sequence[State]) -> bool:
        """Whether devices divide the chains of a level among themselves."""
        return len(self._devices(len(states[0].energy))) > 1


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
