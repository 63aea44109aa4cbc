"""Training data of models: draws of planar densities, and points or images from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..arrays import digest as array_digest
from ..arrays import native
from ..models.conditions import Classes, Conditions, Positions
from ..models.energy import Reference
from ..potentials import planar

MAX_PIXEL = 10.0
"""Largest absolute value of a floating-point picture; anything larger is not scaled to about [-1, 1]."""

LEAST_BYTE = 16
"""Least brightest byte of pictures that use their range: what is darker was stored in other units, such as 0 and 1."""

LEAST_RANGE = 0.05
"""Least range of floating-point pictures, twice the noise of the cleanest of 100 cosine levels."""

BLOCK_ROWS = 4096
"""Points whose moments are summed at once, to bound memory."""


class Data(NamedTuple):
    """A source of training batches.

    Attributes:
        draw: ``draw(generator)`` returns clean points ``(batch, *event_shape)``, and the stacked tokens or None.
        event_shape: shape of one point.
        conditions: the conditions that the tokens encode.
        reference: mean and variance of the points.
        digest: differs for other data.
    """

    draw: Callable[[torch.Generator], tuple[Tensor, Tensor | None]]
    event_shape: tuple[int, ...]
    conditions: Conditions
    reference: Reference
    digest: str


def planar_data(name: str, *, batch: int, seed: int) -> Data:
    """Return exact draws of a planar density by name, see :func:`ppl_diffusion.potentials.planar.exact`, as training
    data."""
    density = planar.exact(name, backend="torch")

    def draw(generator: torch.Generator) -> tuple[Tensor, None]:
        fresh = int(torch.randint(2**31, (), generator=generator))
        return torch.from_numpy(density.sample_clean(batch, seed=fresh)).float(), None

    points = density.sample_clean(100_000, seed=seed)
    return Data(draw, density.event_shape, Classes(0), (points.mean(0).tolist(), points.var(0).tolist()), name)


def image_data(
    source: str | Path | None, *, images: str, labels: str, positions: str | None, batch: int, label_dropout: float
) -> Data:
    """Return the points of an .npz file as training data, conditioned on classes, on positions of objects, or nothing.

    Each time a picture with several positions is drawn, one of them is chosen uniformly as its condition.

    Args:
        source: the .npz file.
        images: key of uint8 images ``(n, ..., height, width)``, which are scaled to [-1, 1], or of floating-point
            points ``(n, *event_shape)``, which are used unscaled.
        labels: key of integer labels ``(n,)``, "" for none; ignored if ``positions`` is given.
        positions: key of positions ``(n, most, 2)`` in [0, 1], padded with NaN, at least one for each image; or None.
        batch: size of a batch.
        label_dropout: fraction of conditions that are replaced by "any".

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: arrays are missing, or have a shape, type or values other than these.
    """
    if source is None or not Path(source).is_file():
        told = "" if source is None else f", and {source} is none"
        raise FileNotFoundError(f"training data are an .npz file with {images!r}{told}: give --data FILE.npz")
    keys = [key for key in (images, positions or labels) if key]
    try:
        with Path(source).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            names = list(stored)
            found = [native(stored[name]) for name in keys if name in stored]
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{source} holds arrays of Python objects, which only pickles store: convert them to numbers, "
                "np.unique(labels, return_inverse=True)[1] for labels"
            ) from error
        raise ValueError(f"{source} is not an .npz file, or it is damaged: write one with numpy.savez") from error
    if len(found) < len(keys):
        missing = " and ".join(repr(key) for key in keys if key not in names)
        raise ValueError(f"{source} lacks {missing}: it has {', '.join(names)}")
    points, given = found[0], found[-1]
    _check_kind(source, images, points)
    whole, real = points.dtype == np.uint8 and points.ndim in (3, 4), np.issubdtype(points.dtype, np.floating)
    if len(given) != len(points) or not len(points):
        raise ValueError(
            f"{source} must hold uint8 images (n, ..., height, width) or floating points (n, ...), and as many "
            f"conditions, got {points.dtype} {points.shape} and {given.shape}"
        )
    if real and not np.isfinite(points).all():
        raise ValueError(f"{images!r} in {source} holds values that are not finite: leave those points out")
    if real and points.ndim > 2 and np.abs(points).max() > MAX_PIXEL:
        raise ValueError(
            f"{images!r} in {source} are pictures from {points.min():.4g} to {points.max():.4g}: scale them to "
            "[-1, 1], bytes by x / 127.5 - 1, or store bytes as uint8"
        )
    if real and points.ndim > 2 and 0 < np.ptp(points) < LEAST_RANGE:
        raise ValueError(
            f"{images!r} in {source} are pictures from {points.min():.4g} to {points.max():.4g}, less than the least "
            "noise: scale them to [-1, 1]"
        )
    if whole and 0 < points.max() < LEAST_BYTE:
        raise ValueError(
            f"{images!r} in {source} are bytes from {points.min()} to {points.max()}, which would all be black: "
            f"pictures of bytes run from 0 to 255, multiply them by {255 // int(points.max())}, or scale them to "
            "floats in [-1, 1]"
        )
    pixels = torch.from_numpy(points)

    def scaled(values: Tensor) -> Tensor:
        return values.float() if real else values.float() / 127.5 - 1

    digest = array_digest(found)
    reference = moments(points, scaled)
    if len(keys) == 1:

        def draw_unconditional(generator: torch.Generator) -> tuple[Tensor, None]:
            return scaled(pixels[torch.randint(len(pixels), (batch,), generator=generator)]), None

        return Data(draw_unconditional, tuple(points.shape[1:]), Classes(0), reference, digest)
    conditions, pick_tokens = (_by_position if positions else _by_class)(source, given)
    anything = conditions.stack([conditions.anything], torch.device("cpu"))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        kept = torch.rand(batch, generator=generator) >= label_dropout
        tokens = pick_tokens(index, generator)
        kept = kept.reshape(-1, *[1] * (tokens.ndim - 1))
        return scaled(pixels[index]), torch.where(kept, tokens, anything)

    return Data(draw, tuple(points.shape[1:]), conditions, reference, digest)


def _check_kind(source: str | Path, key: str, points: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``points`` are uint8 pictures, or floating-point vectors or pictures."""
    shape, remedy = points.shape, ""
    if points.dtype == np.longdouble and np.longdouble != np.float64:
        remedy = "store them as points.astype('float64')"
    elif points.ndim == 1:
        remedy = "points of one coordinate are points[:, None]"
    elif np.issubdtype(points.dtype, np.integer) and not (points.dtype == np.uint8 and points.ndim in (3, 4)):
        remedy = "bytes of pictures (n, ..., height, width) are uint8; store points as points.astype('float32')"
    elif not np.issubdtype(points.dtype, np.floating) and points.dtype != np.uint8:
        remedy = "store them as points.astype('float32')"
    if remedy:
        raise ValueError(f"{key!r} in {source} are {points.dtype} {shape}: {remedy}")


