"""Names of a Pyro model's sites and of their dimensions, as ArviZ and files have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..arviz import dotted


def dims_of(name: str, node: Any) -> list[str]:
    """Names of a site's dimensions: its plates', and numbers for the rest."""
    event = node["fn"].event_dim
    batch = node["value"].ndim - event
    plates = {frame.dim + batch: frame for frame in node["cond_indep_stack"] if frame.dim is not None}
    found = [f"{name}_dim_{i}" for i in range(node["value"].ndim)]
    for i, size in enumerate(node["value"].shape):
        if i in plates and plates[i].size == size:  # data may be one number for all of a plate
            found[i] = plates[i].name
    return found


def check_names(dims: Mapping[str, Sequence[str]], observed: Collection[str], model: str) -> None:
    """Refuse names that ArviZ or a file would lose, of sites and of their dimensions, ``dims``."""
    for name in (*dims, *(dim for each in dims.values() for dim in each)):
        if name in ("chain", "draw"):
            raise ValueError(
                f"{model} has a site or a plate {name!r}, which ArviZ calls a dimension: give it another name"
            )
        if dotted(name) in ("", ".") or "\0" in name:
            raise ValueError(f"{model} has a site or a plate {name!r}, which no file can hold: give it another name")
    groups = [name for name in dims if name not in observed], list(observed)
    for names in (list(dims), *([*sites, *_axes(dims, sites)] for sites in groups)):
        known: dict[str, str] = {}
        for name in names:
            if dotted(name) in known:
                raise ValueError(
                    f"{model} has sites, plates or dimensions {known[dotted(name)]!r} and {name!r}, one name in ArviZ, "
                    "where a slash is a dot and x_dim_0 a dimension of x: give a site or plate another name"
                )
            known[dotted(name)] = name


def _axes(dims: Mapping[str, Sequence[str]], sites: Collection[str]) -> list[str]:
    """Dimensions of sites, once those of each site and once those of a plate."""
    owned = {(dim, site if dim.startswith(f"{site}_dim_") else None) for site in sites for dim in dims[site]}
    return [dim for dim, _ in owned]
