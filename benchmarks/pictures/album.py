"""Pictures side by side: a line for what was asked for, a block for each sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure


def album(rows: Mapping[str, Mapping[str, Sequence[np.ndarray] | np.ndarray]], words: Mapping[str, str]) -> Figure:
    """Draw pictures ``(3, height, width)`` in [-1, 1].

    Args:
        rows: for each row, the pictures of each sampler; a sampler may be missing from a row.
        words: what each row asked for, printed at its left.
    """
    samplers = list(dict.fromkeys(sampler for row in rows.values() for sampler in row))
    each = max(len(pictures) for row in rows.values() for pictures in row.values())
    columns = each * len(samplers)
    figure = Figure(figsize=(2.2 + 0.8 * columns, 0.9 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), 1 + columns, squeeze=False, width_ratios=[2.8] + [1] * columns)
    for block, sampler in enumerate(samplers):
        axes[0, 1 + each * block].set_title(sampler, fontsize=8, loc="left")
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(0, 0.5, fill(f"{name}: {words[name]}", 40), fontsize=6, va="center", transform=line[0].transAxes)
        for block, sampler in enumerate(samplers):
            for axis, x in zip(line[1 + each * block :], row.get(sampler, ()), strict=False):
                axis.imshow((np.clip(np.nan_to_num(x), -1, 1).transpose(1, 2, 0) + 1) / 2)
    return figure
