"""Apply a function to many points, batched where it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

BATCH_ROWS = 1024
"""Largest number of points in one batch of :func:`map_rows`, to bound memory."""


def map_rows(function: Callable[[Tensor], dict[Any, Tensor]], points: Tensor) -> dict[Any, Tensor]:
    """Apply ``function`` to every row of ``points (n, size)`` and stack its values, by ``vmap`` where possible."""
    with pyro.validation_enabled(False):  # its checks branch on values, which vmap cannot
        try:
            return torch.func.vmap(function, chunk_size=BATCH_ROWS)(points)
        except RuntimeError:  # a model that branches on its values cannot be batched
            rows = [function(point) for point in points]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
