"""Names of the sites of a Pyro model and of their dimensions, for ArviZ and for files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..arviz.convert import dotted


def dims_of(name: str, node: Any) -> list[str]:
    """Names of a site's dimensions: the plate's name, or ``{site}_dim_{i}`` for a dimension outside plates."""
    event = node["fn"].event_dim
    batch = node["value"].ndim - event
    plates = {frame.dim + batch: frame for frame in node["cond_indep_stack"] if frame.dim is not None}
    found = [f"{name}_dim_{i}" for i in range(node["value"].ndim)]
    for i, size in enumerate(node["value"].shape):
        if i in plates and plates[i].size == size:  # data may be broadcast over a plate
            found[i] = plates[i].name
    return found


def check_names(dims: Mapping[str, Sequence[str]], observed: Collection[str], model: str) -> None:
    """Refuse names of sites and dimensions that would collide or be invalid in ArviZ or in a file.

    Args:
        dims: names of the dimensions of every site.
        observed: names of the observed sites, which ArviZ keeps in groups of their own.
        model: name of the model, for error messages.

    Raises:
        ValueError: such a name.
    """
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
    """Names of the dimensions of ``sites``: a plate's dimension once, other dimensions once per site."""
    owned = {(dim, site if dim.startswith(f"{site}_dim_") else None) for site in sites for dim in dims[site]}
    return [dim for dim, _ in owned]
