"""Tables of a diagnosis, as rows of text, for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import xarray as xr

MOST_ROWS = 24
"""Rungs that are shown; of longer ladders as many, evenly spread."""

FORMATS = {
    "level": "{:.0f}",
    "acceptance": "{:.2f}",
    "step": "{:.3g}",
    "diverging": "{:.0f}",
    "nonfinite": "{:.0f}",
    "jump": "{:.3g}",
    "ess": "{:.0f}",
    "spread": "{:.3g}",
    "ancestors": "{:.0f}",
    "drift": "{:.1f}",
    "stuck": "{:.0f}",
}
"""The columns of the table of rungs."""

Rows = list[list[str]]


def rung_table(rungs: xr.Dataset) -> Rows:
    """Return the header and a row for each rung shown; a dash is a value that is not available."""
    count = rungs.sizes["rung"]
    shown = range(count) if count <= MOST_ROWS else sorted({*np.linspace(0, count - 1, MOST_ROWS).astype(int)})
    rows = [list(FORMATS)]
    for i in shown:
        values = {name: float(rungs[name][i]) for name in FORMATS}
        rows.append(["-" if np.isnan(v) else FORMATS[name].format(v) for name, v in values.items()])
    return rows


def draw_table(draws: xr.Dataset) -> Rows:
    """Return the header and a row for each scalar of the recorded draws; nothing if there are none."""
    if not draws.sizes.get("variable", 0):
        return []
    rows = [["recorded draws", "r_hat", "ess_bulk", "ess_tail"]]
    for name in draws["variable"].to_numpy():
        row = draws.sel(variable=name)
        sizes = [f"{float(row[kind]):.0f}" for kind in ("ess_bulk", "ess_tail")]
        r_hat = float(row.r_hat)
        rows.append([str(name), f"{r_hat:.3f}" if r_hat < 1e4 else f"{r_hat:.0e}", *sizes])
    return rows


def as_text(rows: Rows) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_html(rows: Rows, caption: str) -> str:
    """Return a table for a notebook."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    named = f"<caption>{escape(caption)}</caption>"
    return f"<table>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def list_in_html(sentences: Sequence[str]) -> str:
    """Return a list of sentences for a notebook."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
