"""Traces as ArviZ objects, and a diagnosis in words.

``to_inference_data`` gives an ``InferenceData`` with ArviZ 0.23 and a ``DataTree`` with ArviZ 1.x, with the groups
``posterior``, ``sample_stats`` and ``annealing``, the statistics of every rung. ``diagnose`` reads all of
them and says whether to believe the samples.

ArviZ reports the full effective sample size for chains that never moved, so acceptance and stuck chains
always stand beside it. R-hat and ESS are computed for recorded draws only: along the ladder chains are
in transit. They need draws: below ``FEWEST_DRAWS`` they are not reported.

Source: Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021),
https://arxiv.org/abs/1903.08008
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import f as f_distribution

from ppl_diffusion.trace import Trace

SCALARS = 16
"""Events with more coordinates than this are summarised by scalars for R-hat and ESS."""

PROJECTIONS = 4
"""Fixed random projections among the scalars."""

UNEVEN = 1.5
"""Spread of the log-weights of one rung, in nats, of which a tenth of the chains survives."""

FEWEST_DRAWS = 20
"""Recorded draws below which R-hat and ESS are not reported: they alarm on short stationary chains."""


def arviz() -> Any:
    """The ArviZ that is installed; version 0.23 announces its successor at import, which is not for users to see."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz as library
    return library


def to_inference_data(trace: Trace, *, prior: Mapping[str, Any] | None = None) -> Any:
    """The trace as an ArviZ object.

    Args:
        trace: what a run left behind.
        prior: for a Pyro model, draws of its prior by site, each ``(draws, ...)``: those of ``pyro.infer.Predictive``.

    Returns:
        ``arviz.InferenceData`` (ArviZ 0.23) or ``xarray.DataTree`` (1.x) with the groups ``posterior`` (``x``, or the
        sites of a model, and for large events the scalars of :func:`summaries`), ``sample_stats``,
        ``annealing`` (dimensions ``rung``, ``chain``; coordinate ``level``), and for a Pyro model ``log_likelihood``
        and ``observed_data``; its plates name dimensions. With ``prior``, also ``prior`` and, for observed
        sites, ``prior_predictive``.
    """
    library = arviz()
    variables = dict(trace.sites) or {"x": trace.positions}
    if _size(trace) > SCALARS:
        variables = summaries(trace) | variables
    dims = {name: [f"{name}_dim_{i}" for i in range(value.ndim - 2)] for name, value in variables.items()}
    dims |= trace.attributes.get("dims", {})
    extra = {name: dict(values) for name, values in trace.groups.items()} | _prior_groups(trace, prior or {})
    stats = {name: value.to_numpy() for name, value in trace.sample_stats.items()}
    stats["diverging"] = np.nan_to_num(stats.get("diverging", np.zeros_like(stats["lp"]))).astype(bool)
    attributes = {k: str(v) for k, v in trace.attributes.items() if k != "versions"}
    attributes |= {"inference_library": "ppl-diffusion"}
    attributes["inference_library_version"] = str(dict(trace.attributes.get("versions", {})).get("ppl-diffusion", ""))
    rungs = trace.stats.assign_coords(chain=np.arange(trace.stats.sizes["chain"]))
    with warnings.catch_warnings():
        # A population of chains is what the walk is for, and the group of rungs is ours.
        warnings.filterwarnings("ignore", message="More chains|Found chain dimension to be longer")
        warnings.filterwarnings("ignore", message=".*not defined in the InferenceData scheme.*")
        if int(library.__version__.split(".")[0]) >= 1:
            tree = library.from_dict({"posterior": variables, "sample_stats": stats, **extra}, dims=dims)
            tree["annealing"] = xr.DataTree(rungs)
            for group in ("posterior", "sample_stats"):
                tree[group].attrs.update(attributes)
            tree.attrs.update(attributes)
            return tree
        data = library.from_dict(posterior=variables, sample_stats=stats, **extra, dims=dims, attrs=attributes)
        data.add_groups({"annealing": rungs})
    return data


