"""Latent sites of a Pyro model in unconstrained coordinates, and a handler that runs the model there.

A Beta or Dirichlet site may have mass closer to 0 and 1 than numbers of that size can tell. Its coordinates are
log-odds, in which it is drawn, and its density computed, in float64; only the model sees what they are rounded to.

``obs_mask=`` leaves a *filler*, a latent site whose density is masked where the data are seen. Nothing reads it there,
so it stands for a standard normal variable of its own, which integrates to one whatever else the model says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.nn.functional import logsigmoid, pad

from ppl_diffusion.arrays import double

from .prior import prior_of, rewrapped, unwrapped

BOUNDED = (dist.Beta, dist.Dirichlet)


class LogOdds(dist.TorchDistribution):
    """A Beta or Dirichlet distribution asked at unconstrained coordinates, those of ``biject_to``.

    Draws are by logarithms of Gamma variables, ``log G(a) = log G(a + 1) + log(uniform) / a``, which do not round to
    the edge. The density is still that of the constrained value: :meth:`log_jacobian` is apart.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self, fn: Any) -> None:
        self.simplex = isinstance(fn, dist.Dirichlet)
        powers = fn.concentration if self.simplex else torch.stack([fn.concentration1, fn.concentration0], -1)
        self.powers = powers.double()
        event = (self.powers.shape[-1] - 1,) if self.simplex else ()
        super().__init__(fn.batch_shape, torch.Size(event), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Coordinates ``(*sample_shape, *batch, *event)``."""
        shape = (*sample_shape, *self.powers.shape)
        gammas = dist.Gamma(self.powers + 1, torch.ones_like(self.powers)).sample(sample_shape).log()
        gammas = gammas - torch.empty(shape, dtype=torch.float64).exponential_() / self.powers
        rest = gammas.flip(-1).logcumsumexp(-1).flip(-1)
        odds = gammas[..., :-1] - rest[..., 1:]
        return odds + self._offset() if self.simplex else odds[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the constrained value, ``(*batch)``."""
        shares, _ = self._logs(value)
        normaliser = torch.lgamma(self.powers.sum(-1)) - torch.lgamma(self.powers).sum(-1)
        return ((self.powers - 1) * shares).sum(-1) + normaliser

    def log_jacobian(self, value: Tensor) -> Tensor:
        """Logarithm of how the constrained value changes with these coordinates, ``(*batch)``."""
        shares, left = self._logs(value)
        return (shares[..., :-1] + left).sum(-1)

    def _logs(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the shares, the last one too, and of what every break of the stick leaves."""
        odds = value - self._offset() if self.simplex else value[..., None]
        left = logsigmoid(-odds)
        length = pad(left.cumsum(-1), (1, 0))
        return torch.cat([logsigmoid(odds) + length[..., :-1], length[..., -1:]], -1), left

    def _offset(self) -> Tensor:
        count = self.powers.shape[-1] - 1
        return torch.arange(count, 0, -1, dtype=torch.float64).log()


class Given(Messenger):
    """Run a model with its latent sites given: diffusion priors as they are, others unconstrained.

    A diffusion prior's site that is not given is zero: it is never drawn from. The model sees values of torch's default
    dtype. Attribute ``points`` holds unconstrained coordinates of what is not drawn by Pyro.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        unconstrained: Mapping[str, Tensor] | None = None,
        *,
        fillers: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.values, self.fillers = values, fillers
        self.points = dict(unconstrained or {})

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"]:
            return
        if prior_of(fn) is not None:
            value = self.values.get(name)
            msg["value"] = torch.zeros(fn.shape()) if value is None else value
            msg["done"] = True
            return
        if name not in self.points and name in self.fillers:
            self.points[name] = _filled(fn, msg["mask"])
        elif name not in self.points and isinstance(unwrapped(fn), BOUNDED):
            self.points[name] = LogOdds(unwrapped(fn)).sample()
        if name in self.points:
            msg["value"] = biject_to(fn.support)(self.points[name].to(torch.get_default_dtype()))
            msg["done"] = True


def native(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in torch's default dtype."""
    return {name: value.to(torch.get_default_dtype()) for name, value in values.items()}


def log_density(fn: Any, value: Tensor) -> Tensor:
    """``fn.log_prob(value)``, summed in float64 over what is one event: an image has many pixels."""
    if isinstance(fn, dist.Independent):
        return sum_rightmost(log_density(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(log_density(fn.base_dist, value), mask=fn._mask)
    return double(fn.log_prob(value))


def unconstrained(node: Any, handler: Given) -> tuple[Tensor, Tensor]:
    """A drawn site in unconstrained coordinates, and the log-density that it was drawn from there."""
    fn, name, value = without_masks(node["fn"]), node["name"], node["value"]  # a mask does not change what is drawn
    u = handler.points.get(name)
    if u is None:
        transform = biject_to(fn.support)
        u = transform.inv(value)
        value = transform(u)  # at an edge not quite what was drawn
    log_p, log_jacobian = _parts(fn, u, value)
    if name in handler.fillers:
        log_p = torch.where(_counted(node["fn"], node["mask"]), log_p, 0.0)
        log_jacobian = _reference(node, u, log_jacobian)
    return u, log_p.sum() + log_jacobian.sum()


def log_prior(node: Any, handler: Given) -> Tensor:
    """Log-density of a latent site in its coordinates, as the model counts it; a scalar."""
    u = handler.points[node["name"]]
    log_p, log_jacobian = _parts(node["fn"], u, node["value"])
    if node["name"] in handler.fillers:
        log_jacobian = _reference(node, u, log_jacobian)
    return scale_and_mask(log_p, node["scale"], node["mask"]).sum() + log_jacobian.sum()


def fillers_of(nodes: Mapping[str, Any]) -> set[str]:
    """Names of the latent sites that ``obs_mask=`` has left, renamed or reparametrised as they may be."""
    found = set()
    for name, node in nodes.items():
        parts = re.fullmatch(r"(.+)_unobserved(.*)", name)
        if parts and not node["is_observed"] and isinstance(node["mask"], Tensor):
            base, suffix = parts.groups()
            seen = nodes.get(f"{base}_observed{suffix}", nodes.get(f"{base}_observed"))
            if seen is not None and seen["is_observed"] and isinstance(seen["mask"], Tensor):
                found.add(name)
    return found


def without_masks(fn: Any) -> Any:
    """What a distribution draws from, which masks do not change."""
    if isinstance(fn, dist.Independent):
        return without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return without_masks(fn.base_dist) if isinstance(fn, dist.MaskedDistribution) else fn


def _parts(fn: Any, u: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of a site's value, and the logarithm of its change with the coordinates, each ``(*batch)``."""
    if isinstance(unwrapped(fn), BOUNDED):
        odds, u = rewrapped(fn, LogOdds), u.double()
        return log_density(odds, u), _of_batch(fn, unwrapped(odds).log_jacobian(u))
    log_jacobian = biject_to(fn.support).log_abs_det_jacobian(u.to(value.dtype), value)
    return log_density(fn, value), _of_batch(fn, double(log_jacobian))


def _of_batch(fn: Any, values: Tensor) -> Tensor:
    return sum_rightmost(values, values.ndim - len(fn.batch_shape))


def _counted(fn: Any, mask: Any) -> Tensor:
    """Where the density of a site is counted, bool ``(*batch)``."""
    counted = torch.ones(fn.batch_shape, dtype=torch.bool)
    masks = [mask, fn._mask if isinstance(fn, dist.MaskedDistribution) else None]
    for each in masks:
        counted = counted if each is None else counted & torch.as_tensor(each)
    return counted


def _reference(node: Any, u: Tensor, log_jacobian: Tensor) -> Tensor:
    """The Jacobian where a filler is counted, and elsewhere a standard normal density."""
    normal = _of_batch(node["fn"], -0.5 * double(u) ** 2 - 0.5 * math.log(2 * math.pi))
    return torch.where(_counted(node["fn"], node["mask"]), log_jacobian, normal)


def _filled(fn: Any, mask: Any) -> Tensor:
    """A draw of a filler."""
    inner = unwrapped(fn)
    u = LogOdds(inner).sample() if isinstance(inner, BOUNDED) else biject_to(fn.support).inv(fn.sample())
    counted = _counted(fn, mask)
    return torch.where(counted.reshape(*counted.shape, *[1] * (u.ndim - counted.ndim)), u, torch.randn_like(u))
