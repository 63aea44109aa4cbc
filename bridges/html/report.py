"""A run as one HTML page: verdict, settings, tables, plots, and samples with a slider over noise levels.

The page contains all of its pictures, and its security policy forbids it to load anything. Whatever comes from a run is
escaped. The template is ``page.html``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from ppl_diffusion.files import replacing
from ppl_diffusion.sampling.trace import Trace

from ..arviz import Diagnosis, diagnose
from ..arviz.evidence import FEWEST_DRAWS
from ..arviz.tables import MOST_ROWS, draw_table, rung_table
from . import figures

TEMPLATE = Path(__file__).parent / "page.html"

MARKS = {"believe": ("✓", "good"), "run longer": ("…", "open"), "do not believe": ("✗", "bad")}
"""Sign and class of each answer of a verdict."""


def write_report(trace: Trace, path: str | Path) -> Path:
    """Write the page of a trace; the file appears only when it is complete.

    Args:
        trace: the trace of a run, best with ``snapshots``.
        path: path of the HTML file; its folder must exist.

    Raises:
        FileExistsError: ``path`` exists.
        FileNotFoundError: its folder does not.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is kept: give another --out, or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: mkdir -p {path.parent}")
    page = render(trace)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def render(trace: Trace) -> str:
    """Return the page of a trace, as a string."""
    found = diagnose(trace)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    mark, kind = MARKS[found.verdict.answer]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=str(trace.attributes.get("potential", "a run")),
        verdict=found.verdict,
        mark=mark,
        kind=kind,
        warnings=found.warnings,
        settings=settings(trace),
        results=_results(trace, found),
        versions=dict(trace.attributes.get("versions", {})),
        frames=figures.frames(trace),
        ladder=figures.ladder(trace, found),
        ranks=figures.ranks(trace, found),
        energies=figures.energies(trace),
        rungs=rung_table(found.rungs),
        thinned=found.rungs.sizes["rung"] > MOST_ROWS,
        draws=draw_table(found.draws),
        fewest=FEWEST_DRAWS,
    )


ARRIVALS = {False: "in place", True: "by reverse-diffusion steps", "wide": "by wide reverse-diffusion steps"}


def settings(trace: Trace) -> dict[str, str]:
    """Return how a run was made, by name, in words."""
    made: Mapping[str, Any] = trace.attributes
    chains, draws = trace.positions.shape[:2]
    levels, steps = made["levels"], made["steps"]
    each = (
        f"{steps[0]} kernel steps each" if len(set(steps)) == 1 else f"{min(steps)} to {max(steps)} kernel steps each"
    )
    shown = {
        "kernel": made["kernel"],
        "ladder": f"{len(levels)} rungs from level {levels[0]} to {levels[-1]}, {each}",
        "chains": f"{chains}, {draws} recorded {'draw' if draws == 1 else 'draws'} each, of shape "
        f"{'x'.join(map(str, trace.positions.shape[2:]))}",
        "resampling": _resampling(made),
        "arrival": ARRIVALS[made.get("reverse_step") or False],
        "start": "at given positions" if made.get("init") else "in noise",
        "seed": made["seed"],
    }
    if made.get("exchange"):
        shown["exchange"] = f"{made['exchange']}, {made['warm_up']} rounds of warm-up"
    if made.get("likelihood"):
        shown["likelihood"] = made["likelihood"]
    return {name: str(value) for name, value in shown.items()}


def _resampling(made: Mapping[str, Any]) -> str:
    share = made.get("resample")
    return (
        "none: weights are recorded, and not used"
        if share is None
        else f"where the weights leave less than {share:g} of the chains"
    )


def _results(trace: Trace, found: Diagnosis) -> dict[str, str]:
    calls, seconds = trace.gradient_calls, trace.attributes.get("seconds")
    shown = {"gradient calls": "unknown" if np.isnan(calls) else f"{calls:,}"}
    if seconds is not None:
        shown["time"] = f"{seconds:.1f} s"
    if np.isfinite(found.log_normaliser):
        error = found.log_normaliser_error
        known = f" ± {error:.2g}" if np.isfinite(error) else ", of unknown error"
        shown["log-normaliser"] = f"{found.log_normaliser:.6g}{known}"
    return shown
