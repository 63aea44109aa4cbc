"""A grid of pictures with crosses where cubes were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def draw_grid(rows: Mapping[str, Sequence[tuple[np.ndarray, Sequence[tuple[float, float]]]]]) -> Figure:
    """Draw pictures ``(3, side, side)`` with crosses at the requested positions, one row for each name."""
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(columns * 1.1 + 0.6, len(rows) * 1.15), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8)
        for axis, (x, positions) in zip(line, row, strict=False):
            if axis in axes[0]:
                axis.set_title(f"{len(positions)} asked for", fontsize=7)
            axis.imshow((np.clip(x.astype(float).transpose(1, 2, 0), -1, 1) + 1) / 2)
            for px, py in positions:
                axis.plot(x.shape[2] * px - 0.5, x.shape[1] * py - 0.5, "+", color="white", ms=5, mew=0.6)
    return figure
