"""Diagnose traces: a summary in tables, and warnings of reasons not to trust the samples.

ArviZ reports the full effective sample size for chains that never moved, so the diagnosis always shows acceptance
rates and stuck chains beside it. R-hat and ESS are computed from the recorded draws only, because chains are not
stationary along the ladder; with fewer than ``FEWEST_DRAWS`` draws they are not reported. Those of resampled chains,
which are relatives, are the ones of :func:`bridges.arviz.summary`.

Source: Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021),
https://arxiv.org/abs/1903.08008
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from ppl_diffusion.sampling.ancestry import families
from ppl_diffusion.sampling.trace import Trace

from .chance import chains_apart, r_hat_limit, trend
from .convert import SCALARS, arviz, check_trace, event_size, summaries, was_resampled
from .evidence import FEWEST_DRAWS
from .handover import arviz_findings
from .summary import family_statistics
from .verdict import judge
from .words import GROUP_LIMIT, Diagnosis, warning_sentences

WORST_COORDINATE = "worst coordinate"
"""The coordinate of a large event whose split R-hat is largest."""


def diagnose(trace: Trace) -> Diagnosis:
    """Diagnose a run: statistics of every rung, R-hat and ESS of the recorded draws, and warnings in words.

    Drift is the change of the mean energy from the middle of a rung to its end, in standard errors. If it exceeds a
    few standard errors, the chains had not equilibrated when they left the rung. That is expected along the ladder,
    where every rung has few steps; at the last rung it means biased draws.

    Raises:
        TypeError: ``trace`` is not a Trace.
    """
    check_trace("diagnose", trace)
    stats, steps = trace.stats, np.array(trace.attributes["steps"])
    increments = np.where(np.isfinite(stats.log_weight), stats.log_weight, np.nan)
    change, jumps = (stats.energy - stats.energy_midway).to_numpy(), stats.jump_distance
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        drift = np.nanmean(change, 1) / (np.nanstd(change, 1, ddof=1) / np.sqrt(change.shape[1]))
        columns = {
            "level": stats.level.to_numpy(),
            "acceptance": np.nanmean(stats.acceptance_rate, 1),
            "step": stats.step_size.to_numpy()[:, 0],
            "diverging": stats.diverging.sum("chain", skipna=False).to_numpy(),
            "nonfinite": stats.nonfinite.sum("chain", min_count=1).to_numpy(),
            "jump": np.nanmean(jumps, 1),
            "ess": stats.ess.to_numpy(),
            "spread": np.nanstd(increments, 1),
            "ancestors": [len(np.unique(row)) for row in families(stats.ancestor.to_numpy())],
            "drift": np.where(np.isfinite(drift), drift, np.nan),
            "stuck": np.where(steps > 0, (jumps == 0).sum("chain").where(jumps.notnull().any("chain")), np.nan),
        }
    rungs = xr.Dataset({name: ("rung", np.asarray(value, dtype=float)) for name, value in columns.items()})
    draws = _draw_diagnostics(trace)
    normaliser = (trace.log_normaliser, trace.log_normaliser_error)
    verdict = judge(trace, rungs, draws, arviz_findings(trace))
    return Diagnosis(rungs, draws, tuple(warning_sentences(trace, rungs, draws)), *normaliser, verdict)


def _draw_diagnostics(trace: Trace) -> xr.Dataset:
    """R-hat and ESS of scalars of the recorded draws; empty with too few draws or a single chain."""
    chains, count = trace.positions.shape[:2]
    if count < FEWEST_DRAWS or chains < 2:
        return xr.Dataset()
    library = arviz()
    scalars, tried = scalars_of(trace)
    rows, related = [], was_resampled(trace)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, value in scalars.items():
            array = np.ascontiguousarray(value)
            alone = {
                "r_hat_chains": float(library.rhat(array)),
                "limit_chains": r_hat_limit(array, tried[name]),
                "apart": chains_apart(array),
                "trend": min(1.0, trend(array, trace.families) * len(scalars)),
            }
            if related:
                found = family_statistics(array, trace.families) | {"r_hat_limit": GROUP_LIMIT}
            else:
                found = {
                    "r_hat": alone["r_hat_chains"],
                    "r_hat_limit": alone["limit_chains"],
                    "ess_bulk": float(library.ess(array, method="bulk")),
                    "ess_tail": float(library.ess(array, method="tail", prob=(0.05, 0.95))),
                }
            rows.append({key: value for key, value in (alone | found).items() if not key.startswith("mcse")})
    columns = {key: ("variable", [row[key] for row in rows]) for key in rows[0]}
    return xr.Dataset(columns, coords={"variable": list(scalars)})


def scalars_of(trace: Trace) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the scalars that tell whether chains mix, each ``(chains, draws)``, and of how many each is the worst."""
    chains, count = trace.positions.shape[:2]
    if trace.sites:
        variables = {k: v for k, v in trace.sites.items() if v[0, 0].size <= SCALARS}
    else:
        variables = {} if event_size(trace) > SCALARS else {"x": trace.positions}
    large = event_size(trace) > SCALARS
    if large:
        variables = summaries(trace) | variables
    scalars = {}
    for name, value in variables.items():
        flat = value.reshape(chains, count, -1)
        for i in range(flat.shape[-1]):
            scalars[name if value.ndim == 2 else f"{name}[{i}]"] = flat[..., i]
    tried = dict.fromkeys(scalars, len(scalars))
    if large and count >= 4:
        scalars[WORST_COORDINATE], tried[WORST_COORDINATE] = _worst_coordinate(trace.positions), event_size(trace)
    return scalars, tried


def _worst_coordinate(positions: np.ndarray) -> np.ndarray:
    """Return the draws ``(chains, draws)`` of the coordinate of ``positions (chains, draws, *event)`` whose split R-hat
    is largest."""
    flat = positions.reshape(*positions.shape[:2], -1)
    half = flat.shape[1] // 2
    ratios = np.empty(flat.shape[-1])
    for begin in range(0, len(ratios), 1024):
        part = flat[:, : 2 * half, begin : begin + 1024].reshape(2 * len(flat), half, -1)
        within = part.var(1, ddof=1).mean(0)
        ratios[begin : begin + 1024] = part.mean(1).var(0, ddof=1) / np.where(within > 0, within, np.inf)
    return flat[..., int(np.argmax(ratios))]
