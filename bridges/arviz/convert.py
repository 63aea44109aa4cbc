"""Convert traces to ArviZ objects.

``to_inference_data`` returns an ``InferenceData`` with ArviZ 0.23 and a ``DataTree`` with ArviZ 1.x. Its groups are
``posterior``, ``sample_stats`` and ``annealing``, which holds the statistics of every rung.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ppl_diffusion.sampling.ancestry import families
from ppl_diffusion.sampling.trace import Trace

RELATIVES = (
    "chains that were resampled are relatives, and az.summary, az.ess, az.mcse and az.rhat take them as independent: "
    "use bridges.arviz.summary(trace), or the variable family of the group annealing"
)
"""What the attribute ``ancestry`` says of a resampled run."""

SCALARS = 16
"""Largest number of event coordinates for which R-hat and ESS are computed coordinate by coordinate."""


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
        ``annealing`` (dimensions ``rung``, ``chain``; coordinate ``level``; with ``family``, the starting chain that
        each chain continues), and for a Pyro model ``log_likelihood`` and ``observed_data``. The log-likelihood of
        masked observations is NaN; leave them out before ``az.loo``:
        ``idata.log_likelihood = idata.log_likelihood.dropna("rows")``, the name of their plate.
        Dimensions of plates carry the plates' names. Slashes in names become dots, because
        ArviZ 1.x reads a slash as a path. With ``prior``, also ``prior`` and, for observed sites, ``prior_predictive``.
        Attributes give ``log_normaliser``, ``log_normaliser_error``, and in ``ancestry`` what readers of independent
        chains have to know.
        Runs are joined by ``az.concat(..., dim="chain")``; to join them by draw, delete ``annealing``, which has none.

    Raises:
        ValueError: ``prior`` has a site that the trace lacks.
        TypeError: ``trace`` is not a Trace.
    """
    check_trace("to_inference_data", trace)
    library = arviz()
    variables = dict(trace.sites) or {"x": trace.positions}
    if event_size(trace) > SCALARS:
        variables = summaries(trace) | variables
    dims = {name: [f"{name}_dim_{i}" for i in range(value.ndim - 2)] for name, value in variables.items()}
    dims |= trace.attributes.get("dims", {})
    groups = {**trace.groups, **_prior_groups(trace, prior or {})}
    extra = {group: dotted_keys(values) for group, values in groups.items()}
    variables = dotted_keys(variables)
    dims = {name: [dotted(dim) for dim in dims_of_site] for name, dims_of_site in dotted_keys(dims).items()}
    stats = {name: value.to_numpy() for name, value in trace.sample_stats.items()}
    diverging = stats.pop("diverging", np.array(np.nan))
    if not np.isnan(diverging).all():  # else the kernel does not report it
        stats["diverging"] = np.nan_to_num(diverging).astype(bool)
    attributes: dict[str, Any] = {k: str(v) for k, v in trace.attributes.items() if k != "versions"}
    attributes |= {"inference_library": "ppl-diffusion"}
    attributes["inference_library_version"] = str(dict(trace.attributes.get("versions", {})).get("ppl-diffusion", ""))
    attributes |= {"log_normaliser": trace.log_normaliser, "log_normaliser_error": trace.log_normaliser_error}
    attributes["ancestry"] = RELATIVES if was_resampled(trace) else "chains are independent of one another"
    rungs = trace.stats.assign(family=(("rung", "chain"), families(trace.stats["ancestor"].to_numpy())))
    rungs = rungs.assign_coords(chain=np.arange(trace.stats.sizes["chain"]))
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


def check_trace(reader: str, trace: Any) -> None:
    """Raise ``TypeError`` unless ``trace`` is a Trace; ``reader`` is the function that was called."""
    if not isinstance(trace, Trace):
        raise TypeError(f"{reader} reads a Trace, got {type(trace).__name__}: give Trace.load('run.nc')")


def was_resampled(trace: Trace) -> bool:
    """Return whether chains were resampled, so that some may be relatives."""
    return bool(trace.stats["resampled"].any())


def dotted(name: str) -> str:
    """Return ``name`` with slashes replaced by dots: ArviZ 1.x reads a name with a slash as a path."""
    return name.replace("/", ".")


def dotted_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` under the names that :func:`dotted` makes of theirs."""
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
    """Return scalar summaries of large events, each ``(chains, draws)``: energy if there is one, mean, and fixed random
    projections."""
    flat = trace.positions.reshape(*trace.positions.shape[:2], -1)
    directions = np.random.default_rng(0).standard_normal((flat.shape[-1], PROJECTIONS)) / np.sqrt(flat.shape[-1])
    projected = flat @ directions
    found = {"mean": flat.mean(-1)}
    if trace.attributes.get("has_energy", True):  # else it is a work, counted from where each chain arrived
        found = {"energy": -trace.sample_stats["lp"].to_numpy()} | found
    return found | {f"projection_{i}": projected[..., i] for i in range(PROJECTIONS)}


def event_size(trace: Trace) -> int:
    """Number of coordinates of one draw."""
    return int(np.prod(trace.positions.shape[2:]))
