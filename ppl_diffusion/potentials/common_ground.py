"""What the parts of a composition share: the backend, the schedule, and the space."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from ..arrays import Backend, as_numpy
from ..schedule import NoiseSchedule
from .target import Target


def common_ground(potentials: Sequence[Target]) -> tuple[Backend, NoiseSchedule, tuple[int, ...]]:
    """Return the backend, schedule and event shape that all potentials of a composition share.

    Raises:
        ValueError, TypeError: there are no potentials, or they differ in one of these.
    """
    if isinstance(potentials, Target):
        raise TypeError(f"potentials are composed as a list, got {potentials!r}: write [p, q]")
    if not potentials:
        raise ValueError("a composition needs at least one potential")
    for potential in potentials:
        if not isinstance(potential, Target):
            raise TypeError(f"only potentials can be composed, got {potential!r}: wrap a function in EnergyFunction")
        if not potential.composable:
            raise TypeError(f"{potential} is a target, and is walked on alone: compose the priors inside the model")
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
                f"{first} and {other} have different noise schedules ({_difference(first.schedule, other.schedule)}): "
                "composition is level by level, give both the same schedule="
            )
    return first.backend, first.schedule, first.event_shape


def _difference(one: NoiseSchedule, other: NoiseSchedule) -> str:
    """Say how two schedules differ: in their lengths, or at the first level where a value differs, and by how much."""
    if len(one) != len(other):
        return f"{one} and {other}"
    for level in range(len(one)):
        for name in ("alphas", "sigmas"):
            here, there = getattr(one, name)[level], getattr(other, name)[level]
            if here != there:
                symbol = name[:-1]
                return (
                    f"{symbol} of level {level} is {here:.9g} and {there:.9g}, which differ by {abs(here - there):.2g}"
                )
    raise AssertionError("the schedules are equal")


class ConditionWarning(UserWarning):
    """A model is used under a condition on which it was not trained."""


def set_common_ground(composite: Target, potentials: Sequence[Any]) -> None:
    """Set the backend, schedule and event shape of a composite to those that its parts share."""
    composite.backend, composite.schedule, composite.event_shape = common_ground(potentials)
    tell_doubts(potentials)


def tell_doubts(potentials: Sequence[Any]) -> None:
    """Warn of what is known to be wrong with the parts of a composite."""
    for doubt in dict.fromkeys(doubt for potential in potentials for doubt in potential.doubts()):
        warn_outside(doubt, ConditionWarning)


def warn_outside(note: str, category: type[Warning]) -> None:
    """Issue a warning that points at the line outside this library from which it was called."""
    frame, level = sys._getframe(1), 2
    ours = ("ppl_diffusion", "bridges", "contextlib")
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in ours:  # code may have no name
        frame, level = frame.f_back, level + 1
    warnings.warn(note, category, stacklevel=level)


def same_density(one: Any, other: Any) -> bool:
    """Whether two potentials are the same density at every level; decided by evaluation at random values."""
    if other is one:
        return True
    spaces = [(p.backend, p.schedule, tuple(p.event_shape)) for p in (one, other)]
    if spaces[0] != spaces[1]:
        return False
    leaves = [p.leaves() for p in (one, other)]
    if [leaf.identity for leaf in leaves[0]] == [leaf.identity for leaf in leaves[1]]:  # only the arithmetic can differ
        xp: Any = jnp if one.backend == "jax" else torch
        values = [xp.asarray(u) for u in np.random.default_rng(0).uniform(1, 2, len(leaves[0]))]
        left, right = (
            p._combine(dict(zip(own, values, strict=True)))[0] for p, own in zip((one, other), leaves, strict=True)
        )
        return bool(left == right)
    point = np.random.default_rng(0).standard_normal(one.event_shape)
    levels = (0, len(one.schedule) - 1)
    pairs = [[as_numpy(p.energy(point, level=level)) for p in (one, other)] for level in levels]
    return all(np.allclose(here, there) for here, there in pairs)
