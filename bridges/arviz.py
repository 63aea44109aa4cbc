"""Convert traces to ArviZ objects, and diagnose them in words.

``to_inference_data`` returns an ``InferenceData`` with ArviZ 0.23 and a ``DataTree`` with ArviZ 1.x. Its groups are
``posterior``, ``sample_stats`` and ``annealing``, which holds the statistics of every rung. ``diagnose`` summarises
a trace in tables and warns of reasons not to trust its samples.

ArviZ reports the full effective sample size for chains that never moved, so the diagnosis always shows acceptance
rates and stuck chains beside it. R-hat and ESS are computed from the recorded draws only, because chains are not
stationary along the ladder; with fewer than ``FEWEST_DRAWS`` draws they are not reported.

Source: Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021),
https://arxiv.org/abs/1903.08008
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import f as f_distribution

from ppl_diffusion.trace import Trace

from .diagnosis import FEWEST_DRAWS, Diagnosis, warning_sentences

__all__ = ["Diagnosis", "diagnose", "summaries", "to_inference_data"]

SCALARS = 16
"""Largest number of event coordinates for which R-hat and ESS are computed coordinate by coordinate."""

WORST_COORDINATE = "worst coordinate"
"""The coordinate of a large event whose split R-hat is largest."""

MAX_R_HAT_LIMIT = 1.3
"""R-hat above which chains disagree, however few independent draws each of them has."""

PROJECTIONS = 4
"""Number of fixed random projections by which a larger event is summarised."""


def arviz() -> Any:
    """Import ArviZ, without the warning about its successor that version 0.23 gives at import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz as library
    return library


def to_inference_data(trace: Trace, *, prior: Mapping[str, Any] | None = None) -> Any:
    """Convert a trace to an ArviZ object.

    Args:
        trace: the trace of a run.
        prior: for a Pyro model, prior draws of its sites by name, each ``(draws, ...)``, as returned by
            ``pyro.infer.Predictive``.

    Returns:
        ``arviz.InferenceData`` (ArviZ 0.23) or ``xarray.DataTree`` (1.x) with the groups ``posterior`` (``x``, or the
        sites of a model, and for large events the scalars of :func:`summaries`), ``sample_stats``,
        ``annealing`` (dimensions ``rung``, ``chain``; coordinate ``level``), and for a Pyro model ``log_likelihood``
        and ``observed_data``. The log-likelihood of masked observations is 0: leave these out before ``az.loo``.
        Dimensions of plates carry the plates' names. Slashes in names become dots, because
        ArviZ 1.x reads a slash as a path. With ``prior``, also ``prior`` and, for observed sites, ``prior_predictive``.
        Runs are joined by ``az.concat(..., dim="chain")``; to join them by draw, delete ``annealing``, which has none.

    Raises:
        ValueError: ``prior`` has a site that the trace lacks.
        TypeError: ``trace`` is not a Trace.
    """
    _check_trace("to_inference_data", trace)
    library = arviz()
    variables = dict(trace.sites) or {"x": trace.positions}
    if _event_size(trace) > SCALARS:
        variables = summaries(trace) | variables
    dims = {name: [f"{name}_dim_{i}" for i in range(value.ndim - 2)] for name, value in variables.items()}
    dims |= trace.attributes.get("dims", {})
    groups = {**trace.groups, **_prior_groups(trace, prior or {})}
    extra = {group: _dotted_keys(values) for group, values in groups.items()}
    variables = _dotted_keys(variables)
    dims = {name: [dotted(dim) for dim in dims_of_site] for name, dims_of_site in _dotted_keys(dims).items()}
    stats = {name: value.to_numpy() for name, value in trace.sample_stats.items()}
    diverging = stats.pop("diverging", np.array(np.nan))
    if not np.isnan(diverging).all():  # else the kernel does not report it
        stats["diverging"] = np.nan_to_num(diverging).astype(bool)
    attributes = {k: str(v) for k, v in trace.attributes.items() if k != "versions"}
    attributes |= {"inference_library": "ppl-diffusion"}
    attributes["inference_library_version"] = str(dict(trace.attributes.get("versions", {})).get("ppl-diffusion", ""))
    rungs = trace.stats.assign_coords(chain=np.arange(trace.stats.sizes["chain"]))
    # Without a dimension of chains in all variables, az.concat could not join runs by chain.
    rungs = rungs.map(lambda values: values.broadcast_like(rungs.chain)).transpose("rung", "chain")
    with warnings.catch_warnings():
        # More chains than draws are usual here, and the group "annealing" is not in ArviZ's scheme on purpose.
        warnings.filterwarnings("ignore", message="More chains|Found chain dimension to be longer")
        warnings.filterwarnings("ignore", message=".*not defined in the InferenceData scheme.*")
        if int(library.__version__.split(".")[0]) >= 1:
            tree = library.from_dict({"posterior": variables, **extra}, dims=dims)
            # Apart from the other groups, because a site may have the name "sample_stats".
            tree["sample_stats"] = library.from_dict({"sample_stats": stats})["sample_stats"]
            tree["annealing"] = xr.DataTree(rungs)
            for group in ("posterior", "sample_stats"):
                tree[group].attrs.update(attributes)
            tree.attrs.update(attributes)
            return tree
        data = library.from_dict(posterior=variables, **extra, dims=dims, attrs=attributes)
        data.extend(library.from_dict(sample_stats=stats))  # apart: a site may have the name of a statistic
        data.add_groups({"annealing": rungs})
    return data


