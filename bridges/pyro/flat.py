"""A Pyro model with its arguments, run at points of one flat vector of its latent sites.

Diffusion priors stand in the vector as they are, other latent sites in unconstrained coordinates. What the density of
such a point is along a ladder is ``bridges.pyro.joint``'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .coordinates import Given, native, unconstrained
from .likelihood import by_row
from .sites import Site, layout_of


class FlatModel:
    """A Pyro model whose latent sites are one vector.

    Args:
        model: a Pyro model.
        args, kwargs: of the model.

    Attributes:
        sites: the latent ones, in the order of the vector.
        observed: values of observed sites by name.
        recorded: names of what ``pyro.deterministic`` records.
        dims: names of the dimensions of every site.

    Raises:
        ValueError: latent sites that are discrete or cannot be drawn, parameters, plates that draw a subsample.
    """

    def __init__(self, model: Any, args: tuple, kwargs: Mapping[str, Any] | None) -> None:
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs or {})
        self.name = getattr(model, "__name__", "model")
        found = layout_of(self._run, self.name)
        self.sites, self.observed, self.recorded, self.dims = found.sites, found.observed, found.recorded, found.dims

    def flatten(self, values: Mapping[str, Any]) -> np.ndarray:
        """Constrained values of every latent site, each ``(chains, *shape)``, as flat, unconstrained points.

        Raises:
            ValueError: sites that are missing or unknown, of other shapes, or values outside their support.
        """
        names = [site.name for site in self.sites]
        if sorted(values) != sorted(names):
            raise ValueError(f"init holds {', '.join(values) or 'nothing'}: give the latent sites, {', '.join(names)}")
        given = {name: torch.as_tensor(values[name]).double().cpu() for name in names}
        counts = {name: value.shape[0] if value.ndim else 0 for name, value in given.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"init holds different numbers of chains ({told}): give each site (chains, *shape)")
        rows = []
        for chain in range(len(given[names[0]])):
            point = {name: value[chain] for name, value in given.items()}
            try:
                conditioned = poutine.condition(self.model, native(point))
                nodes: Any = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs).nodes
                others = (site.name for site in self.sites if site.prior is None)
                point |= {name: unconstrained(nodes[name], Given({}))[0] for name in others}
                flat = [point[site.name].reshape(site.shape).double().flatten() for site in self.sites]
                rows.append(torch.cat(flat).numpy())
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"init does not fit {self.name} ({str(error).splitlines()[0]}): give values of shape (chains, "
                    "*shape of the site) within their support"
                ) from error
        return np.stack(rows)

    def report(self, flat: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """What draws ``flat (chains, draws, size)`` mean for the model.

        Returns:
            Values of every latent site and of what ``pyro.deterministic`` records, each ``(chains, draws, *shape)``;
            and the groups ``log_likelihood``, of every observed site, each ``(chains, draws, *batch)``, zero where it
            is masked, and ``observed_data``.
        """

        names = [*(site.name for site in self.sites), *self.recorded]

        def one(point: Tensor) -> dict[tuple[str, str], Tensor]:
            nodes = self._nodes(point, {site.name: site.of(point) for site in self._priors()})
            found = {("latent", name): nodes[name]["value"] for name in names}
            for name in self.observed:
                log_p = nodes[name]["fn"].log_prob(nodes[name]["value"])
                found["likelihood", name] = scale_and_mask(log_p, mask=nodes[name]["mask"])
            return found

        groups: dict[str, dict[str, np.ndarray]] = {"latent": {}, "likelihood": {}}
        with torch.no_grad():
            for (group, name), values in by_row(one, torch.from_numpy(flat.reshape(-1, flat.shape[-1]))).items():
                groups[group][name] = values.numpy().reshape(*flat.shape[:2], *values.shape[1:])
        return groups["latent"], {"log_likelihood": groups["likelihood"], "observed_data": self.observed}

    def _nodes(self, point: Tensor, seen: Mapping[str, Tensor]) -> Any:
        return self._run(self._given(seen, self._free(point)))

    def _given(self, seen: Mapping[str, Tensor], free: Mapping[str, Tensor] | None = None) -> Given:
        return Given(native(seen), free, fillers={site.name for site in self.sites if site.filler})

    def _run(self, handler: Given) -> Any:
        return poutine.trace(handler(self.model)).get_trace(*self.args, **self.kwargs).nodes

    def _priors(self) -> list[Site]:
        return [site for site in self.sites if site.prior is not None]

    def _free(self, point: Tensor) -> dict[str, Tensor]:
        return {site.name: site.of(point) for site in self.sites if site.prior is None}
