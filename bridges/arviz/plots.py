"""Plots of traces: acceptance and mixing along the ladder, and the samples themselves.

The ``plot_*`` functions return a matplotlib ``Figure`` outside pyplot: save it with ``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ppl_diffusion.sampling.trace import Trace

from .diagnose import diagnose
from .words import Diagnosis

INK, ACCENT = "#1f3b57", "#c8553d"

EXTENT = 1.1
"""The shipped planar densities lie in the square [-EXTENT, EXTENT]^2."""

MOST_IMAGES, MOST_COORDINATES = 64, 6
"""What is shown of samples."""

MOST_OBLONG = 16
"""Ratio of the sides of a picture above which it is shown as coordinates."""


def plot_ladder(trace: Trace, found: Diagnosis | None = None, *, columns: int = 4) -> Figure:
    """Plot acceptance rate, step size, jump distance, and the effective sample size of the weights by level, with the
    share of ancestors, dashed.

    Args:
        trace: the trace of a run.
        found: its diagnosis, if it is known already.
        columns: panels in a row.
    """
    rungs = (diagnose(trace) if found is None else found).rungs
    chains, rows = trace.positions.shape[0], -(-4 // columns)
    panels = {
        "acceptance rate": (rungs.acceptance, "linear"),
        "leapfrog step": (rungs.step, "log"),
        "jump distance": (rungs.jump, "log"),
        "ESS of weights / chains": (rungs.ess / chains, "linear"),
    }
    figure = Figure(figsize=((2.5 if columns > 2 else 3.2) * columns, 2.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, (values, scale)) in zip(grid.flat, panels.items(), strict=True):
        axes.plot(rungs.level, values, color=INK, lw=1.5, marker="." if len(values) < 30 else None)
        axes.set(title=title, xlabel="noise level", yscale=scale if np.any(np.asarray(values) > 0) else "linear")
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if scale == "linear":
            axes.set_ylim(0, 1.05)
    axes.plot(rungs.level, rungs.ancestors / chains, color=ACCENT, lw=1.2, ls="--", label="ancestors / chains")
    axes.legend(frameon=False, fontsize="small", loc="best")
    return figure


def plot_samples(samples: Trace | np.ndarray, *, site: str | None = None, title: str = "") -> Figure:
    """Plot the last draw of every chain.

    Points in the plane are scattered, images are tiled; of anything else the first coordinates are shown as histograms.

    Args:
        samples: a trace, or an array ``(n, *event_shape)``; images, in [-1, 1] or bytes, are ``(n, height, width)`` or
            ``(n, channels, height, width)`` with 1 or 3 channels.
        site: which site of a Pyro model is shown; by default the largest one.
        title: title of the figure.

    Raises:
        ValueError: there is no such site, or there are no samples.
    """
    x = _last_draws(samples, site) if isinstance(samples, Trace) else np.asarray(samples)
    if not x.size:
        raise ValueError(f"there are no samples to plot in an array of shape {x.shape}")
    if x.ndim == 2 and x.shape[1] == 2:
        return plot_planar({title: x}, extent=None)
    if not are_images(x):
        return _plot_coordinates(x.reshape(len(x), -1), title)
    sheet = image_grid(x[:MOST_IMAGES] / 127.5 - 1 if x.dtype == np.uint8 else x[:MOST_IMAGES])
    figure = Figure(figsize=(5, 0.4 + 5 * sheet.shape[0] / sheet.shape[1]), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axes.set(title=title)
    axes.axis("off")
    return figure


def _last_draws(trace: Trace, site: str | None) -> np.ndarray:
    """Return the last draw of every chain, ``(chains, *event_shape)``, of a site where the trace has sites."""
    if site is None and not trace.sites:
        return trace.positions[:, -1]
    if site is not None and site not in trace.sites:
        raise ValueError(f"the trace has no site {site!r}: it has {', '.join(trace.sites) or 'none, leave site= out'}")
    return trace.sites[site or str(largest_site(trace))][:, -1]


def largest_site(trace: Trace) -> str | None:
    """Name of the site of most coordinates; None of a trace without sites."""
    return max(trace.sites, key=lambda name: trace.sites[name].size, default=None)


def plot_planar(
    panels: Mapping[str, np.ndarray], *, columns: int | None = None, extent: float | None = EXTENT
) -> Figure:
    """Draw one scatter plot of points ``(n, 2)`` for each title.

    Args:
        panels: the points by title.
        columns: panels in a row; all of them by default.
        extent: the square [-extent, extent]^2 is shown. None: that of the shipped models if it holds nearly all of the
            points, else the range of all but the farthest hundredth.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, x) in zip(grid.flat, panels.items(), strict=False):
        axes.scatter(*x.T, s=float(np.clip(1000 / max(len(x), 1), 2, 10)), color=INK, alpha=0.35, lw=0)
        axes.set(title=title, aspect="equal")
        known = extent or (EXTENT if np.mean(np.abs(x).max(1) <= EXTENT) > 0.98 else None)
        if known is not None:
            axes.set(xlim=(-known, known), ylim=(-known, known), xticks=[], yticks=[])
        elif np.isfinite(x).all(1).any():
            _frame(axes, x[np.isfinite(x).all(1)])
    return figure


