"""Claim: models of small pictures compose into one large picture, a window each, that chains can walk on.

    python -m benchmarks tapestries

Two targets: a row of overlapping digits, ``tapestry([load("digits").given(i), ...])``, and a row of cubes, one in each
window. One network call evaluates all windows and conditions together. Annealed HMC is compared with reverse diffusion
that uses the same score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, last, say, thinned
from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import Ladder, Potential, anneal, load, reverse_diffusion, tapestry

DIGITS = (2, 0, 2, 3)
STRIDE = 20
PLACES = ((0.5, 0.35), (0.5, 0.65), (0.5, 0.35), (0.5, 0.65))
LADDER = Ladder(levels=(*range(97, 9, -2), *range(8, -1, -1)), steps=(4,) * 52 + (30,))
CHAINS = 4
QUICK = {"chains": 1, "every": 20}


def digits() -> Potential:
    """Return a row of digits: 28x28 windows that overlap by eight columns."""
    model = load("digits")
    windows = [(0, STRIDE * i) for i in range(len(DIGITS))]
    canvas = (28, STRIDE * (len(DIGITS) - 1) + 28)
    return tapestry([model.given(i) for i in DIGITS], canvas, windows, name="row of digits")


def cubes() -> Potential:
    """Return a long floor with a cube in each of its 32x32 windows, which overlap by eight columns."""
    model = load("cubes")
    windows = [(0, 24 * i) for i in range(len(PLACES))]
    canvas = (3, 32, 24 * (len(PLACES) - 1) + 32)
    return tapestry([model.given(x=x, y=y) for x, y in PLACES], canvas, windows, name="row of cubes")


def picture(rows: dict[str, Sequence[np.ndarray]]) -> Figure:
    """Draw canvases ``(height, width)`` or ``(3, height, width)``, one row for each target and sampler."""
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(3.4 * columns, 1.25 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, x in zip(line, row, strict=True):
            image = x if x.ndim == 2 else (np.clip(x.transpose(1, 2, 0), -1, 1) + 1) / 2
            axis.imshow(image, cmap="gray", vmin=-1 if x.ndim == 2 else None, vmax=1 if x.ndim == 2 else None)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8)
    return figure


def main(
    record: Record,
    chains: Annotated[int, typer.Option(min=1, help="Chains of each walk.")] = CHAINS,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th rung only.")] = 1,
) -> None:
    """Sample both targets by annealed HMC and by reverse diffusion; write figures and a picture."""
    rows: dict[str, Sequence[np.ndarray]] = {}
    content: dict[str, Any] = {}
    ladder = thinned(LADDER, every)
    for name, target in (("digits", digits()), ("cubes", cubes())):
        trace = anneal(target, HMC(), ladder=ladder, chains=chains, seed=0, reverse_step=name == "cubes")
        found = diagnose(trace)
        content[name] = {
            "calls": trace.gradient_calls,
            "least acceptance": float(found.rungs.acceptance.min()),
            "seconds": trace.attributes["seconds"],
            "words": list(found.warnings),
        }
        say(f"{name} {content[name]}")
        rows[f"{name}: HMC"] = list(last(trace)[:3])
        reverse = Ladder.full(target.schedule) if every == 1 else ladder
        rows[f"{name}: reverse"] = list(last(reverse_diffusion(target, ladder=reverse, chains=chains, seed=0))[:3])
    record.draw("tapestries", picture(rows))
    record.write("tapestries", content)
