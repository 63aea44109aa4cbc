"""Targets whose energy is combined from the energies of leaves, by arithmetic after all leaves were evaluated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ..arrays import Array, cast_like, weighted
from .target import Target


class Combined(Target):
    """A target that computes its energy from those of its leaves; a leaf is its own only one."""

    @property
    def identity(self) -> Any:
        """Key that is equal for leaves that are the same density."""
        return self

    @abstractmethod
    def leaves(self) -> tuple[Combined, ...]:
        """Return the distinct leaves, from whose energies :meth:`_combine` computes its own."""

    @abstractmethod
    def _combine(self, energies: Mapping[Any, Array]) -> tuple[Array, dict[Any, Any]]:
        """Return ``U (*chains,)`` and the derivatives ``dU / dU_leaf``, floats or arrays of that shape, from the
        energies ``U_leaf (*chains,)`` of the leaves."""

    def _combine_with_gradient(self, values: Mapping[Any, tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
        """Return energy ``(*chains,)`` and gradient ``sum_leaf dU/dU_leaf grad U_leaf`` of the shape of ``x``."""
        energy, weights = self._combine({leaf: value for leaf, (value, _) in values.items()})
        gradient: Any = 0.0
        for leaf, weight in weights.items():
            gradient = gradient + weighted(weight, values[leaf][1], self.event_shape)
        return energy, cast_like(gradient, x)
