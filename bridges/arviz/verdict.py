"""The verdict on a run: believe it, run longer, or do not believe it, and why.

Two things have to be right. *Within modes* chains have to be at rest: they move, by an adjusted kernel, and neither
scalars nor energies still change. *Between modes* the shares have to be right, and there are three ways to know it:

    chains agree with each other, each has been everywhere                     R-hat, and no single chain stays apart
    weights that were used have set the shares                                 families of chains without common
                                                                               ancestors agree, the normaliser is known
    weights that were recorded would change nothing                            their effective size is nearly full

ESS and R-hat of resampled chains are those of families. Nobody knows of a mode that no chain has found: few chains, or
positions to start from at a level where chains do not forget them, are therefore not enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from ppl_diffusion.potentials.circulation import NOTABLE_WORK
from ppl_diffusion.sampling.trace import Trace
from ppl_diffusion.sampling.walk import Concern

from .convert import was_resampled
from .evidence import (
    FEWEST_DRAWS,
    LARGE_ERROR,
    count_stuck,
    diverged,
    find_weights,
    is_coarse,
    is_still,
    refused_by_chance,
    started_at_init,
)

COUNTS = re.compile(r"\b(draws|chains)=(\d+)")
"""A number of draws or chains in a piece of advice."""

Answer = Literal["believe", "run longer", "do not believe"]

ENOUGH = 100
"""Independent draws that a run to be believed is worth at least: errors are a tenth of a standard deviation."""

FEWEST_STARTS = 8
"""Fewest independent chains or families. A mode that holds half of the mass is missed by all of 8 once in 128 runs."""

MOSTLY_NOISE = 0.9
"""Share of noise in the variance of the first level from which on positions to start from do not matter."""

FULL_WEIGHTS = 0.9
"""Effective size of unused weights, as a share of the chains, from which on they would change nothing."""

CHANCE = 1e-3
"""Probability below which a trend is none of chance."""

LARGE_DRIFT = 5.0
"""Change of the mean energy over the second half of the last rung, in standard errors, that is none of chance."""

MANY = 0.01
"""Share of recorded draws that may diverge, and of chains that may stay where they are."""

LOW_BFMI = 0.3
"""E-BFMI below which energies are explored slowly, as in ArviZ."""

MARGIN = 1.5
"""Factor by which advice on the length of a run exceeds what is needed."""


@dataclass(frozen=True)
class Verdict:
    """Whether a run is to be believed.

    Attributes:
        answer: "believe", "run longer" or "do not believe".
        reasons: why, sentences.
        advice: what to do, with numbers; empty for a run that is believed.
    """

    answer: Answer
    reasons: tuple[str, ...]
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"verdict: {self.answer} ({'; '.join(self.reasons)}){advice}"


def judge(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset, handed_over: Mapping[str, Any] | None = None) -> Verdict:
    """Return the verdict on a trace.

    Args:
        trace: the trace of a run.
        rungs, draws: the datasets of its :class:`~bridges.arviz.Diagnosis`.
        handed_over: what ArviZ's own ``diagnose`` found, see :mod:`bridges.arviz.handover`.
    """
    against = _reasons_against(trace)
    if against:
        reasons, advice = zip(*against, strict=True)
        return Verdict("do not believe", reasons, _joined(advice))
    shares = _judge_shares(trace, rungs, draws)
    unfinished = _reasons_to_go_on(trace, rungs, draws, handed_over or {})
    if not unfinished:
        return shares
    reasons, advice = zip(*unfinished, strict=True)
    if shares.answer == "believe":
        return Verdict("run longer", tuple(dict.fromkeys(reasons)), _joined(advice))
    return Verdict(shares.answer, tuple(dict.fromkeys((*shares.reasons, *reasons))), _joined((shares.advice, *advice)))


def _joined(advice: Sequence[str]) -> str:
    """Return all advice, once each; of several numbers of draws, or of chains, the largest."""
    most: dict[str, int] = {}
    for what, number in (found.groups() for each in advice for found in COUNTS.finditer(each)):
        most[what] = max(most.get(what, 0), int(number))
    raised = (COUNTS.sub(lambda found: f"{found[1]}={most[found[1]]}", each) for each in advice)
    return ", ".join(dict.fromkeys(filter(None, raised)))


def _notes(trace: Trace, about: Concern) -> list[str]:
    """The warnings of the walk that are about its result, its weights, or its length."""
    concerns = trace.attributes.get("concerns", {})
    if about != "result":
        return list(concerns.get(about, []))
    others = {note for notes in concerns.values() for note in notes}
    return [note for note in trace.attributes.get("warnings", []) if note not in others]


def _reasons_against(trace: Trace) -> list[tuple[str, str]]:
    """Reasons not to believe a run of any length, each with what to do instead."""
    found, attributes = [], trace.attributes
    if is_still(trace):
        found.append(("no MCMC step was taken", "sample with anneal and a kernel"))
    elif not attributes["adjusted"]:
        found.append(("the kernel is unadjusted, and nothing tells how large its bias is", "take HMC, MALA or NUTS"))
    improper = attributes.get("not_normalisable", [])
    if attributes["levels"][-1] in improper:
        found.append(("the density is not normalisable", "lower the exponent of the denominator"))
    if float((attributes.get("circulation") or {}).get("nats", 0.0)) > NOTABLE_WORK and attributes["adjusted"]:
        found.append(("the score is not a gradient", "take smaller steps, or train an energy from it"))
    stuck, chance = count_stuck(trace), refused_by_chance(trace)
    if stuck > max(chance + 4 * np.sqrt(chance), MANY * len(trace.positions)) and not is_still(trace):
        found.append((f"{stuck} of {len(trace.positions)} chains did not move at the end", "take smaller steps"))
    if float(np.mean(np.append(diverged(trace), 0.0))) > MANY:
        found.append(("recorded trajectories diverged", "take smaller steps"))
    if started_at_init(trace) and not float(attributes.get("start_noise", 0.0)) > MOSTLY_NOISE:
        reason = "chains started at given positions and cannot tell of modes in which none of them did"
        found.append((reason, "start in noise: leave init= out"))
    return found + [(note.partition(": ")[0], note.partition(": ")[2]) for note in _notes(trace, "result")]


def _judge_shares(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset) -> Verdict:
    """Whether the shares of modes are right, and what tells it."""
    used, weights = was_resampled(trace), find_weights(trace, rungs)
    meaningless = weights is not None and weights.meaningless
    families = _effective_families(trace)
    known = bool(draws.sizes.get("variable", 0))
    apart = bool((draws.r_hat_chains > draws.limit_chains).any() or (draws.apart > 0).any()) if known else None
    if used:
        return _judge_used_weights(trace, rungs, draws, families=families, meaningless=meaningless, apart=apart)
    if apart is False:
        return Verdict("believe", (f"chains agree, and are worth {float(draws.ess_bulk.min()):.0f} independent draws",))
    chains = len(trace.positions)
    doubted = meaningless or bool(_notes(trace, "weights"))
    if float(rungs.ess[-1]) > FULL_WEIGHTS * chains and not doubted:
        return Verdict("believe", (f"weights would change nothing, and {chains} chains are independent",))
    cure = _cure_of_shares(trace, rungs, meaningless=doubted)
    if apart:
        path = "of exchanges so far" if "exchange" in trace.attributes else "of the path down the ladder"
        reason = f"chains stay apart, and the shares of modes are those {path}"
        return Verdict("do not believe", (reason,), cure)
    more = f"record draws={5 * FEWEST_DRAWS}" if chains > 1 else f"take chains={FEWEST_STARTS}"
    return Verdict("run longer", ("too few draws or chains to compare chains",), f"{more}, or {cure}" if cure else more)


def _judge_used_weights(
    trace: Trace, rungs: xr.Dataset, draws: xr.Dataset, *, families: float, meaningless: bool, apart: bool | None
) -> Verdict:
    """Whether weights that were used have set the shares of modes."""
    chains, error = len(trace.positions), trace.log_normaliser_error
    doubts = _notes(trace, "weights")
    if meaningless:
        reason = "energies do not agree between levels, or the ladder is too coarse, and weights mean nothing"
        return Verdict("do not believe", (reason,), _finer(rungs) or "resample=None")
    if doubts:
        advice = _joined([note.partition(": ")[2] for note in doubts])
        return Verdict("run longer", tuple(note.partition(": ")[0] for note in doubts), advice)
    if not error <= LARGE_ERROR or families < FEWEST_STARTS:
        reason = f"the log-normaliser is uncertain by {error:.2g} nats, {families:.0f} families of chains are left"
        answer: Answer = "run longer" if error <= 2 and families >= 3 else "do not believe"
        return Verdict(answer, (reason,), _finer(rungs) or f"take chains={_more(chains, 16)}")
    if apart is None:
        return Verdict("believe", (f"weights have set the shares of {families:.0f} independent families",))
    if apart and not bool((draws.r_hat <= draws.r_hat_limit).all()):
        reason = "groups of chains without common ancestors disagree"
        return Verdict("run longer", (reason,), _finer(rungs) or f"take chains={_more(chains, 4)}")
    size = float(draws.ess_bulk.min())
    how = "weights have set the shares of modes" if apart else "chains agree"
    return Verdict("believe", (f"{how}, and draws are worth {size:.0f} independent ones",))


def _effective_families(trace: Trace) -> float:
    """Effective number of families of chains: all chains where none was resampled."""
    share = np.bincount(trace.families) / len(trace.families)
    return float(1 / np.sum(share**2))


def _cure_of_shares(trace: Trace, rungs: xr.Dataset, *, meaningless: bool) -> str:
    """What would set the shares of modes right."""
    if "exchange" in trace.attributes:
        return f"take draws={_more(trace.positions.shape[1], 4)}"
    if meaningless or not np.isfinite(rungs.ess[-1]):
        return _finer(rungs)
    return "resample=0.5" + (
        f" and {_finer(rungs)}" if _finer(rungs) and float(np.nanmax(rungs.spread[1:])) > 1 else ""
    )


def _finer(rungs: xr.Dataset) -> str:
    """Advice to take more rungs, such that weights spread a nat a rung; empty if the ladder has every level."""
    if not is_coarse(rungs):
        return ""
    count, levels = rungs.sizes["rung"], int(rungs.level[0] - rungs.level[-1]) + 1
    spread = float(np.nan_to_num(np.nanmax(np.append(rungs.spread[1:], 1.0)), posinf=10.0))
    wanted = min(levels, max(2 * count, int(count * spread)))
    return f"take Ladder.spaced(p.schedule, rungs={wanted}), --rungs {wanted} on the command line"


def _more(count: int, factor: float) -> int:
    """A count, times a factor, in two digits."""
    wanted = count * max(1.0, min(factor, 100.0))
    digits = 10 ** max(0, int(np.log10(wanted)) - 1)
    return int(np.ceil(wanted / digits) * digits)


def _reasons_to_go_on(
    trace: Trace, rungs: xr.Dataset, draws: xr.Dataset, handed_over: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Reasons to run longer, each with how long; about shares of modes see :func:`_judge_shares`."""
    (chains, count), steps = trace.positions.shape[:2], trace.attributes["steps"][-1]
    found = [(note.partition(": ")[0], note.partition(": ")[2]) for note in _notes(trace, "length")]
    known, families = bool(draws.sizes.get("variable", 0)), _effective_families(trace)
    if known and bool((draws.trend < CHANCE).any()):
        name = str(draws["variable"][int(np.argmin(draws.trend.to_numpy()))].item())
        found.append(
            (f"the draws of {name} still change", f"take {_more(max(steps, count), 2)} steps at the last rung")
        )
    drift = float(np.nan_to_num(rungs.drift[-1]))
    if not known and abs(drift) > LARGE_DRIFT and steps > 1:
        reason = f"the energy still drifted at the last rung ({drift:+.1f} standard errors)"
        found.append((reason, f"take {_more(steps, 4)} steps there"))
    size = float(draws.ess_bulk.min()) if known else families
    if known and not size >= ENOUGH:
        factor = MARGIN * ENOUGH / size if size > 0 else 10.0
        what = f"chains={_more(chains, factor)}" if was_resampled(trace) else f"draws={_more(count, factor)}"
        found.append((f"the draws are worth {size:.0f} independent ones, of {ENOUGH} that are needed", f"take {what}"))
    elif not size >= ENOUGH:
        reason = f"{families:.0f} independent chains with {count} draws are too few to judge"
        found.append((reason, f"take chains={_more(chains, MARGIN * ENOUGH / families)}"))
    starts = families + (float(trace.stats.round_trips.sum()) if "exchange" in trace.attributes else 0.0)
    if starts < FEWEST_STARTS and "exchange" in trace.attributes:
        reason = f"{starts:.0f} journeys from the noise may all have missed a mode"
        found.append((reason, f"take draws={_more(count, FEWEST_STARTS / starts)}"))
    elif starts < FEWEST_STARTS:
        reason = f"{families:.0f} independent chains may all have missed a mode"
        found.append((reason, f"take chains={_more(chains, FEWEST_STARTS / families)}"))
    slow = np.asarray(handed_over.get("bfmi", []), dtype=float)
    slow = slow[np.isfinite(slow)]
    if slow.size and count >= ENOUGH and float(np.nanmedian(slow)) < LOW_BFMI and not was_resampled(trace):
        reason = f"ArviZ finds an E-BFMI of {float(np.nanmedian(slow)):.2f}: energies are explored slowly"
        found.append((reason, f"take draws={_more(count, 4)}"))
    return found
