"""Walking the chains of several levels: level by level, or at once where a walker can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from .kernel import State, Walker


@runtime_checkable
class Levels(Protocol):
    """What a walker does for states of several levels, each with a seed of its own, as one by one: the same chains, but
    for rounding."""

    def move_each(
        self, states: Sequence[State], steps: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, Mapping[str, np.ndarray]]]:
        """Return what ``Walker.move`` returns of each state."""

    def record_each(
        self, states: Sequence[State], draws: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, np.ndarray, Mapping[str, np.ndarray]]]:
        """Return what ``Walker.record`` returns of each state."""

    def place_each(self, states: Sequence[State], positions: Sequence[Any], *, seeds: Sequence[int]) -> list[State]:
        """Return what ``Walker.place`` returns of each state at positions of its own."""


class OneByOne:
    """The :class:`Levels` of any walker."""

    def __init__(self, walker: Walker) -> None:
        self.walker = walker

    def move_each(
        self, states: Sequence[State], steps: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, Mapping[str, np.ndarray]]]:
        return [self.walker.move(state, steps, seed=seed) for state, seed in zip(states, seeds, strict=True)]

    def record_each(
        self, states: Sequence[State], draws: int, *, seeds: Sequence[int]
    ) -> list[tuple[State, np.ndarray, Mapping[str, np.ndarray]]]:
        return [self.walker.record(state, draws, seed=seed) for state, seed in zip(states, seeds, strict=True)]

    def place_each(self, states: Sequence[State], positions: Sequence[Any], *, seeds: Sequence[int]) -> list[State]:
        given = zip(states, positions, seeds, strict=True)
        return [self.walker.place(state, x, seed=seed) for state, x, seed in given]


def merged(state: State, other: State, taken: np.ndarray) -> State:
    """Return ``state`` with those chains of another one of its level that are ``taken``, bool, ``(chains,)``."""

    def choose(one: Any, two: Any) -> Any:
        where: Any = np.where if isinstance(one, np.ndarray) and isinstance(two, np.ndarray) else jax.numpy.where
        return where(taken.reshape(-1, *[1] * (np.ndim(one) - 1)), two, one)

    with jax.enable_x64(True):
        parts = ((s.positions, s.gradient, s.carried) for s in (state, other))
        positions, gradient, carried = jax.tree.map(choose, *parts)
    energy = np.where(taken, other.energy, state.energy)
    return state._replace(positions=positions, gradient=gradient, carried=carried, energy=energy)
