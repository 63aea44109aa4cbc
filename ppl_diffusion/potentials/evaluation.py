"""Evaluation of several targets together: those that share a network are evaluated by one call of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ..arrays import Array
from .target import Target

T = TypeVar("T", bound=Target)


def evaluate(leaves: Sequence[T], x: Array, level: Any) -> dict[T, tuple[Array, Array]]:
    """Return energy and gradient of every leaf at the same points ``x``; see :func:`evaluate_each`."""
    return dict(zip(leaves, evaluate_each(leaves, [x] * len(leaves), level), strict=True))


def evaluate_each(leaves: Sequence[Target], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
    """Return energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` of leaves, each at its own points.

    Leaves that share a network are evaluated by one call of it. In torch, ``level`` may also be a tensor ``(*chains,)``
    of a level for each point.
    """
    return _by_group(leaves, points, lambda first, *group: _at(level, first, first.evaluate_group, *group))


def evaluate_energy(leaves: Sequence[T], x: Array, level: Any) -> dict[T, Array]:
    """Return the energy of every leaf at the same points ``x``; see :func:`energy_of_each`."""
    return dict(zip(leaves, energy_of_each(leaves, [x] * len(leaves), level), strict=True))


def energy_of_each(leaves: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
    """Return only the energies of :func:`evaluate_each`, differentiable by the backend's autodiff."""
    return _by_group(leaves, points, lambda first, *group: _at(level, first, first.energy_group, *group))


def _at(
    level: Any, first: Target, evaluate: Callable[..., list[Any]], members: list[Target], points: list[Any]
) -> list[Any]:
    """Return ``evaluate(members, points, level)``; if points have levels ``(*chains,)`` of their own and ``first``, one
    of the members, takes one only, by a call for each level."""
    if first.levels_of_points or not isinstance(level, torch.Tensor) or level.numel() == 1:
        return evaluate(members, points, level)
    places = [(level == one, one) for one in level.unique().tolist()]
    parts = [evaluate(members, [x[here] for x in points], one) for here, one in places]
    return [_gathered([here for here, _ in places], [part[i] for part in parts]) for i in range(len(members))]


def _gathered(places: list[torch.Tensor], parts: list[Any]) -> Any:
    """Return the tensor ``(*chains, ...)``, or the tuple of them, that has ``parts[i] (n, ...)`` where ``places[i]
    (*chains,)`` is true."""
    if isinstance(parts[0], tuple):
        return tuple(_gathered(places, list(each)) for each in zip(*parts, strict=True))
    found = parts[0].new_empty(places[0].shape + parts[0].shape[1:])
    for here, part in zip(places, parts, strict=True):
        found[here] = part
    return found


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
