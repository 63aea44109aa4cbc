"""The kernel that leaves chains where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from ..arrays import Array, as_numpy
from ..potentials.target import Target
from .kernel import State, Walker
from .step import centred


@dataclass(frozen=True)
class Still:
    """The kernel that leaves chains where they are; with ``reverse_step=True`` it gives plain reverse diffusion."""

    adjusted: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False

    def bind(self, potential: Target) -> Walker:
        return _StillWalker(potential)


class _StillWalker:
    def __init__(self, potential: Target) -> None:
        self.potential = potential

    def arrive(self, positions: Array, level: int, previous: State | None, *, seed: int) -> State:
        positions = np.asarray(positions)
        with jax.enable_x64(True):
            energy, gradient = (as_numpy(v) for v in self.potential.value_and_grad(positions, level=level))
        return State(level, positions, energy.astype(np.float64), gradient, centred(np.nan))

    def place(self, state: State, positions: Array, *, seed: int) -> State:
        return self.arrive(positions, state.level, state, seed=seed)

    def move(self, state: State, steps: int, *, seed: int) -> tuple[State, Mapping[str, np.ndarray]]:
        missing = np.full(len(state.energy), np.nan)
        names = ("acceptance_rate", "step_size", "diverging", "nonfinite", "jump_distance", "energy_midway")
        return state, {**dict.fromkeys(names, missing), "gradient_calls": np.array(0)}

    def record(self, state: State, draws: int, *, seed: int) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        positions = np.repeat(state.positions[:, None], draws, axis=1)
        return state, positions, {"lp": -np.repeat(state.energy[:, None], draws, axis=1), "gradient_calls": np.array(0)}

    def select(self, state: State, ancestors: np.ndarray) -> State:
        arrays = (state.positions[ancestors], state.energy[ancestors], state.gradient[ancestors])
        return State(state.level, *arrays, state.step)

    def freeze(self, state: State) -> State:
        return state