def _prior_groups(trace: Trace, prior: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, draws in prior.items():
        if name in trace.sites:
            group = "prior"
        elif name in trace.groups.get("observed_data", {}):
            group = "prior_predictive"
        else:
            raise ValueError(f"the prior has a site {name!r} that the trace lacks: use those of {[*trace.sites]}")
        found.setdefault(group, {})[name] = np.asarray(draws)[None]
    return found


def summaries(trace: Trace) -> dict[str, np.ndarray]:
    """Scalars of large events, each ``(chains, draws)``: energy, mean, and fixed random projections."""
    flat = trace.positions.reshape(*trace.positions.shape[:2], -1)
    directions = np.random.default_rng(0).standard_normal((flat.shape[-1], PROJECTIONS)) / np.sqrt(flat.shape[-1])
    projected = flat @ directions
    found = {"energy": -trace.sample_stats["lp"].to_numpy(), "mean": flat.mean(-1)}
    return found | {f"projection_{i}": projected[..., i] for i in range(PROJECTIONS)}


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` it.

    Attributes:
        rungs: one row per rung (dimension ``rung``): ``level``, ``acceptance``, ``step``, ``diverging``, ``nonfinite``
            (counts over all chains), ``jump`` (mean length of a step), ``ess`` (of the weights, in chains),
            ``spread`` (standard deviation of the log-weight increments, nats), ``ancestors`` (distinct chains
            of the start that are left), ``drift`` (change of the mean energy over the second half of the rung, in
            standard errors), ``stuck`` (chains that never moved).
        draws: per scalar (dimension ``variable``): ``r_hat``, ``ess_bulk``, ``ess_tail``; empty for few draws.
        warnings: sentences; empty when nothing was found.
    """

    rungs: xr.Dataset
    draws: xr.Dataset
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        columns = {
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
        count = self.rungs.sizes["rung"]
        shown = range(count) if count <= 24 else sorted({*np.linspace(0, count - 1, 24).astype(int)})
        rows = [list(columns)]
        for i in shown:
            values = {name: float(self.rungs[name][i]) for name in columns}
            rows.append(["-" if np.isnan(v) else columns[name].format(v) for name, v in values.items()])
        text = _table(rows)
        if len(shown) < count:
            text += f"\n({len(shown)} of {count} rungs; all are in .rungs)"
        if self.draws.sizes.get("variable", 0):
            rows = [["recorded draws", "r_hat", "ess_bulk", "ess_tail"]]
            for name in self.draws["variable"].to_numpy():
                row = self.draws.sel(variable=name)
                sizes = [f"{float(row[kind]):.0f}" for kind in ("ess_bulk", "ess_tail")]
                rows.append([str(name), f"{float(row.r_hat):.3f}", *sizes])
            text += "\n\n" + _table(rows)
        quiet = "nothing suspicious was found"
        if not self.draws.sizes.get("variable", 0):
            quiet += f" on the way (R-hat and ESS need two chains, {FEWEST_DRAWS} draws)"
        return text + "".join(f"\n* {sentence}" for sentence in self.warnings or (quiet,))


def diagnose(trace: Trace) -> Diagnosis:
    """Whether to believe a run: a table per rung, R-hat and ESS of the recorded draws, and words.

    Drift is the change of the mean energy from the middle of a rung to its end: beyond a few standard
    errors, chains were still in transit when they left. Along the ladder that is a finite number of
    steps at work; at the last rung it is bias.
    """
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
            "nonfinite": stats.nonfinite.sum("chain", skipna=False).to_numpy(),
            "jump": np.nanmean(jumps, 1),
            "ess": stats.ess.to_numpy(),
            "spread": np.nanstd(increments, 1),
            "ancestors": _distinct_ancestors(stats.ancestor.to_numpy()),
            "drift": np.where(np.isfinite(drift), drift, np.nan),
            "stuck": np.where(steps > 0, (jumps == 0).sum("chain").where(jumps.notnull().any("chain")), np.nan),
        }
    rungs = xr.Dataset({name: ("rung", np.asarray(value, dtype=float)) for name, value in columns.items()})
    draws = _draws(trace)
    return Diagnosis(rungs, draws, tuple(_words(trace, rungs, draws)))


def _words(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset) -> list[str]:
    chains, count = trace.positions.shape[:2]
    steps = np.array(trace.attributes["steps"])
    found = [str(sentence) for sentence in trace.attributes.get("warnings", [])]
    if not trace.attributes["adjusted"]:
        found.append("the kernel is unadjusted: its draws, and any weights, are biased by the step size")
    acceptance = rungs.acceptance.to_numpy()
    low = np.flatnonzero((steps > 0) & (acceptance < 0.2))
    if len(low):
        where = int(rungs.level[low[0]])
        found.append(f"acceptance is under .2 on {len(low)} rungs (first at level {where}): take smaller steps")
    nonfinite = float(np.nansum(rungs.nonfinite))
    if nonfinite:
        found.append(f"{nonfinite:.0f} energies or gradients were not finite and were refused: look at the potential")
    diverging = float(np.nansum(rungs.diverging))
    if diverging:
        found.append(f"{diverging:.0f} trajectories diverged: take smaller steps, or look at the potential")
    stuck = _stuck(trace)
    if stuck and steps[-1] + count > 3:
        found.append(f"{stuck:.0f} of {chains} chains did not move at the last rung: ESS and R-hat do not show that")
    drift = float(np.nan_to_num(rungs.drift[-1]))
    if abs(drift) > 5 and steps[-1] > 1:
        found.append(f"the energy still drifted at the last rung ({drift:+.1f} standard errors): take more steps")
    found += _weight_words(trace, rungs)
    if draws.sizes.get("variable", 0):
        worst = float(draws.r_hat.max())
        if worst > _highest_r_hat(chains, count, draws.sizes["variable"]):
            shares = "the path down the ladder" if trace.attributes.get("resample") is None else "the weights"
            found.append(
                f"R-hat of the recorded draws is up to {worst:.2f}: each chain stays in its mode, or takes too few "
                f"steps, and the shares of the modes are those that {shares} gave them"
            )
        least = float(draws.ess_bulk.min())
        if least < 100:
            found.append(f"the recorded draws are worth {least:.0f} independent ones: record more draws or chains")
    return found


def _weight_words(trace: Trace, rungs: xr.Dataset) -> list[str]:
    chains = trace.positions.shape[0]
    spreads = rungs.spread.to_numpy()[1:]
    if chains < 2 or not len(spreads) or not np.any(np.isfinite(spreads)):
        return []
    typical, worst = float(np.nanmedian(spreads)), float(np.nanmax(spreads))
    biased = "" if trace.attributes["adjusted"] else ", approximately"
    resample = trace.attributes.get("resample")
    if worst > 3:
        unused = resample is None
        advice = "weights are meaningless" if unused else "the weights that were used are meaningless: resample=None"
        return [
            f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}): the energies do not agree between "
            f"levels, or the ladder is too coarse; {advice}"
        ]
    if resample is None:
        left = float(rungs.ess[-1]) / chains
        if left > 0.9:
            return []
        if worst > UNEVEN:
            return [
                f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}): resampling would leave few "
                "ancestors, take a ladder with more rungs before resample=0.5"
            ]
        return [
            f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}) and keep {left:.0%} of the chains: "
            f"resample=0.5 would correct the shares of the modes{biased}, at no cost"
        ]
    ancestors = float(rungs.ancestors[-1])
    if ancestors < max(2.0, 0.1 * chains):
        return [f"only {ancestors:.0f} of {chains} ancestors are left: the population has collapsed, draws are copies"]
    return []


def _draws(trace: Trace) -> xr.Dataset:
    chains, count = trace.positions.shape[:2]
    if count < FEWEST_DRAWS or chains < 2:
        return xr.Dataset()
    library = arviz()
    if trace.sites:
        variables = {k: v for k, v in trace.sites.items() if v[0, 0].size <= SCALARS}
    else:
        variables = {} if _size(trace) > SCALARS else {"x": trace.positions}
    if _size(trace) > SCALARS:
        variables = summaries(trace) | variables
    scalars = {}
    for name, value in variables.items():
        flat = value.reshape(chains, count, -1)
        for i in range(flat.shape[-1]):
            scalars[name if value.ndim == 2 else f"{name}[{i}]"] = flat[..., i]
    rows: dict[str, list[float]] = {"r_hat": [], "ess_bulk": [], "ess_tail": []}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for value in scalars.values():
            array = np.ascontiguousarray(value)
            rows["r_hat"].append(float(library.rhat(array)))
            rows["ess_bulk"].append(float(library.ess(array, method="bulk")))
            rows["ess_tail"].append(float(library.ess(array, method="tail", prob=(0.05, 0.95))))
    return xr.Dataset({k: ("variable", v) for k, v in rows.items()}, coords={"variable": list(scalars)})


def _stuck(trace: Trace) -> int:
    """Chains that moved neither in the steps of the last rung nor in recorded draws."""
    x = trace.positions.reshape(*trace.positions.shape[:2], -1)
    still = np.all(x == x[:, :1], axis=(1, 2))
    if trace.attributes["steps"][-1] > 0:
        still &= trace.stats.jump_distance[-1].to_numpy() == 0
    return int(np.sum(still)) if trace.attributes["steps"][-1] > 0 or x.shape[1] > 1 else 0


def _highest_r_hat(chains: int, count: int, variables: int) -> float:
    """Above what R-hat is no accident: 1.05, or what independent draws exceed once in a hundred times.

    The ratio of the variances between and within split chains follows an F distribution.
    """
    halves, length = 2 * chains, count // 2
    ratio = f_distribution.ppf(1 - 0.01 / variables, halves - 1, halves * (length - 1))
    return max(1.05, float(np.sqrt(1 + (ratio - 1) / length)))


def _distinct_ancestors(ancestors: np.ndarray) -> list[int]:
    origin = np.arange(ancestors.shape[1])
    left = []
    for row in ancestors:
        origin = origin[row]
        left.append(len(np.unique(origin)))
    return left


def _size(trace: Trace) -> int:
    return int(np.prod(trace.positions.shape[2:]))


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
