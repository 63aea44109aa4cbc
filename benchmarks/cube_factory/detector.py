"""A detector of the cubes in a picture, which judges pictures that a sampler drew.

    detector = load_detector()
    found = detector.locate(pictures)  # one array (k, 2) for each picture
    [matched(centres, wanted) for centres in found]

A network predicts a heat map over pixels, with a peak at the centre of every cube, and the offset from each pixel to
the nearest centre. Its training and its accuracy: ``benchmarks.cube_factory.train_detector``.

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
"""Side of the pictures that it was trained on, in pixels."""
RADIUS = 0.06
"""Greatest distance of a cube from a wanted position, as a share of the picture: half the least one of two cubes."""
APART = 0.08
"""Of two peaks closer than this share of the picture, the lower one is discarded as a duplicate."""


class HeatMap(nn.Module):
    """A U-Net of three scales, from pictures ``(n, 3, 32, 32)`` to logits of a heat map and offsets to centres."""

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
        """Return logits ``(n, side, side)``, and pixels right and down to a centre ``(n, 2, side, side)``."""
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = F.interpolate(self.coarse(middle), scale_factor=2.0)
        middle = F.interpolate(self.up_middle(torch.cat([middle, coarse], 1)), scale_factor=2.0)
        out = self.head(self.up_fine(torch.cat([fine, middle], 1)))
        return out[:, 0] - 3.0, out[:, 1:]  # the bias starts training with few centres predicted


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.SiLU())


@dataclass(frozen=True)
class Detector:
    """Finds the cubes in pictures.

    Attributes:
        network: a :class:`HeatMap`.
        threshold: the least height of a peak that counts as a cube, in (0, 1).
        info: provenance: command, versions, and figures of the training.
    """

    network: nn.Module
    threshold: float
    info: Mapping[str, str]

    def locate(self, pictures: ArrayLike | Tensor) -> list[np.ndarray]:
        """Return the centres of the cubes in each picture, highest peak first.

        Args:
            pictures: floating point, shape ``(n, 3, side, side)``, the side 32 or a multiple of it (averaged to 32
                pixels). Values should be in [-1, 1], and are clipped to it since a sampler's noise exceeds it.

        Returns:
            For each picture an array ``(k, 2)``: x to the right and y down, in [0, 1].

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
    """Return local maxima of a heat map as centres ``(k, 2)``, without those within ``APART`` of a higher one."""
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
    """Return the most wanted positions that can be matched to a cube nearby, each cube to one position only.

    Args:
        found: centres ``(k, 2)`` in [0, 1].
        wanted: positions ``(m, 2)``; rows of NaN are ignored.
        radius: greatest distance of a cube from its position, as a share of the picture.

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
    """Return whether every wanted position has its own cube; more cubes may be there. See :func:`served`."""
    return served(found, wanted, radius=radius) == len(places(wanted, "wanted"))


def matched_exactly(found: ArrayLike, wanted: ArrayLike, *, radius: float = RADIUS) -> bool:
    """Return whether every wanted position has its own cube and there are no other cubes. See :func:`served`."""
    return matched(found, wanted, radius=radius) and len(places(found, "found")) == len(places(wanted, "wanted"))


def located(detector: Detector, pictures: np.ndarray) -> list[np.ndarray]:
    """Return the centres of cubes in drawn pictures ``(n, 3, side, side)``; none for a picture that is not finite."""
    finite = np.isfinite(pictures).all((1, 2, 3))
    found = iter(detector.locate(pictures[finite].clip(-1, 1)) if finite.any() else [])
    return [next(found) if sound else np.zeros((0, 2)) for sound in finite]


def places(values: ArrayLike, name: str) -> np.ndarray:
    """Return positions as an array ``(k, 2)`` without rows of NaN.

    Raises:
        ValueError: another shape.
    """
    rows = np.asarray(values, dtype=float)
    if rows.size == 0:
        return rows.reshape(0, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"{name} has shape {rows.shape}, not (k, 2) for k positions: give [(x, y)] for a single one")
    return rows[~np.isnan(rows).any(1)]


def read_weights(
    path: str | Path, kind: str, benchmark: str, otherwise: str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and parameters, in single precision, of a file that a benchmark wrote.

    Args:
        path: the file.
        kind: the ``format`` that its header must have.
        benchmark: name of the benchmark that makes it.
        otherwise: what is said of a file of another format.

    Raises:
        ValueError: the file is missing, or of another format.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no {path}: python -m benchmarks {benchmark} --data data/cubes32.npz makes it")
    with safe_open(path, framework="pt") as stored:
        info = stored.metadata() or {}
        tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    if info.get("format") != kind:
        raise ValueError(f"{path} {otherwise}")
    return info, tensors


def load_detector(path: str | Path = WEIGHTS) -> Detector:
    """Load the shipped detector, or one from a file that ``benchmarks.cube_factory.train_detector`` wrote.

    Raises:
        ValueError: the file is missing or does not hold a detector.
    """
    otherwise = "holds no cube detector: load_detector() takes the shipped one"
    info, tensors = read_weights(path, FORMAT, "detector", otherwise)
    network = HeatMap()
    network.load_state_dict(tensors)
    return Detector(network.eval(), float(info["threshold"]), info)
