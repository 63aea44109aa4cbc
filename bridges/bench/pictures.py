"""Pictures of a sweep: bias against gradients, ESS per gradient by noise level, a heat map of kernels by targets.

The functions return a matplotlib ``Figure`` outside pyplot: save it with ``figure.savefig(path)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ppl_diffusion.files import replacing

from .scores import LOW
from .summary import resampled

MOST = 8
"""Most lines of a panel that can be told apart."""

PANELS = 6
"""Most panels of a row."""


def _colours(count: int) -> list[Any]:
    return list(mpl.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count)))


def plot_bias(
    data: xr.Dataset, *, contenders: Sequence[str], targets: Sequence[str], bias: str = "x2", start: str = "cold"
) -> Figure:
    """Plot the median bias squared against gradients, at the noisiest level and below it at the cleanest, with the band
    of one standard error over chains and seeds."""
    rows = [0, -1] if data.sizes["difficulty"] > 1 else [-1]
    figure = Figure(figsize=(2.6 * len(targets) + 1.8, 2.6 * len(rows) + 0.4), layout="constrained")
    panels: Any = figure.subplots(len(rows), len(targets), sharey=True, squeeze=False)
    for axes, (row, target) in zip(panels.flat, [(r, t) for r in rows for t in targets], strict=True):
        here = data.sel(target=target, start=start, bias=bias).isel(difficulty=row)
        for name, colour in zip(contenders, _colours(len(contenders)), strict=True):
            _draw_bias(axes, here.sel(contender=name), name, colour)
        axes.axhline(LOW, color="black", lw=0.8, ls=":")
        axes.set(title=f"{target}, level {float(here.level):.0f}", xscale="log", yscale="log", ylim=(1e-3, 10))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("gradients per chain", fontsize=10)
    figure.supylabel(
        f"bias squared of {bias.replace('x2', 'x squared').replace('_', ', ')}, {start} start", fontsize=10
    )
    lines = panels[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _draw_bias(axes: Any, cell: xr.Dataset, name: str, colour: Any) -> None:
    """Draw the curve of a contender, averaged over seeds, with its band."""
    curves, errors = cell.curve.to_numpy(), cell.curve_error.to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # before the first draw
        middle, error = np.nanmean(curves, 0), np.sqrt(np.nanmean(errors**2, 0) / len(curves))
    x = cell.grid.to_numpy()
    axes.plot(x, middle, color=colour, lw=1.4, label=name)
    axes.fill_between(x, (middle - error).clip(1e-6), middle + error, color=colour, alpha=0.2, lw=0)


def plot_levels(data: xr.Dataset, *, contenders: Sequence[str], targets: Sequence[str], start: str = "warm") -> Figure:
    """Plot the least effective sample size for 1,000 gradients by noise level, with standard errors."""
    figure = Figure(figsize=(2.6 * len(targets) + 1.8, 3.2), layout="constrained")
    panels: Any = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    value, samples = (each.sel(score="ess_bulk_per_gradient", start=start) for each in resampled(data))
    for axes, target in zip(panels, targets, strict=True):
        levels = data.level.sel(target=target).to_numpy()
        for k, (name, colour) in enumerate(zip(contenders, _colours(len(contenders)), strict=True)):
            middle = value.sel(target=target, contender=name).to_numpy()
            error = samples.sel(target=target, contender=name).std("sample").to_numpy()
            apart = (k - len(contenders) / 2) * 0.01
            axes.errorbar(np.arange(len(levels)) + apart, middle, error, color=colour, lw=1.4, marker=".", label=name)
        axes.set(title=target, xlabel="noise level", yscale="log")
        axes.set_xticks(np.arange(len(levels)), [f"{level:.0f}" for level in levels])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("effective draws for 1,000 gradients")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def plot_map(data: xr.Dataset, *, score: str = "ess_bulk_per_gradient", start: str = "warm") -> Figure:
    """Draw a heat map of contenders by targets: the geometric mean over levels, with its number; nothing where a
    contender has not all that others have."""
    found = resampled(data)[0].sel(score=score, start=start).transpose("contender", "target", "difficulty")
    value = found.to_numpy()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # cells that are missing
        middle = np.exp(np.nanmean(np.log(np.where(value > 0, value, np.nan)), axis=-1))
        middle[(np.isnan(value) & ~np.isnan(value).all(0)).any(-1)] = np.nan
        order = np.argsort(-np.nan_to_num(np.nanmean(np.log(middle), axis=1), nan=-np.inf))
    middle, names = middle[order], data.contender.values[order]
    figure = Figure(figsize=(0.75 * middle.shape[1] + 3, 0.32 * len(names) + 2), layout="constrained")
    axes = figure.subplots()
    best = np.nanmax(middle, axis=0)
    image = axes.imshow(middle / best, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (i, j), number in np.ndenumerate(middle):
        if np.isfinite(number):
            dark = number / best[j] < 0.6
            axes.text(j, i, f"{number:.3g}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(middle.shape[1]), data.target.values, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(image, label="share of the best kernel of the target")
    return figure


def save_all(data: xr.Dataset, folder: Path, *, contenders: Sequence[str], targets: Sequence[str]) -> list[Path]:
    """Save the three pictures; return their files."""
    chosen, shown = list(contenders)[:MOST], list(targets)[:PANELS]
    figures = {
        "bias": plot_bias(data, contenders=chosen, targets=shown),
        "levels": plot_levels(data, contenders=chosen, targets=shown),
        "map": plot_map(data),
    }
    files = [folder / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        with replacing(file) as partial:
            figure.savefig(partial, dpi=150, format="png")
    return files