def moments(points: np.ndarray, scaled: Callable[[Tensor], Tensor]) -> Reference:
    """Return mean and variance of all points, summed in float64: of each coordinate of vectors, of pictures as a whole.

    Args:
        points: shape ``(n, *event_shape)``.
        scaled: maps a block of stored points to the values that a network is trained on.
    """
    vectors, blocks = points.ndim == 2, range(0, len(points), BLOCK_ROWS)

    def total(function: Callable[[Tensor], Tensor]) -> Tensor:
        sums: Any = 0.0
        for begin in blocks:
            block = function(scaled(torch.from_numpy(points[begin : begin + BLOCK_ROWS])).double())
            sums = sums + (block.sum(0) if vectors else block.sum())
        return sums

    count = len(points) if vectors else points.size
    mean = total(lambda x: x) / count
    variance = total(lambda x: (x - mean) ** 2) / max(count - 1, 1)
    return mean.tolist(), variance.tolist()


PickTokens = Callable[[Tensor, torch.Generator], Tensor]
"""Maps indices ``(batch,)`` of points to their stacked tokens, drawn where a point has several."""


def _by_class(source: str | Path, labels: np.ndarray) -> tuple[Conditions, PickTokens]:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels in {source} must be integers (n,) from 0 on, got {labels.dtype} {labels.shape}")
    known = np.unique(labels)
    if len(known) != int(known[-1]) + 1:
        raise ValueError(
            f"there are {len(known)} different labels in {source}, from {known[0]} to {known[-1]}: number them from 0 "
            "on without gaps, np.unique(labels, return_inverse=True)[1]"
        )
    tokens = torch.from_numpy(labels.astype(np.int64))
    return Classes(int(labels.max()) + 1), lambda index, generator: tokens[index]


def _present_first(present: np.ndarray) -> bool:
    """Return whether every row of ``present (n, most)`` is some True entries, at least one, followed by False ones."""
    return bool(present[:, 0].all() and np.all(present[:, 1:] <= present[:, :-1]))


def _by_position(source: str | Path, positions: np.ndarray) -> tuple[Conditions, PickTokens]:
    present = ~np.isnan(positions).any(-1)
    if positions.ndim != 3 or positions.shape[2] != 2 or not _present_first(present):
        raise ValueError(
            f"positions in {source} must be (n, most, 2), those that are there first and then NaN, at least one for "
            f"each picture, got {positions.dtype} {positions.shape}"
        )
    low, high = float(positions[present].min()), float(positions[present].max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"positions in {source} run from {low:.4g} to {high:.4g}: give shares of the picture from 0 to 1, "
            "pixels divided by the side"
        )
    places, counts = torch.from_numpy(positions.astype(np.float32)), torch.from_numpy(present.sum(1))
    ones = torch.ones(1)

    def pick_tokens(index: Tensor, generator: torch.Generator) -> Tensor:
        which = (torch.rand(len(index), generator=generator) * counts[index]).long()
        return torch.cat([places[index, which], ones.expand(len(index), 1)], dim=1)

    return Positions(low, high), pick_tokens
