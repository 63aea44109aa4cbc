"""Evaluations counted at the potential, so that no kernel reports its own.

A kernel of BlackJAX or of Pyro reaches the density only through the counted target, whatever it says of its leapfrogs.
What counts is the number of distinct points at which a chain's density is asked, for an energy alone or with a
gradient. Chains that JAX moves in one batch wait for the longest trajectory among them, and are evaluated again and
again at points that they know: this costs a machine, not the method, and would make a figure depend on how many chains
share a batch. The number of points evaluated, repetitions included, is kept beside it.

NUTS comes off badly even so: while a chain waits, BlackJAX's loop takes a further doubling in vain, once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.target import Target

from ..torch_jax.callback import WrappedTarget


class Counted(WrappedTarget):
    """A place for torch targets of one size, at which evaluations are counted.

    Its points are flat. What is compiled for it serves every target that takes the place.

    Args:
        potential: the first target to have the place.

    Attributes:
        potential: the target that has the place.

    Raises:
        TypeError: as :meth:`seat`.
    """

    backend = "torch"

    def __init__(self, potential: Target) -> None:
        size = math.prod(potential.event_shape)
        self.event_shape, self.name = (size,), f"a target of {size} coordinates"
        self._asked: list[np.ndarray] = []
        # The projection of a point onto one direction tells it from any other.
        self._direction = torch.from_numpy(np.random.default_rng(0).standard_normal(size))
        self.seat(potential)

    def seat(self, potential: Target) -> None:
        """Give the place to a target.

        Raises:
            TypeError: it computes with JAX, where compiled code evaluates it unseen.
            ValueError: its points are of another size.
        """
        if potential.backend != "torch":
            raise TypeError(
                f"evaluations of {potential} cannot be counted, as it computes with JAX: build it with backend='torch'"
            )
        if (math.prod(potential.event_shape),) != self.event_shape:
            raise ValueError(
                f"points of {potential} have shape {potential.event_shape}, not {self.event_shape[0]} numbers"
            )
        self.potential, self.schedule = potential, potential.schedule
        self._asked.clear()

    @property
    def device(self) -> torch.device:
        return self.potential.device

    def read(self, groups: int, chains: int) -> tuple[np.ndarray, float]:
        """Return the evaluations since the last reading, per chain: distinct points of each group, shape ``(groups,)``,
        and points evaluated, repetitions included. Where chains are evaluated one by one there is one group."""
        asked, self._asked = self._asked, []
        if not asked:
            return np.zeros(groups), 0.0
        if groups == 1:
            rows = [np.concatenate([each.ravel() for each in asked])]
        else:
            rows = list(np.stack([each.reshape(groups, -1) for each in asked], 1).reshape(groups, -1))
        distinct = np.array([len(np.unique(row)) for row in rows]) / chains
        return distinct, sum(each.size for each in asked) / (groups * chains)

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        energy, gradient = self.potential._evaluate(self._shaped(x), level)
        return energy, gradient.reshape(x.shape)

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.potential._evaluate_energy(self._shaped(x), level)

    def _shaped(self, x: Array) -> Array:
        self._asked.append((x.detach().to("cpu", torch.float64) @ self._direction).numpy())
        return x.reshape(*x.shape[:-1], *self.potential.event_shape)
