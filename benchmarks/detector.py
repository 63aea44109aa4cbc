"""Where the cubes of a picture are: the judge of pictures that a sampler composed.

    detector = load_detector()
    found = detector.locate(pictures)  # one array (k, 2) for each picture
    [matched(centres, wanted) for centres in found]

A heat map over pixels has a peak at the centre of every cube, and beside it the way from each pixel to the nearest
centre. How it was trained and how well it judges: ``benchmarks.train_detector``.

Source: Objects as Points (Zhou et al., 2019), https://arxiv.org/abs/1904.07850
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FORMAT = "ppl-diffusion cube detector 1"
SIDE = 32
"""Pixels of the pictures it learned from."""
RADIUS = 0.06
"""How far a cube may be from the position where it is wanted: half the least distance of two cubes in a scene."""
APART = 0.08
"""Of two peaks closer than this, in widths of the picture, the lower one is the same cube again."""


class HeatMap(nn.Module):
    """A U-net of three scales: pictures ``(n, 3, 32, 32)`` to logits of the heat map and ways to a centre."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.fine = nn.Sequential(_block(3, w), _block(w, w))
        self.middle = nn.Sequential(_block(w, 2 * w, stride=2), _block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.coarse = nn.Sequential(_block(2 * w, 2 * w, stride=2), _block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.up_middle = _block(4 * w, 2 * w)
        self.up_fine = nn.Sequential(_block(3 * w, w), _block(w, w))
        self.head = nn.Conv2d(w, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, side, side)``, and ``(n, 2, side, side)``: pixels right and down to the nearest centre."""
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = F.interpolate(self.coarse(middle), scale_factor=2.0)
        middle = F.interpolate(self.up_middle(torch.cat([middle, coarse], 1)), scale_factor=2.0)
        out = self.head(self.up_fine(torch.cat([fine, middle], 1)))
        return out[:, 0] - 3.0, out[:, 1:]  # training starts where few pixels are centres


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.SiLU())


@dataclass(frozen=True)
class Detector:
    """Finds cubes.

    Attributes:
        network: a :class:`HeatMap`.
        threshold: the least height of a peak that is a cube, in (0, 1).
        info: where it comes from: command, versions, figures of its training.
    """

    network: nn.Module
    threshold: float
    info: Mapping[str, str]

    def locate(self, pictures: ArrayLike | Tensor) -> list[np.ndarray]:
        """Centres of the cubes in each picture, the surest first.

        Args:
            pictures: floating point, shape ``(n, 3, side, side)``, the side 32 or a multiple of it (averaged to 32
                pixels). Meant to lie in [-1, 1], and clipped to it, as a sampler's noise oversteps it a little.

        Returns:
            For each picture an array ``(k, 2)``: x to the right and y down, as shares of the picture.

        Raises:
            ValueError: another shape, integers, values that are not finite, or values beyond [-2, 2].
        """
        x = _checked(pictures)
        with torch.no_grad():
            parts = [self.network(part) for part in x.split(250)]
        return [
            _peaks(heat, way, self.threshold)
            for logits, ways in parts
            for heat, way in zip(logits.sigmoid(), ways, strict=True)
        ]


def _checked(pictures: ArrayLike | Tensor) -> Tensor:
    x = torch.as_tensor(pictures if isinstance(pictures, Tensor) else np.array(pictures, order="C")).detach().cpu()
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3] or x.shape[2] % SIDE or not x.shape[2]:
        raise ValueError(
            f"pictures have shape {tuple(x.shape)}, and the detector learned from (n, 3, {SIDE}, {SIDE}): give that, "
            f"or a multiple of the side; a single picture as picture[None], channels last as x.transpose(0, 3, 1, 2)"
        )
    if not x.is_floating_point():
        raise ValueError(f"pictures are {x.dtype}, not floating point in [-1, 1]: give pictures / 127.5 - 1 of bytes")
    if not x.isfinite().all():
        bad = int((~x.isfinite().flatten(1).all(1)).sum())
        raise ValueError(
            f"{bad} of {len(x)} pictures hold NaN or infinity, where no cube can be looked for: count them as failed "
            "and give the others, pictures[np.isfinite(pictures).all((1, 2, 3))]"
        )
    if x.numel() and x.abs().max() > 2:
        raise ValueError(
            f"pictures reach {float(x.abs().max()):.3g}, far from [-1, 1]: give pictures / 127.5 - 1 of bytes, or "
            "pictures.clip(-1, 1) if a sampler went there"
        )
    return F.interpolate(x.float(), size=(SIDE, SIDE), mode="area").clamp(-1, 1)


def _peaks(heat: Tensor, way: Tensor, threshold: float) -> np.ndarray:
    """Local maxima of one heat map as centres ``(k, 2)``, without those too near to a higher one."""
    highest = F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    rows, columns = torch.nonzero((heat == highest) & (heat > threshold), as_tuple=True)
    order = heat[rows, columns].argsort(descending=True, stable=True)
    pixels = torch.stack([columns, rows], 1) + 0.5 + way[:, rows, columns].T
    kept: list[np.ndarray] = []
    for centre in (pixels[order] / SIDE).double().numpy():
        if all(np.linalg.norm(centre - other) >= APART for other in kept):
            kept.append(centre)
    return np.array(kept).reshape(-1, 2)


def served(found: ArrayLike, wanted: ArrayLike, *, radius: float = RADIUS) -> int:
    """How many wanted positions have a cube, at most, where a cube serves one of them only.

    Args:
        found: centres ``(k, 2)`` in [0, 1].
        wanted: positions ``(m, 2)``; rows of NaN are none.
        radius: how far a cube may be, as a share of the picture.

    Raises:
        ValueError: shapes other than these, or a radius that is not positive.
    """
    centres, asked = places(found, "found"), places(wanted, "wanted")
    if not radius > 0:
        raise ValueError(
            f"radius is {radius}, and no cube is nearer than that: give a positive share, such as {RADIUS}"
        )
    near = np.linalg.norm(asked[:, None] - centres[None], axis=2) <= radius
    return int(near[linear_sum_assignment(near, maximize=True)].sum())


def matched(found: ArrayLike, wanted: ArrayLike, *, radius: float = RADIUS) -> bool:
    """Whether every wanted position has a cube of its own; others may be there. See :func:`served`."""
    return served(found, wanted, radius=radius) == len(places(wanted, "wanted"))


def matched_exactly(found: ArrayLike, wanted: ArrayLike, *, radius: float = RADIUS) -> bool:
    """Whether every wanted position has a cube of its own and there are no others. See :func:`served`."""
    return matched(found, wanted, radius=radius) and len(places(found, "found")) == len(places(wanted, "wanted"))


def located(detector: Detector, pictures: np.ndarray) -> list[np.ndarray]:
    """Centres of cubes in pictures that were drawn, ``(n, 3, side, side)``; none in one that is not finite."""
    finite = np.isfinite(pictures).all((1, 2, 3))
    found = iter(detector.locate(pictures[finite].clip(-1, 1)) if finite.any() else [])
    return [next(found) if sound else np.zeros((0, 2)) for sound in finite]


def places(values: ArrayLike, name: str) -> np.ndarray:
    """Positions as an array ``(k, 2)`` without rows of NaN.

    Raises:
        ValueError: another shape.
    """
    rows = np.asarray(values, dtype=float)
    if rows.size == 0:
        return rows.reshape(0, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"{name} has shape {rows.shape}, not (k, 2) for k positions: give [(x, y)] for a single one")
    return rows[~np.isnan(rows).any(1)]


def load_detector(path: str | Path = WEIGHTS) -> Detector:
    """The shipped detector, or one from a file that this module wrote.

    Raises:
        ValueError: the file is missing or is something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no {path}: python -m benchmarks.train_detector --data data/cubes32.npz makes it")
    with safe_open(path, framework="pt") as stored:
        info = stored.metadata() or {}
        tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    if info.get("format") != FORMAT:
        raise ValueError(f"{path} holds no cube detector: load_detector() takes the shipped one")
    network = HeatMap()
    network.load_state_dict(tensors)
    return Detector(network.eval(), float(info["threshold"]), info)
