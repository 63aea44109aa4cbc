"""A Pyro model with its arguments, as a function of one flat vector of its latent sites.

Sites with a diffusion prior enter the vector unchanged, other latent sites in unconstrained coordinates. The density
of such a vector along the ladder is defined in ``bridges.pyro.joint``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .coordinates import SubstituteLatents, log_prior, to_default_dtype, unconstrain
from .likelihood import map_rows
from .sites import Site, layout_of


class FlatModel:
    """A Pyro model whose latent sites are flattened into one vector.

    Args:
        model: a Pyro model.
        args, kwargs: arguments of the model.

    Attributes:
        sites: the latent sites, in the order of the vector.
        observed: values of observed sites by name.
        recorded: names of the sites that ``pyro.deterministic`` records.
        dims: names of the dimensions of every site.

    Raises:
        ValueError: the model has latent sites that are discrete or cannot be sampled, parameters, or subsampling
            plates.
    """

    def __init__(self, model: Any, args: tuple, kwargs: Mapping[str, Any] | None) -> None:
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs or {})
        self.name = getattr(model, "__name__", "model")
        found = layout_of(self._trace, self.name)
        self.sites, self.observed, self.recorded, self.dims = found.sites, found.observed, found.recorded, found.dims

    def flatten(self, values: Mapping[str, Any]) -> np.ndarray:
        """Convert constrained values of all latent sites, each ``(chains, *shape)``, to flat points ``(chains, size)``.

        Raises:
            ValueError: missing or unknown sites, wrong shapes, or values outside the support.
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
                conditioned = poutine.condition(self.model, to_default_dtype(point))
                nodes: Any = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs).nodes
                others = (site.name for site in self.sites if site.prior is None)
                point |= {name: unconstrain(nodes[name], SubstituteLatents({}))[0] for name in others}
                flat = [point[site.name].reshape(site.shape).double().flatten() for site in self.sites]
                rows.append(torch.cat(flat).numpy())
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"init does not fit {self.name} ({str(error).splitlines()[0]}): give values of shape (chains, "
                    "*shape of the site) within their support"
                ) from error
        return np.stack(rows)

    def report(self, flat: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Convert draws ``flat (chains, draws, size)`` to values of the model's sites.

        Returns:
            Constrained values of every latent and every recorded site, each ``(chains, draws, *shape)``; and the
            groups ``log_likelihood``, of every observed site, each ``(chains, draws, *batch)``, zero where masked,
            and ``observed_data``.
        """

        names = [*(site.name for site in self.sites), *self.recorded]

        def one(point: Tensor) -> dict[tuple[str, str], Tensor]:
            nodes = self._trace_at(point, {site.name: site.of(point) for site in self._prior_sites()})
            found = {("latent", name): nodes[name]["value"] for name in names}
            for name in self.observed:
                log_p = nodes[name]["fn"].log_prob(nodes[name]["value"])
                found["likelihood", name] = scale_and_mask(log_p, mask=nodes[name]["mask"])
            return found

        groups: dict[str, dict[str, np.ndarray]] = {"latent": {}, "likelihood": {}}
        with torch.no_grad():
            for (group, name), values in map_rows(one, torch.from_numpy(flat.reshape(-1, flat.shape[-1]))).items():
                groups[group][name] = values.numpy().reshape(*flat.shape[:2], *values.shape[1:])
        return groups["latent"], {"log_likelihood": groups["likelihood"], "observed_data": self.observed}

    def _trace_at(self, point: Tensor, seen: Mapping[str, Tensor]) -> Any:
        """Trace nodes at ``point (size,)``, where sites with a diffusion prior take the values ``seen``."""
        return self._trace(self._substitute(seen, self._free_values(point)))

    def _substitute(self, seen: Mapping[str, Tensor], free: Mapping[str, Tensor] | None = None) -> SubstituteLatents:
        fillers = {site.name for site in self.sites if site.filler}
        return SubstituteLatents(to_default_dtype(seen), free, fillers=fillers)

    def _trace(self, handler: SubstituteLatents) -> Any:
        return poutine.trace(handler(self.model)).get_trace(*self.args, **self.kwargs).nodes

    def _dependent_on_x(self, one: Tensor, other: Tensor) -> list[str]:
        """Names of the latent sites whose priors depend on ``x``: they change if ``one (size,)`` takes the ``x`` of
        ``other (size,)``."""
        found = []
        with pyro.validation_enabled(False):
            for point in (one, other):
                seen = {site.name: site.of(point) for site in self._prior_sites()}
                handler = self._substitute(seen, self._free_values(one))
                nodes = self._trace(handler)
                others = (site.name for site in self.sites if site.prior is None)
                found.append({name: log_prior(nodes[name], handler) for name in others})
        before, after = found
        return [name for name in before if not torch.allclose(before[name], after[name], rtol=0, equal_nan=True)]

    def _prior_sites(self) -> list[Site]:
        return [site for site in self.sites if site.prior is not None]

    def _free_values(self, point: Tensor) -> dict[str, Tensor]:
        """Unconstrained coordinates in ``point (size,)`` of the sites without a diffusion prior."""
        return {site.name: site.of(point) for site in self.sites if site.prior is None}
