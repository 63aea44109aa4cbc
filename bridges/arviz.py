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
from typing import Any

import numpy as np
import xarray as xr

from ppl_diffusion.trace import Trace

from .diagnosis import FEWEST_DRAWS, Diagnosis, words

__all__ = ["Diagnosis", "diagnose", "summaries", "to_inference_data"]

SCALARS = 16
"""Events with more coordinates than this are summarised by scalars for R-hat and ESS."""

PROJECTIONS = 4
"""Fixed random projections among the scalars."""


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
        and ``observed_data``; its plates name dimensions, and a slash in a name, which would be a path, is a dot.
        With ``prior``, also ``prior`` and, for observed sites, ``prior_predictive``.
    """
    library = arviz()
    variables = dict(trace.sites) or {"x": trace.positions}
    if _size(trace) > SCALARS:
        variables = summaries(trace) | variables
    dims = {name: [f"{name}_dim_{i}" for i in range(value.ndim - 2)] for name, value in variables.items()}
    dims |= trace.attributes.get("dims", {})
    groups = {**trace.groups, **_prior_groups(trace, prior or {})}
    extra = {group: _dotted(values) for group, values in groups.items()}
    variables, dims = _dotted(variables), {k: [dotted(d) for d in names] for k, names in _dotted(dims).items()}
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
            tree = library.from_dict({"posterior": variables, **extra}, dims=dims)
            tree["sample_stats"] = library.from_dict({"sample_stats": stats})["sample_stats"]  # a site may be named so
            tree["annealing"] = xr.DataTree(rungs)
            for group in ("posterior", "sample_stats"):
                tree[group].attrs.update(attributes)
            tree.attrs.update(attributes)
            return tree
        data = library.from_dict(posterior=variables, **extra, dims=dims, attrs=attributes)
        data.extend(library.from_dict(sample_stats=stats))  # apart: a site may be named as one is
        data.add_groups({"annealing": rungs})
    return data


def dotted(name: str) -> str:
    """A name as ArviZ has it, to which one with a slash is a path."""
    return name.replace("/", ".")


def _dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    return {dotted(name): value for name, value in values.items()}


def _prior_groups(trace: Trace, prior: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, draws in prior.items():
        if name in trace.sites:
            group, shape = "prior", trace.sites[name].shape[2:]
        elif name in trace.groups.get("observed_data", {}):
            group, shape = "prior_predictive", np.shape(trace.groups["observed_data"][name])
        else:
            raise ValueError(f"the prior has a site {name!r} that the trace lacks: use those of {[*trace.sites]}")
        values = np.asarray(draws)
        if values.size == len(values) * int(np.prod(shape)):  # Predictive adds dimensions of plates
            values = values.reshape(len(values), *shape)
        found.setdefault(group, {})[name] = values[None]
    return found


def summaries(trace: Trace) -> dict[str, np.ndarray]:
    """Scalars of large events, each ``(chains, draws)``: energy, mean, and fixed random projections."""
    flat = trace.positions.reshape(*trace.positions.shape[:2], -1)
    directions = np.random.default_rng(0).standard_normal((flat.shape[-1], PROJECTIONS)) / np.sqrt(flat.shape[-1])
    projected = flat @ directions
    found = {"energy": -trace.sample_stats["lp"].to_numpy(), "mean": flat.mean(-1)}
    return found | {f"projection_{i}": projected[..., i] for i in range(PROJECTIONS)}


def diagnose(trace: Trace) -> Diagnosis:
    """Whether to believe a run: a table per rung, R-hat and ESS of the recorded draws, and words.

    Drift is the change of the mean energy from the middle of a rung to its end: beyond a few standard
    errors, chains were still in transit when they left. Along the ladder that is a finite number of
    steps at work; at the last rung it is bias.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"diagnose reads a Trace, got {type(trace).__name__}: give Trace.load('run.nc')")
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
            "ancestors": _distinct_ancestors(stats.ancestor.to_numpy()),
            "drift": np.where(np.isfinite(drift), drift, np.nan),
            "stuck": np.where(steps > 0, (jumps == 0).sum("chain").where(jumps.notnull().any("chain")), np.nan),
        }
    rungs = xr.Dataset({name: ("rung", np.asarray(value, dtype=float)) for name, value in columns.items()})
    draws = _draws(trace)
    return Diagnosis(rungs, draws, tuple(words(trace, rungs, draws)))


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


def _distinct_ancestors(ancestors: np.ndarray) -> list[int]:
    origin = np.arange(ancestors.shape[1])
    left = []
    for row in ancestors:
        origin = origin[row]
        left.append(len(np.unique(origin)))
    return left


def _size(trace: Trace) -> int:
    return int(np.prod(trace.positions.shape[2:]))
