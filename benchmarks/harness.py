"""What benchmarks share: where results are written, and how figures are summarised and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppl_diffusion import Trace

RESULTS = Path(__file__).parent / "results"


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard error over repetitions, by figure of merit."""
    found = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows], dtype=float)
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        found[key] = {"mean": float(values.mean()), "se": se}
    return found


def last(trace: Trace) -> np.ndarray:
    """Return the last draw of every chain, ``(chains, *event_shape)``."""
    return trace.positions[:, -1]


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write results as JSON to ``benchmarks/results/``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Iterable[str]) -> str:
    """Return a Markdown table of means and standard errors."""
    columns = list(columns)
    lines = ["| sampler | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [cell(row[c]) if c in row else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(value: Mapping[str, float]) -> str:
    """Format a mean and its standard error, of two significant digits, for a table; empty for NaN."""
    if np.isnan(value["mean"]):
        return ""
    if not value.get("se", 0) > 0:
        return f"{value['mean']:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(value["se"]))))
    return f"{value['mean']:.{digits}f} ± {value['se']:.{digits}f}"
