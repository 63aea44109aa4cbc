"""Decode the photographs of CIFAR-10 from JPEG, for training: uint8 pictures of three channels, 32x32, and labels.

    python -m benchmarks photographs cifar10_jpeg.npz --out data/cifar32.npz
    ppl-diffusion train cifar --data data/cifar32.npz

Needs Pillow. Pictures that went through JPEG are not the original ones: what is measured on them is comparable with
itself only.
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from benchmarks.harness import say, write_arrays


def decoded(stored: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return pictures ``(n, 3, height, width)``, uint8.

    Args:
        stored: the bytes of all files, one after the other.
        offsets: where each begins, ``(n + 1,)``.
    """
    files = (stored[a:b].tobytes() for a, b in pairwise(offsets))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1) for file in files])


def main(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JPEG files in one .npz file.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The .npz file of pictures.")] = Path("data/cifar32.npz"),
) -> None:
    """Decode all photographs."""
    with np.load(source) as held:
        keys = [f"{key}_{part}" for part in ("train", "test") for key in ("jpeg", "offset", "y")]
        missing = [key for key in keys if key not in held]
        if missing:
            raise ValueError(f"{source} holds no photographs, it lacks {', '.join(missing)}: give another file")
        arrays = {f"x_{part}": decoded(held[f"jpeg_{part}"], held[f"offset_{part}"]) for part in ("train", "test")}
        arrays |= {f"y_{part}": held[f"y_{part}"].astype(np.int64) for part in ("train", "test")}
    write_arrays(out, arrays)
    say(f"{out}: {', '.join(f'{key} {value.shape}' for key, value in arrays.items())}")
