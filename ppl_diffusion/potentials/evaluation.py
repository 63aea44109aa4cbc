"""Evaluation of several targets together: those that share a network are evaluated by one call of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..arrays import Array
from .target import Target

T = TypeVar("T", bound=Target)


def evaluate(leaves: Sequence[T], x: Array, level: Any) -> dict[T, tuple[Array, Array]]:
    """Return energy and gradient of every leaf at the same points ``x``; see :func:`evaluate_each`."""
    return dict(zip(leaves, evaluate_each(leaves, [x] * len(leaves), level), strict=True))


def evaluate_each(leaves: Sequence[Target], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
    """Return energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` of leaves, each at its own points.

    Leaves that share a network are evaluated by one call of it.
    """
    return _by_group(leaves, points, lambda first, *group: first.evaluate_group(*group, level))


def evaluate_energy(leaves: Sequence[T], x: Array, level: Any) -> dict[T, Array]:
    """Return the energy of every leaf at the same points ``x``; see :func:`energy_of_each`."""
    return dict(zip(leaves, energy_of_each(leaves, [x] * len(leaves), level), strict=True))


def energy_of_each(leaves: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
    """Return only the energies of :func:`evaluate_each`, differentiable by the backend's autodiff."""
    return _by_group(leaves, points, lambda first, *group: first.energy_group(*group, level))


def _by_group(leaves: Sequence[Target], points: Sequence[Array], evaluate: Callable[..., list[Any]]) -> list[Any]:
    """Call ``evaluate(first, members, points)`` for the leaves of each group; return results in the order of leaves."""
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        groups.setdefault(leaf.group, []).append(index)
    values: dict[int, Any] = {}
    for indices in groups.values():
        members = [leaves[i] for i in indices]
        found = evaluate(members[0], members, [points[i] for i in indices])
        values.update(zip(indices, found, strict=True))
    return [values[index] for index in range(len(leaves))]
