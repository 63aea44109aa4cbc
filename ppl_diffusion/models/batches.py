"""Points of several members of a group as one batch of their network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def of_part(values: Tensor, part: slice) -> Tensor:
    """Return the values of a part of all points, from those of each point or from one that is of all, ``(1, ...)``."""
    return values if len(values) == 1 else values[part]


@contextmanager
def called_with(images: Tensor) -> Iterator[None]:
    """Add a note to an error of a network's own: the shape of the points that it was called with."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            f"the network was called with points of shape {tuple(images.shape)}: those of one channel have event_shape "
            "(height, width), or (1, height, width), and the network must take the event_shape that was given"
        )
        raise


def stack_points(model: Any, points: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return all points ``(batch, *event_shape)`` and their count for each member.

    Args:
        model: has a ``network``, an ``event_shape``, a ``device`` and a name.
        points: the points of each member, ``(*chains, *event_shape)``.

    Raises:
        ValueError: the network is in training mode, or points are on another device.
    """
    if any(module.training for module in model.network.modules()):
        raise ValueError(
            f"the network of {model}, or a part of it, is in training mode, where dropout and batch norms make "
            "energies and scores random or dependent on other chains: call network.eval()"
        )
    flat = [x.reshape(-1, *model.event_shape) for x in points]
    for x in flat:
        if x.device.type != model.device.type:
            raise ValueError(f"{model} is on {model.device}, the points on {x.device}: pass x.to('{model.device}')")
    return torch.cat(flat), [len(x) for x in flat]
