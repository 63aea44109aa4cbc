"""What models are trained on: planar densities, and images from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import planar
from .energy import Reference


class Data(NamedTuple):
    """A source of batches.

    Attributes:
        draw: ``draw(generator)`` gives clean points ``(batch, *event_shape)`` and labels ``(batch,)`` or None.
        event_shape: shape of one point.
        classes: number of classes, 0 for none; the label ``classes`` means "any".
        reference: mean and variance of the points.
    """

    draw: Callable[[torch.Generator], tuple[Tensor, Tensor | None]]
    event_shape: tuple[int, ...]
    classes: int
    reference: Reference


def planar_data(name: str, *, batch: int, seed: int) -> Data:
    """Exact draws of a planar density; see :func:`ppl_diffusion.planar.exact`."""
    density = planar.exact(name, backend="torch")

    def draw(generator: torch.Generator) -> tuple[Tensor, None]:
        fresh = int(torch.randint(2**31, (), generator=generator))
        return torch.from_numpy(density.sample_clean(batch, seed=fresh)).float(), None

    points = density.sample_clean(100_000, seed=seed)
    return Data(draw, density.event_shape, 0, (points.mean(0).tolist(), points.var(0).tolist()))


def image_data(source: str | Path | None, *, images: str, labels: str, batch: int, label_dropout: float) -> Data:
    """Images of an .npz file, scaled to [-1, 1].

    Args:
        source: the file.
        images, labels: keys of uint8 images ``(n, ..., height, width)`` and integer labels ``(n,)`` in it.
        batch: size of a batch.
        label_dropout: share of labels that are replaced by "any".

    Raises:
        FileNotFoundError: no such file.
        ValueError: arrays that are missing or of another kind.
    """
    if source is None or not Path(source).is_file():
        raise FileNotFoundError(f"this model is trained on images, an .npz file with {images!r}: --data FILE.npz")
    with np.load(source, allow_pickle=False) as arrays:
        if images not in arrays or labels not in arrays:
            raise ValueError(f"{source} lacks {images!r} or {labels!r}: it has {', '.join(arrays)}")
        pictures, kinds = arrays[images], arrays[labels]
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or kinds.shape != pictures.shape[:1]:
        raise ValueError(
            f"{source} must hold uint8 images (n, ..., height, width) and labels (n,), "
            f"got {pictures.dtype} {pictures.shape} and {kinds.shape}"
        )
    pixels, tokens = torch.from_numpy(pictures), torch.from_numpy(kinds.astype(np.int64))
    classes = int(kinds.max()) + 1

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(pixels), (batch,), generator=generator)
        kept = torch.rand(batch, generator=generator) >= label_dropout
        return pixels[index].float() / 127.5 - 1, torch.where(kept, tokens[index], classes)

    sample = pixels[:1000].double() / 127.5 - 1
    return Data(draw, tuple(pictures.shape[1:]), classes, (float(sample.mean()), float(sample.var())))
