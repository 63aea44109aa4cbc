"""A Pyro model with its arguments, as a function of one flat vector of its latent sites.

Sites with a diffusion prior enter the vector unchanged, other latent sites in unconstrained coordinates. The density
of such a vector along the ladder is defined in ``bridges.pyro.joint``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .coordinates import SubstituteLatents, log_prior, to_default_dtype, unconstrain
from .masks import filled, hidden
from .rows import map_rows
from .sites import HeldParameters, Site, layout_of

BATCHABLE = (
    "write it without .item(), without branches on latent values, with torch functions only, and without distributions "
    "that branch inside, such as OrderedLogistic and Multinomial"
)


class NotBatchable(ValueError):
    """A model that ``torch.func.vmap`` cannot run."""


def check_call(model: Any, args: Any, kwargs: Any) -> None:
    """Refuse arguments of a model that are not in a tuple and a mapping: a tensor would be unpacked.

    Raises:
        TypeError: ``args`` is neither a tuple nor a list, or ``kwargs`` is no mapping.
    """
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs or {}, Mapping):
        raise TypeError(f"args is a tuple and kwargs a dictionary of what {model} takes: give (y,) for one argument y")


def energies_of(
    one: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    flat: Tensor,
    seen: Mapping[str, Tensor],
    *,
    model: str,
    one_by_one: bool,
) -> Tensor:
    """Return ``one(point, seen)`` of every chain, shape ``(chains,)``, batched by ``torch.func.vmap`` where it can be.

    Args:
        one: the energy of one chain, a scalar, at ``point (size,)`` and ``seen (*shape)`` by name.
        flat: points ``(chains, size)``.
        seen: further values ``(chains, *shape)`` by name.
        model: name of the model, for error messages.
        one_by_one: whether a model that cannot be batched is run chain by chain.

    Raises:
        NotBatchable: the model cannot be batched, and ``one_by_one`` is False.
    """
    with pyro.validation_enabled(False):  # its checks branch on values, which vmap cannot
        try:
            if len(flat) > 1:
                return torch.func.vmap(one)(flat, dict(seen))
        except RuntimeError as error:
            if not one_by_one:
                # A model that fails for a single chain raises its own error here.
                one(flat[0], {name: value[0] for name, value in seen.items()})
                raise NotBatchable(
                    f"{model} cannot be batched over chains ({str(error).splitlines()[0][:200]}): {BATCHABLE}; or use "
                    "a kernel of bridges.pyro, or chains=1"
                ) from error
        rows = ({name: value[i] for name, value in seen.items()} for i in range(len(flat)))
        return torch.stack([one(point, row) for point, row in zip(flat, rows, strict=True)])


def gradient_of(energy: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of the sum of ``energy (chains,)`` by ``leaf``, of its shape; zero where it has none."""
    found = torch.autograd.grad(energy.sum(), leaf, allow_unused=True)[0] if energy.requires_grad else None
    return torch.zeros_like(leaf) if found is None else found


class FlatModel:
    """A Pyro model whose latent sites are flattened into one vector.

    Args:
        model: a Pyro model.
        args, kwargs: arguments of the model.

    Attributes:
        given: the model as it was given; ``model`` holds its ``parameters`` at their present values.
        sites: the latent sites, in the order of the vector.
        observed: values of observed sites by name.
        recorded: names of the sites that ``pyro.deterministic`` records.
        dims: names of the dimensions of every site.
        notes: sentences on what may be wrong with the model.

    Raises:
        TypeError: ``args`` is no tuple, or ``kwargs`` no mapping.
        ValueError: the model has latent sites that are discrete or cannot be sampled, or subsampling plates.
    """

    def __init__(self, model: Any, args: tuple, kwargs: Mapping[str, Any] | None) -> None:
        check_call(model, args, kwargs)
        self.given = self.model = model
        self.args, self.kwargs = tuple(args), dict(kwargs or {})
        self.name = getattr(model, "__name__", "model")
        found = layout_of(self._trace, self.name)
        self.sites, self.observed, self.recorded, self.dims = found.sites, found.observed, found.recorded, found.dims
        self.notes, self.parameters = found.notes, found.parameters
        self.remarks = found.notes[:1] if found.parameters else []  # those that are no reason to doubt the draws
        if self.parameters:
            self.model = HeldParameters(self.parameters)(model)

    def flatten(self, values: Mapping[str, Any]) -> np.ndarray:
        """Convert constrained values of all latent sites, each ``(chains, *shape)``, to flat points ``(chains, size)``.

        Values of recorded sites, such as ``trace.sites`` holds them, are ignored.

        Raises:
            ValueError: missing or unknown sites, wrong shapes, or values outside the support.
        """
        names = [site.name for site in self.sites]
        values = {name: value for name, value in values.items() if name not in self.recorded}
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
            groups ``log_likelihood``, of every observed site, each ``(chains, draws, *batch)``, NaN where masked,
            and ``observed_data``.
        """

        names = [*(site.name for site in self.sites), *self.recorded]

        def one(point: Tensor) -> dict[tuple[str, str], Tensor]:
            nodes = self._trace_at(point, {site.name: site.of(point) for site in self._prior_sites()})
            found = {("latent", name): nodes[name]["value"] for name in names}
            for name in self.observed:
                node, left = nodes[name], hidden(nodes[name])
                log_p = scale_and_mask(node["fn"].log_prob(filled(node)), mask=node["mask"])
                if left is not None:
                    unseen = left.reshape(*left.shape[: left.ndim - node["fn"].event_dim], -1).all(-1)
                    log_p = torch.where(unseen, torch.nan, log_p)
                found["likelihood", name] = log_p
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
