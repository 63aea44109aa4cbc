"""A Pyro model as a factor of an expression: ``load("digits") * from_model(likelihood, (y,), ...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppl_diffusion.arrays import on_cpu
from ppl_diffusion.models.forms import Reference
from ppl_diffusion.potentials.leaf import Leaf
from ppl_diffusion.sampling.advice import warn_caller
from ppl_diffusion.schedule import NoiseSchedule

from .checks import check_rerun
from .curved import doubts_of_weights, find_curved
from .flat import BATCHABLE, NotBatchable, check_call, energies_of, gradient_of
from .likelihood import ObservedSites, Widening, clean_estimate, linearise
from .sites import is_deterministic, sample_sites


class ModelPotential(Leaf):
    """The joint density of a Pyro model as a function of one latent site; built by :func:`from_model`."""

    backend = "torch"

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        site: str,
        schedule: NoiseSchedule,
        reference: Reference,
    ) -> None:
        self.model, self.args, self.kwargs, self.site, self.schedule = model, args, dict(kwargs), site, schedule
        self._reference = reference
        self.name = getattr(model, "__name__", "model")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            nodes = sample_sites(poutine.trace(_SiteAtZero(site)(model)).get_trace(*args, **kwargs).nodes, self.name)
        latent = [name for name, node in nodes.items() if not node["is_observed"]]
        if latent != [site]:
            raise ValueError(
                f"{self.name} must have the one latent site {site!r}, it has {latent or 'none'}: condition on the "
                "others, pyro.condition(model, {...}), or sample them all with anneal_model"
            )
        support = nodes[site]["fn"].support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(
                f"the site {site} of {self.name} has the support {support} and not all real numbers: sample it from a "
                "prior on those, dist.ImproperUniform(dist.constraints.real, (), shape) for a flat one, and transform "
                "it in the model"
            )
        self.event_shape = tuple(nodes[site]["value"].shape)
        names = [name for name, node in nodes.items() if name != site and not is_deterministic(node)]
        mean, variance = (np.broadcast_to(value, self.event_shape) for value in reference)
        centre = torch.from_numpy(mean.flatten()).to(torch.get_default_dtype())
        spread = float(np.mean(variance)) ** 0.5

        def run(x: Tensor) -> Any:
            return self._trace_nodes(x.reshape(self.event_shape).to(centre))

        found = linearise(run, names, at=centre, spread=spread)
        curved = find_curved(run, names, at=centre, spread=spread)
        self.observations = ObservedSites([(self, self.event_shape)], "widened", found, curved)
        zeros, self.one_by_one = torch.zeros(2, *self.event_shape), False
        check_rerun([], lambda: self._trace_nodes(zeros[0]), self.name)
        try:
            self._evaluate_energy(zeros, 0)
        except NotBatchable:
            self.one_by_one = True
            warn_caller(f"{self.name} cannot be batched and runs chain by chain, which is slow: {BATCHABLE}")

    @property
    def reference(self) -> Reference:
        """Mean and variance of the data: the ``reference`` argument of :func:`from_model`."""
        return self._reference

    def doubts_of_weights(self, shares: np.ndarray, *, used: bool) -> list[str]:
        return doubts_of_weights(self.observations.curved, self.name, shares, used=used)

    @property
    def exponent(self) -> float:
        """Zero: at the noisiest level ``x`` is noise, and the likelihood does not change the start density."""
        return 0.0

    def _evaluate(self, x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().cpu().clone().requires_grad_()  # the model runs on the CPU, wherever networks are
            energy = self._evaluate_energy(leaf, level)
            gradient = gradient_of(energy, leaf)
        return energy.detach().to(x.device), gradient.to(x.device)

    @on_cpu()
    def _evaluate_energy(self, x: Tensor, level: Any) -> Tensor:
        level = int(level)
        clean = clean_estimate(x.cpu(), self, level, "widened")
        flat = clean.to(torch.get_default_dtype()).reshape(-1, *self.event_shape)
        widenings = self.observations.widenings(level)

        def one(value: Tensor, _: Mapping[str, Tensor]) -> Tensor:
            return self._point_energy(value, level, widenings)

        energy = energies_of(one, flat, {}, model=self.name, one_by_one=self.one_by_one)
        return energy.reshape(self._chain_shape(x)).to(x.device)

    def _point_energy(self, value: Tensor, level: int, widenings: Mapping[str, Widening]) -> Tensor:
        """Scalar energy of the model at one ``value (*event_shape)`` of the site."""
        total: Any = 0.0
        nodes, from_points = sample_sites(self._trace_nodes(value), self.name), self.observations.from_points(level)
        for name, node in nodes.items():
            if name not in from_points:
                total = total - self.observations.log_density(name, node, level, widenings)
        if not from_points:
            return total

        def run(displacement: Tensor) -> Any:
            return self._trace_nodes(value + displacement.to(value.dtype).reshape(value.shape))

        return total - self.observations.curved_log_density(run, nodes, level)

    def _trace_nodes(self, value: Tensor) -> Any:
        conditioned = poutine.condition(self.model, {self.site: value})
        return poutine.trace(conditioned).get_trace(*self.args, **self.kwargs).nodes


class _SiteAtZero(Messenger):
    """Effect handler that sets a latent site to zero instead of drawing it: an improper prior cannot be sampled."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["is_observed"]:
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True


@on_cpu()
def from_model(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    site: str = "x",
    schedule: NoiseSchedule,
    reference: Reference = (0.0, 1.0),
) -> ModelPotential:
    """Return a Pyro model's joint density as a potential, to be multiplied with other potentials.

    At level 0 its energy is minus the model's log-density of ``x``; at noisier levels the observed sites are widened
    or tempered as described in ``bridges.pyro.likelihood``.

    Args:
        model: a Pyro model whose only latent site is ``site``, with real support. To use only its likelihood, give
            the site a flat prior, ``dist.ImproperUniform``.
        args, kwargs: arguments of the model.
        site: name of the latent site.
        schedule: noise schedule of the potentials that it is composed with.
        reference: mean and variance of the data of these potentials, such as ``load("digits").reference``.

    Raises:
        TypeError: ``args`` is no tuple, or ``kwargs`` no mapping.
        ValueError: the model has other latent sites, or the support of ``site`` is not real.
    """
    check_call(model, args, kwargs)
    return ModelPotential(model, tuple(args), kwargs or {}, site, schedule, reference)
