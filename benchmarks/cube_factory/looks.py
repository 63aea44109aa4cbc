"""What a found cube looks like: its colour and its material, by a small network that sees the pixels around its centre.

    seen = describe(load_detector(), load_looks(), pictures)  # a list of cubes for each picture
    [says(cubes, Meaning("red", "metal", "left")) for cubes in seen]

Its training and its accuracy: ``benchmarks.cube_factory.train_looks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cube_factory.captions import MATERIAL_WORDS, Meaning
from benchmarks.cube_factory.detector import SIDE, Detector, read_weights
from benchmarks.cube_factory.scenes import COLORS

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FORMAT = "ppl-diffusion looks of cubes 1"
SEEN = 12
"""Side of the square around a centre that the network sees, in pixels of a picture of 32."""
SLACK = 0.02
"""How far beyond the border of a place a cube may be, as a share of the picture: more than a centre is ever off."""


class Cube(NamedTuple):
    """A cube that was found: its colour, its material, and its centre ``(2,)`` in [0, 1], x right and y down."""

    color: str
    material: str
    position: np.ndarray


class LooksNetwork(nn.Module):
    """A small convolutional network from squares ``(n, 3, 12, 12)`` to logits of colours ``(n, 8)`` and of metal
    ``(n,)``."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(
            *(nn.Conv2d(3, w, 3, padding=1), nn.GroupNorm(8, w), nn.SiLU()),
            *(nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(8, w), nn.SiLU()),
            *(nn.Conv2d(w, 2 * w, 2, stride=2), nn.GroupNorm(8, 2 * w), nn.SiLU()),
            *(nn.Conv2d(2 * w, 2 * w, 3, padding=1), nn.GroupNorm(8, 2 * w), nn.SiLU()),
            *(nn.Flatten(), nn.Linear(2 * w * (SEEN // 2) ** 2, 4 * w), nn.SiLU()),
        )
        self.head = nn.Linear(4 * w, len(COLORS) + 1)

    def forward(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of colours and of metal."""
        out = self.head(self.body(squares))
        return out[:, :-1], out[:, -1]


@dataclass(frozen=True)
class Looks:
    """Names colour and material of cubes.

    Attributes:
        network: a :class:`LooksNetwork`.
        info: provenance: command, versions, and figures of the training.
    """

    network: nn.Module
    info: Mapping[str, str]

    def name(self, pictures: Tensor, which: Tensor, centres: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return index of the colour and 1 for metal, ``(k,)`` each, of the cubes at ``centres (k, 2)`` of the pictures
        ``which (k,)`` of ``pictures (n, 3, 32, 32)``."""
        with torch.no_grad():
            parts = [self.network(part) for part in around(pictures, which, centres).split(1000)]
        colors, metals = (torch.cat(logits) for logits in zip(*parts, strict=True))
        return colors.argmax(1).numpy(), (metals > 0).long().numpy()


def around(pictures: Tensor, which: Tensor, centres: Tensor) -> Tensor:
    """Return the squares ``(k, 3, SEEN, SEEN)`` around ``centres (k, 2)`` of the pictures ``which (k,)``, interpolated
    between pixels, and continued beyond the edges of a picture."""
    steps = (torch.arange(SEEN) - (SEEN - 1) / 2) * 2 / SIDE
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    places = (2 * centres - 1)[:, None, None] + torch.stack([right, down], 2)
    settings = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(pictures[which], places.float(), **settings)  # type: ignore[arg-type]


def describe(detector: Detector, looks: Looks, pictures: ArrayLike) -> list[list[Cube]]:
    """Return the cubes of each picture ``(n, 3, side, side)``, the side 32 or a multiple of it; none in one that is not
    finite. Values are clipped to [-1, 1], since a sampler's noise exceeds it."""
    drawn = np.asarray(pictures, dtype=np.float32)
    finite = np.isfinite(drawn).all((1, 2, 3))
    found: list[list[Cube]] = [[] for _ in drawn]
    x = torch.from_numpy(drawn[finite].clip(-1, 1))
    centres = detector.locate(x) if len(x) else []
    which = np.repeat(np.arange(len(centres)), [len(c) for c in centres])
    if not len(which):
        return found
    small = F.interpolate(x, size=(SIDE, SIDE), mode="area")
    places = np.concatenate(centres)
    named = looks.name(small, torch.from_numpy(which), torch.from_numpy(places))
    colors, materials = list(COLORS), list(MATERIAL_WORDS)
    for row, place, color, metal in zip(np.flatnonzero(finite)[which], places, *named, strict=True):
        found[row].append(Cube(colors[color], materials[metal], place))
    return found


def says(cubes: Sequence[Cube], meaning: Meaning) -> bool:
    """Return whether a caption is true of one of the cubes of a picture."""
    return any(meaning.holds(cube.color, cube.material, cube.position, slack=SLACK) for cube in cubes)


def load_looks(path: str | Path = WEIGHTS) -> Looks:
    """Load the shipped network, or one from a file that ``benchmarks.cube_factory.train_looks`` wrote.

    Raises:
        ValueError: the file is missing or does not hold one.
    """
    otherwise = "does not name looks of cubes: load_looks() takes the shipped network"
    info, tensors = read_weights(path, FORMAT, "looks", otherwise)
    network = LooksNetwork()
    network.load_state_dict(tensors)
    return Looks(network.eval(), info)