def _check_trace(reader: str, trace: Any) -> None:
    if not isinstance(trace, Trace):
        raise TypeError(f"{reader} reads a Trace, got {type(trace).__name__}: give Trace.load('run.nc')")


def dotted(name: str) -> str:
    """Return ``name`` with slashes replaced by dots: ArviZ 1.x reads a name with a slash as a path."""
    return name.replace("/", ".")


def _dotted_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {dotted(name): value for name, value in values.items()}


def _prior_groups(trace: Trace, prior: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Sort prior draws into the groups ``prior`` and ``prior_predictive``, each value ``(1, draws, *shape)``."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, draws in prior.items():
        if name in trace.sites:
            group, shape = "prior", trace.sites[name].shape[2:]
        elif name in trace.groups.get("observed_data", {}):
            group, shape = "prior_predictive", np.shape(trace.groups["observed_data"][name])
        else:
            raise ValueError(f"the prior has a site {name!r} that the trace lacks: use those of {[*trace.sites]}")
        values = np.asarray(draws)
        if values.size == len(values) * int(np.prod(shape)):  # Predictive may add dimensions of size 1 for plates
            values = values.reshape(len(values), *shape)
        found.setdefault(group, {})[name] = values[None]
    return found


def summaries(trace: Trace) -> dict[str, np.ndarray]:
    """Return scalar summaries of large events, each ``(chains, draws)``: energy, mean, and fixed random projections."""
    flat = trace.positions.reshape(*trace.positions.shape[:2], -1)
    directions = np.random.default_rng(0).standard_normal((flat.shape[-1], PROJECTIONS)) / np.sqrt(flat.shape[-1])
    projected = flat @ directions
    found = {"energy": -trace.sample_stats["lp"].to_numpy(), "mean": flat.mean(-1)}
    return found | {f"projection_{i}": projected[..., i] for i in range(PROJECTIONS)}


def diagnose(trace: Trace) -> Diagnosis:
    """Diagnose a run: statistics of every rung, R-hat and ESS of the recorded draws, and warnings in words.

    Drift is the change of the mean energy from the middle of a rung to its end, in standard errors. If it exceeds a
    few standard errors, the chains had not equilibrated when they left the rung. That is expected along the ladder,
    where every rung has few steps; at the last rung it means biased draws.

    Raises:
        TypeError: ``trace`` is not a Trace.
    """
    _check_trace("diagnose", trace)
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
    draws = _draw_diagnostics(trace)
    return Diagnosis(rungs, draws, tuple(warning_sentences(trace, rungs, draws)))


def _draw_diagnostics(trace: Trace) -> xr.Dataset:
    """R-hat and ESS of scalars of the recorded draws; empty with too few draws or a single chain."""
    chains, count = trace.positions.shape[:2]
    if count < FEWEST_DRAWS or chains < 2:
        return xr.Dataset()
    library = arviz()
    if trace.sites:
        variables = {k: v for k, v in trace.sites.items() if v[0, 0].size <= SCALARS}
    else:
        variables = {} if _event_size(trace) > SCALARS else {"x": trace.positions}
    large = _event_size(trace) > SCALARS
    if large:
        variables = summaries(trace) | variables
    scalars = {}
    for name, value in variables.items():
        flat = value.reshape(chains, count, -1)
        for i in range(flat.shape[-1]):
            scalars[name if value.ndim == 2 else f"{name}[{i}]"] = flat[..., i]
    tried = dict.fromkeys(scalars, len(scalars))
    if large:
        scalars[WORST_COORDINATE], tried[WORST_COORDINATE] = _worst_coordinate(trace.positions), _event_size(trace)
    rows: dict[str, list[float]] = {"r_hat": [], "r_hat_limit": [], "ess_bulk": [], "ess_tail": []}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, value in scalars.items():
            array = np.ascontiguousarray(value)
            rows["r_hat"].append(float(library.rhat(array)))
            rows["r_hat_limit"].append(_r_hat_limit(array, tried[name]))
            rows["ess_bulk"].append(float(library.ess(array, method="bulk")))
            rows["ess_tail"].append(float(library.ess(array, method="tail", prob=(0.05, 0.95))))
    return xr.Dataset({k: ("variable", v) for k, v in rows.items()}, coords={"variable": list(scalars)})


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


def _r_hat_limit(draws: np.ndarray, tried: int) -> float:
    """Return the R-hat that chance and autocorrelation explain in ``draws (chains, draws)``: above it chains disagree.

    The squared split R-hat of half-chains of n draws is ``(n - 1) / n`` plus the ratio of the variance of their means
    to the mean of their variances. For a stationary autoregressive process of order one, with variance 1 and
    correlation ``r`` of successive draws, these have the expectations ``v`` and ``(1 - v) n / (n - 1)``,

        v = [(1 + r) / (1 - r) - 2 r (1 - r^n) / (n (1 - r)^2)] / n

    and the ratio follows an F distribution about theirs. The limit is exceeded once in a hundred times by the largest
    of ``tried`` scalars. The correlation is estimated within half-chains, so that disagreement does not hide itself.

    Source of the correction of the correlation: Note on Bias in the Estimation of Autocorrelation (Kendall, 1954),
    https://doi.org/10.1093/biomet/41.3-4.403
    """
    n, chains = draws.shape[1] // 2, len(draws)
    halves = draws[:, : 2 * n].reshape(2 * chains, n)
    explained = 1.05
    for values in (halves, np.abs(halves - np.median(halves))):  # R-hat is the larger one of the two
        about = values - values.mean(1, keepdims=True)
        correlation = np.sum(about[:, 1:] * about[:, :-1]) / np.sum(about**2)
        r = float(np.clip((correlation + 1 / n) / (1 - 3 / n), -0.9, 0.99)) if np.isfinite(correlation) else 0.0
        v = ((1 + r) / (1 - r) - 2 * r * (1 - r**n) / (n * (1 - r) ** 2)) / n
        quantile = f_distribution.ppf(1 - 0.01 / tried, 2 * chains - 1, 2 * chains * (1 / v - 1))
        explained = max(explained, float(np.sqrt((n - 1) / n * (1 + v / (1 - v) * quantile))))
    return min(explained, MAX_R_HAT_LIMIT)


def _distinct_ancestors(ancestors: np.ndarray) -> list[int]:
    """Number of starting chains that have descendants at every rung, from ``ancestors (rungs, chains)``."""
    origin = np.arange(ancestors.shape[1])
    left = []
    for row in ancestors:
        origin = origin[row]
        left.append(len(np.unique(origin)))
    return left


def _event_size(trace: Trace) -> int:
    return int(np.prod(trace.positions.shape[2:]))
