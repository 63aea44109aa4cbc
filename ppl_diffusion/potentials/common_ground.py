"""What the parts of a composition share: the backend, the schedule, and the space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import Backend
from ..schedule import NoiseSchedule
from .target import Density


def common_ground(potentials: Sequence[Density]) -> tuple[Backend, NoiseSchedule, tuple[int, ...]]:
    """Return the backend, schedule and event shape that all potentials of a composition share.

    Raises:
        ValueError, TypeError: there are no potentials, or they differ in one of these.
    """
    if isinstance(potentials, Density):
        raise TypeError(f"potentials are composed as a list, got {potentials!r}: write [p, q]")
    if not potentials:
        raise ValueError("a composition needs at least one potential")
    for potential in potentials:
        if not isinstance(potential, Density):
            raise TypeError(f"only potentials can be composed, got {potential!r}: wrap a function in EnergyFunction")
        if not np.all(potential.diffused):
            raise ValueError(
                f"{potential} has coordinates that no noise level belongs to, and is walked on alone: compose the "
                "priors inside the model"
            )
    first = potentials[0]
    for other in potentials[1:]:
        if other.backend != first.backend:
            raise TypeError(
                f"{first} computes with {first.backend} and {other} with {other.backend}: convert one, "
                "bridges.torch_jax.to_jax(p) or bridges.torch_jax.to_torch(p)"
            )
        if other.event_shape != first.event_shape:
            raise ValueError(
                f"{first} has points of shape {first.event_shape} and {other} of {other.event_shape}: "
                "only potentials over the same space can be composed"
            )
        if other.schedule != first.schedule:
            raise ValueError(
                f"{first} and {other} have different noise schedules ({first.schedule} and {other.schedule}): "
                "composition is level by level, give both the same schedule="
            )
    return first.backend, first.schedule, first.event_shape


def set_common_ground(composite: Density, potentials: Sequence[Density]) -> None:
    """Set the backend, schedule and event shape of a composite to those that its parts share."""
    composite.backend, composite.schedule, composite.event_shape = common_ground(potentials)
