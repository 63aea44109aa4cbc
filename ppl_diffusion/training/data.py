"""Training data of models: draws of planar densities, and points or images from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import digest as array_digest
from ..models.conditions import KINDS, Classes, Conditions, Kinds, kind_of
from ..models.forms import Reference
from ..potentials import planar
from .points import check, moments, read, scaled


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
    source: str | Path | None,
    *,
    images: str,
    labels: str,
    positions: str | None,
    batch: int,
    label_dropout: float,
    conditions: Mapping[str, str] | None = None,
    kinds: Kinds = KINDS,
) -> Data:
    """Return the points of an .npz file as training data, with conditions of one kind, or none.

    Each time a picture with several positions is drawn, one of them is chosen uniformly as its condition.

    Args:
        source: the .npz file.
        images: key of uint8 images ``(n, ..., height, width)``, which are scaled to [-1, 1], or of floating-point
            points ``(n, *event_shape)``, which are used unscaled.
        labels: key of integer labels ``(n,)``, "" for none; ignored if other conditions are given.
        positions: key of positions ``(n, most, 2)`` in [0, 1], padded with NaN, at least one for each image; or None.
        batch: size of a batch.
        label_dropout: fraction of conditions that are replaced by "any".
        conditions: name of another kind of conditions, and the key of its values ``(n, ...)``.
        kinds: the kinds that ``conditions`` may name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: arrays are missing, or have a shape, type or values other than these.
    """
    asked = dict(conditions or {}) | ({"positions": positions} if positions else {})
    if len(asked) > 1:
        raise ValueError(f"a model has conditions of one kind, not of {' and '.join(asked)}: leave one out")
    ((name, key),) = asked.items() or [("classes", labels)]
    kind = kind_of(name, kinds)
    arrays = read(source, [images, key] if key else [images])
    points, values = arrays[0], arrays[-1]
    check(points, f"{images!r} in {source}")
    if len(values) != len(points):
        raise ValueError(
            f"{source} holds {len(points)} points {images!r} and {len(values)} conditions {key!r}: give one for each"
        )
    pixels, digest, reference = torch.from_numpy(points), array_digest(arrays), moments(points)
    if not key:

        def draw_unconditional(generator: torch.Generator) -> tuple[Tensor, None]:
            return scaled(pixels[torch.randint(len(pixels), (batch,), generator=generator)]), None

        return Data(draw_unconditional, tuple(points.shape[1:]), Classes(0), reference, digest)
    learned, pick_tokens = kind.learned(values, str(source))
    anything = learned.stack([learned.anything], torch.device("cpu"))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        kept = torch.rand(batch, generator=generator) >= label_dropout
        tokens = pick_tokens(index, generator)
        kept = kept.reshape(-1, *[1] * (tokens.ndim - 1))
        return scaled(pixels[index]), torch.where(kept, tokens, anything)

    return Data(draw, tuple(points.shape[1:]), learned, reference, digest)
