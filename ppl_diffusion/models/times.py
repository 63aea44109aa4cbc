"""What a network that was made elsewhere takes as the time of a noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..arrays import constant
from ..schedule import NoiseSchedule


def checked_times(times: Sequence[float] | None, schedule: NoiseSchedule) -> tuple[float, ...]:
    """Return the time of each level of ``schedule``, cleanest first, by default the level itself.

    Raises:
        ValueError: there is not one finite number per level.
    """
    found = np.arange(len(schedule)) if times is None else np.asarray(times)
    if found.shape != (len(schedule),) or not np.all(np.isfinite(found)):
        raise ValueError(
            f"times has the shape {found.shape} for a schedule of {len(schedule)} levels: give one number per "
            "level, cleanest first, or the schedule that the network was trained on"
        )
    return tuple(found.tolist())


def at_level(times: tuple[float, ...], level: Any, count: int, *, like: Tensor) -> Tensor:
    """Return the time of a level for ``count`` points, shape ``(count,)``: integers as integers, others as ``like``.

    Args:
        times: the time of each level.
        level: an integer, or a tensor ``(1,)`` of one.
        count: number of points.
        like: a tensor whose device and dtype it has.
    """
    time = constant(times, like.device)[level].expand(count)
    return time.long() if all(isinstance(t, int) for t in times) else time.to(like.dtype)
