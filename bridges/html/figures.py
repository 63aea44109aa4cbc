"""The pictures of a report, as data in the page, each with a text that says what it shows."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_diffusion.sampling.trace import Trace

from ..arviz import Diagnosis
from ..arviz.grouped import plot_energies, plot_ranks
from ..arviz.plots import are_images, largest_site, plot_ladder, plot_planar, plot_samples

MOST_SHOWN = 256
"""Chains of which the last draws are shown."""


class Picture(NamedTuple):
    """A picture: its ``source``, a data URI; ``text``, what it shows; its ``caption``; ``name``, for a fragment."""

    source: str
    text: str
    caption: str = ""
    name: str = ""


def data_uri(figure: Figure, kind: str = "svg") -> str:
    """Return a figure as a data URI, ``svg`` or ``png``; the same figure gives the same URI."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ppl-diffusion"}):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def frames(trace: Trace) -> list[Picture]:
    """Return the samples at each level of the snapshots, and the last draws."""
    site = largest_site(trace)
    drawn = (trace.sites[site] if site else trace.positions)[:MOST_SHOWN, -1]
    seen = trace.snapshots.get(site or "x", np.empty((0, *drawn.shape)))
    levels = trace.snapshot_levels if len(seen) else []
    extent = _extent([*seen, drawn])
    what = f"site {site} " if site else ""
    found = [
        _frame(x, f"level-{level}", f"noise level {level}", f"{what}at noise level {level}", extent)
        for level, x in zip(levels, seen, strict=True)
    ]
    last = trace.attributes["levels"][-1]
    return [*found, _frame(drawn, "draws", f"recorded draws, level {last}", f"{what}in the recorded draws", extent)]


def _extent(points: list[np.ndarray]) -> float | None:
    """Half of the side of a square about the origin, the same for all frames, whose last one fills most of it; None of
    events that are no points of the plane."""
    if points[-1].shape[1:] != (2,):
        return None
    last, every = (
        float(np.quantile(x[np.isfinite(x)], 0.995, method="lower")) if np.isfinite(x).any() else 1.0
        for x in (np.abs(points[-1]).max(1), np.abs(np.concatenate(points)).max(1))
    )
    return 1.1 * min(max(every, last), 1.5 * last) or 1.0


def _frame(x: np.ndarray, name: str, caption: str, where: str, extent: float | None) -> Picture:
    kind = "points" if x.shape[1:] == (2,) else "pictures" if are_images(x) else "values"
    finite = x[np.isfinite(x)]
    moments = f"mean {finite.mean():.2g}, standard deviation {finite.std():.2g}" if finite.size else "none is finite"
    if kind == "points" and np.isfinite(x).all():
        means, spreads = (", ".join(f"{v:.2g}" for v in values) for values in (x.mean(0), x.std(0)))
        moments = f"means {means}, standard deviations {spreads}"
    if kind == "points":
        figure = plot_planar({"": x}, extent=extent)
        figure.set_size_inches(4.5, 4.5)
        moments += f", {np.mean(np.abs(x).max(1) > (extent or np.inf)):.0%} outside of the picture"
    else:
        figure = plot_samples(x.reshape(len(x), *(x.shape[1:] or (1,))))
    return Picture(data_uri(figure, "png"), f"{len(x)} {kind} {where}: {moments}", caption, name)


def ladder(trace: Trace, found: Diagnosis) -> Picture:
    """Acceptance, step, jump, ESS of the weights and ancestors by level."""
    rungs = found.rungs
    first, last = (int(rungs.level[i]) for i in (0, -1))

    def known(name: str, words: str) -> str:
        values = rungs[name].to_numpy()
        values = values[np.isfinite(values)]
        return f"{words} {values.min():.2g} to {values.max():.2g}, at the end {values[-1]:.2g}" if values.size else ""

    parts = [
        known("acceptance", "acceptance rate"),
        known("step", "leapfrog step"),
        known("ess", "effective sample size of the weights in chains"),
        known("ancestors", "ancestors left"),
    ]
    text = f"From level {first} to {last}: " + "; ".join(filter(None, parts))
    return Picture(data_uri(plot_ladder(trace, found, columns=2)), text)


def ranks(trace: Trace, found: Diagnosis) -> Picture | None:
    """ArviZ's rank plots of the scalars that mix worst; None of a single chain or too few draws."""
    made = plot_ranks(trace, found)
    if made is None:
        return None
    figure, names, groups = made
    text = f"Rank plots of {', '.join(names)} for {groups}: flat bars, or lines within the band, where they agree"
    return Picture(data_uri(figure), text, f"Compared are {groups}.")


def energies(trace: Trace) -> Picture | None:
    """ArviZ's plot of marginal energies and their transitions; None where the Hamiltonian was not recorded."""
    figure: Any = plot_energies(trace)
    if figure is None:
        return None
    text = "Distributions of the energy and of its changes from draw to draw: alike where energies are explored well"
    return Picture(data_uri(figure), text)
