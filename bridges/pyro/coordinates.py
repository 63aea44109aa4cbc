"""Unconstrained coordinates of the latent sites of a Pyro model, and a handler that runs the model at such a point.

A Beta or Dirichlet site may have mass so close to 0 or 1 that the value rounds to the edge. It is therefore drawn, and
its density computed, in log-odds coordinates in float64; only the model sees the rounded value.

``pyro.sample(..., obs_mask=)`` adds a latent site for the missing values, called a *filler* here, whose density is
masked where data are observed. The model ignores the filler there, so these elements get a standard normal density,
which keeps the joint density proper and integrates to one.
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

LOG_ODDS_FAMILIES = (dist.Beta, dist.Dirichlet)
"""Distributions that are sampled in log-odds coordinates."""


class LogOdds(dist.TorchDistribution):
    """A Beta or Dirichlet distribution evaluated in the unconstrained coordinates of ``biject_to(fn.support)``.

    Draws use logarithms of Gamma variables, ``log G(a) = log G(a + 1) + log(uniform) / a``, which do not round to the
    edge. ``log_prob`` is the density of the constrained value, without the Jacobian; see :meth:`log_jacobian`.
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
        """Draw coordinates ``(*sample_shape, *batch, *event)``, float64."""
        shape = (*sample_shape, *self.powers.shape)
        gammas = dist.Gamma(self.powers + 1, torch.ones_like(self.powers)).sample(sample_shape).log()
        gammas = gammas - torch.empty(shape, dtype=torch.float64).exponential_() / self.powers
        rest = gammas.flip(-1).logcumsumexp(-1).flip(-1)
        odds = gammas[..., :-1] - rest[..., 1:]
        return odds + self._stick_offset() if self.simplex else odds[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density ``(*batch)`` of the constrained value at coordinates ``value (*batch, *event)``."""
        shares, _ = self._log_shares(value)
        normaliser = torch.lgamma(self.powers.sum(-1)) - torch.lgamma(self.powers).sum(-1)
        return ((self.powers - 1) * shares).sum(-1) + normaliser

    def log_jacobian(self, value: Tensor) -> Tensor:
        """Return the log-determinant of the derivative of the constrained value by its coordinates, ``(*batch)``."""
        shares, left = self._log_shares(value)
        return (shares[..., :-1] + left).sum(-1)

    def _log_shares(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Log-shares ``(*batch, K)``, and log of the fraction that each stick break leaves ``(*batch, K - 1)``."""
        odds = value - self._stick_offset() if self.simplex else value[..., None]
        left = logsigmoid(-odds)
        length = pad(left.cumsum(-1), (1, 0))
        return torch.cat([logsigmoid(odds) + length[..., :-1], length[..., -1:]], -1), left

    def _stick_offset(self) -> Tensor:
        """Offsets ``log(K - 1), ..., log(1)`` of the log-odds in torch's ``StickBreakingTransform``."""
        count = self.powers.shape[-1] - 1
        return torch.arange(count, 0, -1, dtype=torch.float64).log()


class SubstituteLatents(Messenger):
    """Effect handler that runs a model with given values of its latent sites.

    A site with a diffusion prior that is not in ``values`` is set to zero instead of being drawn. Other latent sites
    that are not in ``unconstrained`` are drawn from their priors.

    Args:
        values: values of sites with diffusion priors by name.
        unconstrained: unconstrained coordinates of other latent sites by name; the model sees the constrained value in
            torch's default dtype.
        fillers: names of the fillers.

    Attributes:
        points: unconstrained coordinates of all sites that were given, or that this handler has drawn.
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
            self.points[name] = _draw_filler(fn, msg["mask"])
        elif name not in self.points and isinstance(unwrapped(fn), LOG_ODDS_FAMILIES):
            self.points[name] = LogOdds(unwrapped(fn)).sample()
        if name in self.points:
            msg["value"] = biject_to(fn.support)(self.points[name].to(torch.get_default_dtype()))
            msg["done"] = True


def to_default_dtype(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert values to torch's default dtype."""
    return {name: value.to(torch.get_default_dtype()) for name, value in values.items()}


def log_density(fn: Any, value: Tensor) -> Tensor:
    """Return ``fn.log_prob(value)``, shape ``(*batch)``, with event dimensions of ``Independent`` summed in float64."""
    if isinstance(fn, dist.Independent):
        return sum_rightmost(log_density(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(log_density(fn.base_dist, value), mask=fn._mask)
    return double(fn.log_prob(value))


def unconstrain(node: Any, handler: SubstituteLatents) -> tuple[Tensor, Tensor]:
    """Return the unconstrained coordinates of a drawn site, and the scalar log-density of that draw in them."""
    fn, name, value = without_masks(node["fn"]), node["name"], node["value"]  # masks do not affect sampling
    u = handler.points.get(name)
    if u is None:
        transform = biject_to(fn.support)
        u = transform.inv(value)
        value = transform(u)  # may differ from the draw near the edge of the support
    log_p, log_jacobian = _log_prob_and_jacobian(fn, u, value)
    if name in handler.fillers:
        log_p = torch.where(_counted_mask(node["fn"], node["mask"]), log_p, 0.0)
        log_jacobian = _filler_log_jacobian(node, u, log_jacobian)
    return u, log_p.sum() + log_jacobian.sum()


def log_prior(node: Any, handler: SubstituteLatents) -> Tensor:
    """Return the scalar log-density of a latent site in unconstrained coordinates, with the model's scale and mask."""
    u = handler.points[node["name"]]
    log_p, log_jacobian = _log_prob_and_jacobian(node["fn"], u, node["value"])
    if node["name"] in handler.fillers:
        log_jacobian = _filler_log_jacobian(node, u, log_jacobian)
    return scale_and_mask(log_p, node["scale"], node["mask"]).sum() + log_jacobian.sum()


def find_fillers(nodes: Mapping[str, Any]) -> set[str]:
    """Return the names of the latent sites that ``obs_mask=`` has added, also after renaming or reparametrisation.

    ``obs_mask=`` splits a site ``y`` into ``y_observed`` and ``y_unobserved``, both with a mask.
    """
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
    """Return ``fn`` without masks, which do not affect sampling."""
    if isinstance(fn, dist.Independent):
        return without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return without_masks(fn.base_dist) if isinstance(fn, dist.MaskedDistribution) else fn


def _log_prob_and_jacobian(fn: Any, u: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of a site's constrained value, and log-Jacobian of its transform at ``u``, each ``(*batch)``."""
    if isinstance(unwrapped(fn), LOG_ODDS_FAMILIES):
        odds, u = rewrapped(fn, LogOdds), u.double()
        return log_density(odds, u), _sum_event(fn, unwrapped(odds).log_jacobian(u))
    log_jacobian = biject_to(fn.support).log_abs_det_jacobian(u.to(value.dtype), value)
    return log_density(fn, value), _sum_event(fn, double(log_jacobian))


def _sum_event(fn: Any, values: Tensor) -> Tensor:
    """Sum ``values`` over all but the batch dimensions of ``fn``."""
    return sum_rightmost(values, values.ndim - len(fn.batch_shape))


def _counted_mask(fn: Any, mask: Any) -> Tensor:
    """Elements of a site whose density is not masked, bool ``(*batch)``."""
    counted = torch.ones(fn.batch_shape, dtype=torch.bool)
    masks = [mask, fn._mask if isinstance(fn, dist.MaskedDistribution) else None]
    for each in masks:
        counted = counted if each is None else counted & torch.as_tensor(each)
    return counted


def _filler_log_jacobian(node: Any, u: Tensor, log_jacobian: Tensor) -> Tensor:
    """Log-Jacobian of the unmasked elements of a filler, and standard normal log-density of the masked ones."""
    normal = _sum_event(node["fn"], -0.5 * double(u) ** 2 - 0.5 * math.log(2 * math.pi))
    return torch.where(_counted_mask(node["fn"], node["mask"]), log_jacobian, normal)


def _draw_filler(fn: Any, mask: Any) -> Tensor:
    """Draw unconstrained coordinates of a filler: from ``fn`` where it is unmasked, standard normal elsewhere."""
    inner = unwrapped(fn)
    u = LogOdds(inner).sample() if isinstance(inner, LOG_ODDS_FAMILIES) else biject_to(fn.support).inv(fn.sample())
    counted = _counted_mask(fn, mask)
    return torch.where(counted.reshape(*counted.shape, *[1] * (u.ndim - counted.ndim)), u, torch.randn_like(u))
