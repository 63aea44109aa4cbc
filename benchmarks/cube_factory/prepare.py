"""Prepare rendered scenes of cubes for training: downscale the pictures, and split them in three parts.

    python -m benchmarks prepare cubes64_a.npz cubes64_b.npz --side 32 --out data/cubes32.npz

The scene files hold pictures, as ``python -m benchmarks render`` writes them (``images``) or as lossless WebP
(``webp[offset[i]:offset[i + 1]]``), and position, colour and material of every cube. The output holds ``images``,
``positions`` and ``captions`` for energy models; ``detector_images``, ``detector_positions``, ``detector_colors`` and
``detector_metals`` for the detector that judges them; and ``test_images`` and so on, which neither is trained on. The
last two parts are the last 5,000 scenes, in the order of the files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from benchmarks.cube_factory.captions import captions_of
from benchmarks.harness import say, write_arrays

TEST, DETECTOR = 1000, 4000
"""Number of scenes for testing, the last ones of all, and for the detector, the ones before them."""


def prepare(files: list[Path], side: int, *, test: int = TEST, detector: int = DETECTOR) -> dict[str, np.ndarray]:
    """Return pictures ``(n, 3, side, side)`` uint8, positions ``(n, 5, 2)`` float32, colours and metals ``(n, 5)`` int8
    of the three parts, by name; and captions ``(n, 20)`` of the first, for which colours and metals are left out.

    Raises ``ValueError`` if a file holds no scenes, or if none are left to train the energy model on.
    """
    read = [_read(file, side) for file in files]
    pictures, places, colors, metals = (np.concatenate(parts) for parts in zip(*read, strict=True))
    first, second = len(pictures) - test - detector, len(pictures) - test
    if first < 1:
        raise ValueError(
            f"{test + detector} scenes are kept for the judge, and there are only {len(pictures)} in all: "
            "make more, python -m benchmarks render --scenes 10000 --seed 1 --out more.npz, and give "
            "every file"
        )
    parts = {"": slice(0, first), "detector_": slice(first, second), "test_": slice(second, None)}
    arrays = {"images": pictures, "positions": places, "colors": colors, "metals": metals}
    found = {f"{part}{name}": values[rows] for part, rows in parts.items() for name, values in arrays.items()}
    found["captions"] = captions_of(found.pop("colors"), found.pop("metals"), found["positions"])
    return found


TOLD = ("pos", "color", "metal")
"""What a scene file tells of every cube."""


def _read(file: Path, side: int) -> tuple[np.ndarray, ...]:
    """Return pictures ``(n, 3, side, side)``, positions ``(n, 5, 2)``, colours and metals ``(n, 5)`` of one file."""
    with np.load(file) as stored:
        scenes = {key: stored[key] for key in ("images", "webp", "offset", *TOLD) if key in stored}
    if not set(TOLD) <= set(scenes) or not ("images" in scenes or {"webp", "offset"} <= set(scenes)):
        raise ValueError(f"{file} holds no scenes: it needs {', '.join(TOLD)}, and either images or webp and offset")
    boxes = (picture.resize((side, side), Image.Resampling.BOX) for picture in _pictures(scenes))
    smaller = [np.asarray(box).transpose(2, 0, 1) for box in boxes]
    if len(smaller) != len(scenes["pos"]):
        raise ValueError(f"{file} has {len(smaller)} pictures and positions for {len(scenes['pos'])}: make it again")
    return np.stack(smaller), *(scenes[key] for key in TOLD)


def _pictures(scenes: Mapping[str, np.ndarray]) -> Iterator[Image.Image]:
    """Yield the pictures of a file one by one."""
    if "images" in scenes:
        yield from map(Image.fromarray, scenes["images"])
        return
    packed = scenes["webp"].tobytes()
    for begin, end in pairwise(scenes["offset"]):
        with Image.open(io.BytesIO(packed[begin:end])) as picture:
            yield picture.convert("RGB")


def main(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    side: Annotated[int, typer.Option(min=16, help="Side of the pictures, in pixels.")] = 32,
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write.")] = Path("data/cubes32.npz"),
) -> None:
    """Make training data from scene files."""
    write_arrays(out, prepare(files, side))
    say(f"{out}: {side}x{side}")
