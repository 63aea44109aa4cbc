"""Leaves: the potentials of which compositions are made."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar

from ..arrays import Array
from ..schedule import NoiseSchedule
from .algebra import Potential


class Leaf(Potential):
    """A potential with an evaluation of its own: a closed form, a function, or a network.

    A subclass implements ``_evaluate(x, level)``, which returns energies ``(*chains,)`` and gradients, and
    ``_evaluate_energy(x, level)``, which returns energies that the backend can differentiate.

    Attributes:
        any_schedule: whether levels mean nothing to it but the alpha and sigma of its schedule.
    """

    any_schedule: ClassVar[bool] = False

    def at(self, schedule: NoiseSchedule) -> Leaf:
        if not self.any_schedule:
            raise TypeError(f"{self} is known at the levels of its own schedule only: build it with the other schedule")
        other = copy(self)
        other.schedule = schedule
        return other

    def leaves(self) -> tuple[Potential, ...]:
        return (self,)

    def _combine(self, energies: Mapping[Potential, Array]) -> tuple[Array, dict[Potential, Any]]:
        return energies[self], {self: 1.0}