def _frame(axes: Any, x: np.ndarray) -> None:
    """Show the square around all but the farthest hundredth of points ``(n, 2)``, and say how many are left out."""
    low, high = np.quantile(x, [0.005, 0.995], axis=0)
    centre, half = (low + high) / 2, 0.55 * float(np.max(high - low)) or 1.0
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    outside = int(np.sum(np.any(np.abs(x - centre) > half, axis=1)))
    if outside:
        axes.set_xlabel(f"{outside} of {len(x)} outside")


def _plot_coordinates(x: np.ndarray, title: str) -> Figure:
    """Histograms of the first coordinates of points ``(n, size)``."""
    count = min(x.shape[1], MOST_COORDINATES)
    figure = Figure(figsize=(2.4 * count, 2.2), layout="constrained")
    figure.suptitle(title)
    for i, axes in enumerate(figure.subplots(1, count, squeeze=False).flat):
        axes.hist(x[np.isfinite(x[:, i]), i], bins=30, color=INK)
        axes.set(xlabel=f"coordinate {i}", yticks=[])
    return figure


def are_images(x: np.ndarray) -> bool:
    """Whether ``x`` holds pictures, of a shape that can be seen as one."""
    sides = sorted(x.shape[-2:])
    return (x.ndim == 3 or (x.ndim == 4 and x.shape[1] in (1, 3))) and sides[1] <= MOST_OBLONG * sides[0]


def save_pictures(samples: Trace | np.ndarray, folder: str | Path) -> list[Path]:
    """Write the last draw of every chain as a PNG file, ``0000.png`` and so on, one pixel for each of the picture.

    Args:
        samples: as in :func:`plot_samples`.
        folder: where the files are written; it is made.

    Returns:
        The files; none, and no folder, if the samples are no pictures.
    """
    x = _last_draws(samples, None) if isinstance(samples, Trace) else np.asarray(samples)
    if not len(x) or not are_images(x):
        return []
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(folder) / f"{i:04}.png" for i in range(len(x))]
    pixels = (
        x.astype(np.uint8)
        if np.issubdtype(x.dtype, np.integer)
        else np.round(127.5 * (np.clip(np.nan_to_num(x), -1, 1) + 1)).astype(np.uint8)
    )
    for file, picture in zip(files, pixels, strict=True):
        gray = picture.ndim == 2 or len(picture) == 1
        Image.fromarray(picture.reshape(picture.shape[-2:]) if gray else np.moveaxis(picture, 0, -1)).save(file)
    return files


def image_grid(images: np.ndarray) -> np.ndarray:
    """Tile images ``(n, height, width)`` or ``(n, channels, height, width)`` into a nearly square sheet, a pixel apart.

    Gray pictures keep the values of the images, clipped to [-1, 1]; colours are mapped to [0, 1].

    Raises:
        ValueError: an array of another shape.
    """
    if not are_images(images):
        raise ValueError(
            "images are (n, height, width) or (n, channels, height, width) with 1 or 3 channels, of sides that differ "
            f"by a factor of at most {MOST_OBLONG}, got {images.shape}"
        )
    x = images[:, None] if images.ndim == 3 else images
    n, channels, height, width = x.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 1.0)
    for i, image in enumerate(np.clip(x, -1, 1)):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = np.moveaxis(image, 0, -1)
    return sheet[..., 0] if channels == 1 else (sheet + 1) / 2
