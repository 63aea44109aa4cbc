"""Points of training from a file: what they must look like, their scale, and their moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from ..arrays import native
from ..models.forms import Reference

MAX_PIXEL = 8.0
"""Largest absolute value of a floating-point picture; anything larger is not scaled to about [-1, 1]."""

LEAST_BYTES = 32
"""Least range of pictures of bytes: what has less was stored in other units, such as 0 and 1, or 0 to 16."""

LEAST_RANGE = 0.05
"""Least range of floating-point pictures, twice the noise of the cleanest of 100 cosine levels."""

BLOCK_COORDINATES = 1_000_000
"""Coordinates whose moments are summed at once, to bound memory."""


def read(source: str | Path | None, keys: Sequence[str]) -> list[np.ndarray]:
    """Return arrays of an .npz file, without unpickling anything.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not an .npz file or is damaged; or an array is missing, or holds Python objects.
    """
    if source is None or not Path(source).is_file():
        reason = "" if source is None else f", and {source} is none"
        raise FileNotFoundError(f"training data are an .npz file with {keys[0]!r}{reason}: give --data FILE.npz")
    try:
        with Path(source).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            names = list(stored)
            missing = " and ".join(repr(key) for key in keys if key not in names)
            arrays = [] if missing else [native(stored[key]) for key in keys]
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        if is_zipfile(source) and "allow_pickle" in str(error):
            raise ValueError(
                f"{source} holds arrays of Python objects, which only pickles store: convert them to numbers, "
                "np.unique(labels, return_inverse=True)[1] for labels"
            ) from error
        raise ValueError(f"{source} is not an .npz file, or it is damaged: write one with numpy.savez") from error
    if missing:
        raise ValueError(f"{source} lacks {missing}: it has {', '.join(names)}")
    return arrays


def check(points: np.ndarray, what: str) -> None:
    """Check that points are uint8 pictures ``(n, ..., height, width)`` or floats ``(n, ...)``, in no other units.

    Args:
        points: the points.
        what: what they are called in messages.

    Raises:
        ValueError: another type or shape, values that are not finite, or pictures that are not scaled as such.
    """
    if remedy := _remedy(points):
        raise ValueError(f"{what} are {points.dtype} {points.shape}: {remedy}")
    pictures, real = points.ndim > 2, points.dtype != np.uint8
    if real and not np.isfinite(points).all():
        raise ValueError(f"{what} hold values that are not finite: leave those points out")
    low, high = points.min(), points.max()
    if not pictures or low == high:
        return
    seen = f"{what} are pictures from {low:.4g} to {high:.4g}"
    if not real and int(high) - int(low) < LEAST_BYTES:
        remedy = f"multiply them by {255 // high}, or " if low == 0 else ""
        raise ValueError(
            f"{what} are bytes from {low} to {high}, where pictures run from 0 to 255: {remedy}store them as floats in "
            f"[-1, 1], 2.0 * (x - {low}) / {int(high) - int(low)} - 1"
        )
    if real and max(abs(low), abs(high)) > MAX_PIXEL:
        raise ValueError(f"{seen}: scale them to [-1, 1], bytes by x / 127.5 - 1, or store bytes as uint8")
    if real and high - low < LEAST_RANGE:
        raise ValueError(f"{seen}, which is less than the least noise: scale them to [-1, 1]")


def _remedy(points: np.ndarray) -> str:
    """Return how points of a wrong type or shape are to be stored, or "" for those that can be used."""
    real, whole = (np.issubdtype(points.dtype, kind) for kind in (np.floating, np.integer))
    if not len(points):
        return "give uint8 pictures (n, ..., height, width), or floats (n, ...), at least one"
    if points.ndim == 1:
        return "points of one coordinate are points[:, None]" + ("" if real else ".astype('float32')")
    if points.dtype == np.uint8 and points.ndim in (3, 4):
        return ""
    if whole and points.ndim in (3, 4) and points.min() >= 0 and points.max() <= 255:
        return "store bytes of pictures as points.astype('uint8'), anything else as points.astype('float32')"
    if real and points.dtype.itemsize > 8:
        return "store them as points.astype('float64')"
    return "" if real else "store them as points.astype('float32')"


def scaled(points: Tensor) -> Tensor:
    """Return points as a network is trained on them: floats as they are, bytes as ``x / 127.5 - 1``."""
    return points.float() if points.is_floating_point() else points.float() / 127.5 - 1


def moments(points: np.ndarray) -> Reference:
    """Return mean and variance of all points, once scaled: of each coordinate of vectors, of pictures as a whole.

    Sums are in float64, over blocks of rows, so that no copy of the whole is made.

    Args:
        points: shape ``(n, *event_shape)``.
    """
    vectors, rows = points.ndim == 2, max(1, BLOCK_COORDINATES // max(1, points[0].size))

    def mean(function: Callable[[Tensor], Tensor], *, count: int) -> Tensor:
        total: Any = 0.0
        for begin in range(0, len(points), rows):
            block = function(scaled(torch.from_numpy(points[begin : begin + rows])).double())
            total = total + (block.sum(0) if vectors else block.sum())
        return total / count

    count = len(points) if vectors else points.size
    centre = mean(lambda x: x, count=count)
    variance = mean(lambda x: (x - centre) ** 2, count=max(count - 1, 1))
    return centre.tolist(), variance.tolist()
