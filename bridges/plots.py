"""Pictures of traces: acceptance and mixing along the ladder, and the samples themselves.

Every function returns a matplotlib ``Figure`` that belongs to nobody else: save it with ``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppl_diffusion.trace import Trace

from .arviz import diagnose

INK, ACCENT = "#1f3b57", "#c8553d"


def plot_ladder(trace: Trace) -> Figure:
    """Acceptance rate, step size, jump distance, and the effective sample size of the weights, by level."""
    rungs = diagnose(trace).rungs
    chains = trace.positions.shape[0]
    panels = {
        "acceptance rate": (rungs.acceptance, "linear"),
        "leapfrog step": (rungs.step, "log"),
        "jump distance": (rungs.jump, "log"),
        "ESS of weights / chains": (rungs.ess / chains, "linear"),
    }
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    for axes, (title, (values, scale)) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axes.plot(rungs.level, values, color=INK, lw=1.5, marker="." if len(values) < 30 else None)
        axes.set(title=title, xlabel="noise level", yscale=scale if np.any(np.asarray(values) > 0) else "linear")
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if scale == "linear":
            axes.set_ylim(0, 1.05)
    return figure


def plot_samples(samples: Trace | np.ndarray, *, title: str = "", most: int = 64) -> Figure:
    """The last draw of every chain: a scatter in the plane, a grid of images otherwise.

    Args:
        samples: a trace, or points ``(n, 2)`` or images ``(n, height, width)`` or ``(n, 3, height, width)`` in [-1, 1].
        title: above the picture.
        most: images shown at most.

    Raises:
        ValueError: points that are neither in the plane nor images.
    """
    x = samples.positions[:, -1] if isinstance(samples, Trace) else np.asarray(samples)
    if x.ndim == 2 and x.shape[1] == 2:
        return plot_planar({title: x})
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image_grid(x[:most]), cmap="gray", vmin=-1, vmax=1)
    axes.set(title=title)
    axes.axis("off")
    return figure


def plot_planar(panels: Mapping[str, np.ndarray], *, columns: int | None = None, extent: float = 1.1) -> Figure:
    """Scatters of points ``(n, 2)`` side by side, one for each title, on the square of half-width ``extent``."""
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, x) in zip(grid.flat, panels.items(), strict=False):
        axes.scatter(*x.T, s=2, color=INK, alpha=0.35, lw=0)
        axes.set(title=title, xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xticks=[], yticks=[])
    return figure


def image_grid(images: np.ndarray) -> np.ndarray:
    """Images ``(n, height, width)`` or ``(n, 3, height, width)`` as one picture, nearly square, one pixel apart.

    Raises:
        ValueError: not images.
    """
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[1] not in (1, 3)):
        raise ValueError(f"images must be (n, height, width) or (n, 3, height, width), got {images.shape}")
    x = images[:, None] if images.ndim == 3 else images
    n, channels, height, width = x.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 1.0)
    for i, image in enumerate(np.clip(x, -1, 1)):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = np.moveaxis(image, 0, -1)
    return sheet[..., 0] if channels == 1 else (sheet + 1) / 2
