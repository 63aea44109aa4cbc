"""Claim: what `diagnose` says of a run can be relied on. Of runs that are wrong it believes at most 2 %, of runs that
are right it doubts at most 10 %.

    python -m benchmarks verdicts

200 runs of eight kinds on small closed-form targets: converged in one mode; converged in several modes, whose shares
weights have set; stuck; collapsed into one of the modes; under-annealed; through an unadjusted kernel with too large a
step; down too coarse a ladder; of a quotient that cannot be normalised. Whether a run is right is decided by moments
and shares of modes alone (`benchmarks/verdicts/truth.py`). The thresholds of the verdict were chosen on other targets
and other seeds (`--seed 1`). Beside it stands the verdict that looks at R-hat and ESS only, as is usual: R-hat at most
1.05 and an ESS of 400 or more.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import Record, say
from benchmarks.verdicts.runs import KINDS, Setting
from benchmarks.verdicts.truth import ERRORS, Truth
from bridges.arviz import diagnose
from bridges.arviz.convert import arviz
from ppl_diffusion import Trace

QUICK = {"seeds": 1, "settings": 1}

USUAL_R_HAT, USUAL_ESS = 1.05, 400
"""Limits of the usual verdict."""


def main(
    record: Record,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 5,
    settings: Annotated[int, typer.Option(min=1, max=5, help="Settings of each kind.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the targets and runs.")] = 0,
) -> None:
    """Run all kinds, judge each run twice, and write the confusion table."""
    rows = []
    for place, (kind, make) in enumerate(KINDS.items()):
        made = list(make(np.random.default_rng((seed, place))))[:settings]
        for i, setting in enumerate(made):
            for run in range(seeds):
                options = {"seed": seed, "run": run, "setting": repr(setting.options), "kernel": str(setting.kernel)}
                part = f"verdicts/{place}-{i}-{run}"
                rows.append(record.kept(part, options, partial(one_run, setting, 1000 * seed + run)))
                rows[-1] |= {"kind": kind, "setting": i}
        told = [row for row in rows if row["kind"] == kind]
        right = sum(row["right"] for row in told)
        say(f"{kind}: {len(told)} runs, {right} right, {counts(told)}")
    record.write("verdicts", {"seed": seed, "runs": rows} | {key: rates(rows, key) for key in ("verdict", "usual")})
    for key in ("verdict", "usual"):
        say(f"{key}: {rates(rows, key)}")


def one_run(setting: Setting, seed: int) -> dict[str, Any]:
    """Run a setting, and return what :func:`judge_both` does."""
    return judge_both(setting.run(seed), setting.target.truth)


def judge_both(trace: Trace, truth: Truth | None) -> dict[str, Any]:
    """Return whether a run is right, its worst error, and what both verdicts say; without a truth it is wrong."""
    error = float("inf") if truth is None else truth.worst_error(trace)
    verdict = diagnose(trace).verdict
    return {
        "right": error <= ERRORS,
        "error": min(error, 1e6),
        "verdict": verdict.answer,
        "reasons": list(verdict.reasons),
        "usual": "believe" if usually_believed(trace) else "do not believe",
    }


def usually_believed(trace: Trace) -> bool:
    """Whether R-hat and ESS of all coordinates pass the usual limits; without draws enough for them, they do not."""
    library, x = arviz(), trace.positions
    if x.shape[1] < 4 or not np.isfinite(x).all():
        return False
    columns = [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    with np.errstate(all="ignore"):
        r_hats, sizes = ([float(f(column)) for column in columns] for f in (library.rhat, library.ess))
    return max(r_hats) <= USUAL_R_HAT and min(sizes) >= USUAL_ESS


def counts(rows: list[dict[str, Any]], key: str = "verdict") -> dict[str, int]:
    """Count the answers."""
    answers = [row[key] for row in rows]
    return {answer: answers.count(answer) for answer in ("believe", "run longer", "do not believe")}


def rates(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return the share of wrong runs that are believed, that of right runs that are not, and their numbers."""
    right, wrong = ([row for row in rows if row["right"] == sound] for sound in (True, False))
    believed = [sum(row[key] == "believe" for row in group) for group in (right, wrong)]
    return {
        "right": len(right),
        "wrong": len(wrong),
        "false alarms": 1 - believed[0] / max(1, len(right)),
        "false beliefs": believed[1] / max(1, len(wrong)),
    }
