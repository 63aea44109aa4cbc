"""Rendered scenes of cubes as arrays for training: pictures made smaller, and split in three.

    python -m benchmarks.prepare_cubes cubes64_a.npz cubes64_b.npz --side 32 --out data/cubes32.npz

The scene files hold lossless WebP pictures (``webp[offset[i]:offset[i + 1]]``) and the place of every cube (``pos``).
Out come ``images`` and ``positions`` for the energy model, ``detector_images`` and ``detector_positions`` for the
detector that judges it, and ``test_images`` and ``test_positions``, which neither has seen.
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

TEST, DETECTOR = 1000, 4000
"""Scenes at the end of all that are kept for testing, and before them for the detector."""


def prepare(files: list[Path], side: int) -> dict[str, np.ndarray]:
    """Arrays by name: pictures ``(n, 3, side, side)`` uint8 and positions ``(n, 5, 2)`` float32, split in three."""
    images, positions = [], []
    for file in files:
        with np.load(file) as scenes:
            packed, offset = scenes["webp"].tobytes(), scenes["offset"]
            for begin, end in pairwise(offset):
                with Image.open(io.BytesIO(packed[begin:end])) as picture:
                    images.append(np.asarray(picture.resize((side, side), Image.Resampling.BOX)).transpose(2, 0, 1))
            positions.append(scenes["pos"])
    pictures, places = np.stack(images), np.concatenate(positions)
    first, second = len(pictures) - TEST - DETECTOR, len(pictures) - TEST
    if first < 1:
        raise ValueError(f"{TEST + DETECTOR} scenes are kept for the judge, and there are only {len(pictures)} in all")
    parts = {"": slice(0, first), "detector_": slice(first, second), "test_": slice(second, None)}
    return {f"{k}images": pictures[v] for k, v in parts.items()} | {
        f"{k}positions": places[v] for k, v in parts.items()
    }


def main(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    side: Annotated[int, typer.Option(min=16, help="Side of the pictures, in pixels.")] = 32,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("data/cubes32.npz"),
) -> None:
    """Make training data of scene files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, allow_pickle=False, **prepare(files, side))
    print(f"{out}: {side}x{side}")


if __name__ == "__main__":
    typer.run(main)
