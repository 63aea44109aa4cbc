"""The joint density of a Pyro model with a diffusion prior, as a potential over one flat vector.

At noise level ``k`` the model is asked about ``x_k``: its prior is the potential at that level, its other
latent sites keep their own priors (in unconstrained coordinates, with the Jacobian), and its observed sites are
asked as ``bridges.pyro.likelihood`` says. At level 0 that is the exact joint density of the raw ``x``; the levels
above are a path to it.

Everything but the prior is batched over chains by ``torch.func.vmap`` of the model itself, which sees values
of torch's default dtype and runs on the CPU, wherever the networks of its priors are; energies are summed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pyro
import torch
from torch import Tensor

from ppl_diffusion.potential import Potential

from ..torch_jax import holds_jax
from .coordinates import log_prior, unconstrained
from .flat import FlatModel
from .likelihood import Likelihood, ObservedSites, Seen, Widening, seen, stand_in
from .sites import Site, check_priors, check_randomness, sample_sites

REFRESHMENTS = 8
"""Metropolis steps of other latent sites on arrival at a level."""

REFRESHMENT_SIZES = (-2.0, 0.5)
"""Least and greatest standard deviation of such a step, as powers of ten, in unconstrained coordinates."""

PROBES = 64
"""Draws of the latent sites by which a model is looked at."""


class JointPotential(FlatModel, Potential):
    """A Pyro model's joint density over all latent sites, flattened; built by ``bridges.pyro.anneal_model``.

    Args:
        model: a Pyro model with at least one ``DiffusionPrior`` site.
        args, kwargs: of the model.
        likelihood: how observed sites are asked at noisy levels, see the module.

    Attributes:
        one_by_one: whether a model that cannot be batched may run for one chain after the other; by default it is
            refused.

    Raises:
        ValueError: no diffusion prior or one that depends on other sites, discrete latent sites or others that cannot
            be drawn, random numbers that are no sites, plates that draw a subsample, schedules of unequal length, an
            unknown ``likelihood``.
    """

    backend = "torch"

    def __init__(
        self, model: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None, *, likelihood: Likelihood
    ) -> None:
        if likelihood not in get_args(Likelihood):
            raise ValueError(f"unknown likelihood {likelihood!r}: use one of {', '.join(get_args(Likelihood))}")
        super().__init__(model, args, kwargs)
        self.likelihood, self.one_by_one = likelihood, False
        priors = self.priors = [site.prior.potential for site in self.sites if site.prior is not None]
        if not priors:
            raise ValueError(
                f'{self.name} has no diffusion prior: write x = pyro.sample("x", DiffusionPrior(prior)), and above the '
                'model prior = load("digits")'
            )
        if len({len(prior.schedule) for prior in priors}) > 1:
            counts = ", ".join(f"{prior}: {len(prior.schedule)}" for prior in priors)
            raise ValueError(
                f"the priors of {self.name} have unequal numbers of levels ({counts}): anneal level by level"
            )
        self.schedule = priors[0].schedule
        self.event_shape = (self.sites[-1].stop,)
        if likelihood == "tweedie" and any(holds_jax(prior) for prior in priors):
            raise ValueError(
                "JAX potentials in torch lack the second derivatives of likelihood='tweedie': leave likelihood= out, "
                "or give the prior backend='torch'"
            )
        drawn, _ = self.start(len(self.schedule) - 1, chains=PROBES, rng=np.random.default_rng(0))
        point = torch.from_numpy(drawn[0])
        check_randomness(lambda: self._nodes(point, {s.name: s.of(point) for s in self._priors()}), self.name)
        sources = [(site.prior.potential, site.shape) for site in self._priors()]  # type: ignore[union-attr]
        self.observations = ObservedSites(sources, likelihood, self._seen(drawn) if likelihood == "widened" else {})

    def parts(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(self.priors))

    @property
    def diffused(self) -> np.ndarray:
        """Which coordinates a noise level belongs to, bool ``(size,)``."""
        kinds = [np.full(site.stop - site.start, site.prior is not None) for site in self.sites]
        return np.concatenate(kinds)

    def start(self, level: int, *, chains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Diffusion priors start as any potential does, other sites from their own priors."""
        values, log_density = np.empty((chains, *self.event_shape)), np.zeros(chains)
        drawn: dict[str, Tensor] = {}
        for site in self.sites:
            if site.prior is not None:
                batch = site.shape[: len(site.shape) - len(site.prior.event_shape)]
                copies = chains * int(np.prod(batch))
                x, log_q = site.prior.potential.start(level, chains=copies, rng=rng)
                values[:, site.start : site.stop] = x.reshape(chains, -1)
                log_density += log_q.reshape(chains, -1).sum(1)
                drawn[site.name] = self._stand_in(site, torch.from_numpy(x.reshape(chains, *site.shape)), level)
        others = [site for site in self.sites if site.prior is None]
        if others or len(drawn) > 1:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
                torch.default_generator.manual_seed(int(rng.integers(2**63)))
                for chain in range(chains):
                    handler = self._given({name: value[chain] for name, value in drawn.items()})
                    nodes = self._run(handler)
                    check_priors(self._priors(), nodes, self.name)
                    for site in others:
                        u, log_p = unconstrained(nodes[site.name], handler)
                        values[chain, site.start : site.stop] = u.numpy().ravel()
                        log_density[chain] += float(log_p)
        return values, log_density

    def refresh(self, positions: Any, level: int, *, rng: np.random.Generator) -> tuple[Any, Any]:
        """Metropolis steps of one other latent coordinate at a time, of random sizes: they ask no network.

        An unknown scale that a noisy level says nothing of can wander far off; a leapfrog that suits ``x`` would take
        long to bring it back.
        """
        free = np.flatnonzero(~self.diffused)
        if not len(free) or (self.likelihood == "tweedie" and level > 0):
            return positions, 0.0
        x = torch.from_numpy(np.array(positions, dtype=np.float64))
        rows, clean = torch.arange(len(x)), self._clean(x, level)
        with torch.no_grad():
            begun = energy = _failed_as_infinite(self._rest(x, clean, level))
            for _ in range(REFRESHMENTS):
                sizes = 10 ** rng.uniform(*REFRESHMENT_SIZES, len(x))
                proposed = x.clone()
                proposed[rows, rng.choice(free, len(x))] += torch.from_numpy(sizes * rng.standard_normal(len(x)))
                there = _failed_as_infinite(self._rest(proposed, clean, level))
                accepted = there + torch.from_numpy(np.log(rng.random(len(x)))) < energy
                x, energy = torch.where(accepted[:, None], proposed, x), torch.where(accepted, there, energy)
        return x.numpy(), torch.where(energy == begun, 0.0, energy - begun).numpy()

    def _seen(self, drawn: np.ndarray) -> dict[str, Seen]:
        """Measured at the mean of the priors, other latent sites at the mean of draws from theirs."""
        centre = torch.from_numpy(drawn.mean(0))
        for site in self._priors():
            mean = np.broadcast_to(site.prior.potential.reference[0], site.prior.event_shape)  # type: ignore[union-attr]
            centre[site.start : site.stop] = torch.from_numpy(np.broadcast_to(mean, site.shape).flatten())
        diffused = torch.from_numpy(np.flatnonzero(self.diffused))

        def run(x: Tensor) -> Any:
            point = centre.index_copy(0, diffused, x)
            return self._nodes(point, {site.name: site.of(point) for site in self._priors()})

        spread = max(float(np.mean(prior.reference[1])) for prior in self.priors) ** 0.5
        return seen(run, self.observed, at=centre[diffused], spread=spread)

    def _evaluate(self, x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        chains, level = x.shape[:-1], int(level)
        flat = x.detach().cpu().reshape(-1, *self.event_shape)
        if self.likelihood == "tweedie" and level > 0:
            with torch.enable_grad():
                leaf = flat.requires_grad_()
                energy = self._energy(leaf, level)
                (gradient,) = torch.autograd.grad(energy.sum(), leaf)
            return energy.detach().reshape(chains).to(x.device), gradient.reshape(x.shape).to(x.device)
        with torch.enable_grad():
            leaf = flat.clone().requires_grad_()
            rest = self._rest(leaf, self._clean(leaf, level), level)
            gradient = torch.zeros_like(flat)
            if rest.requires_grad:  # a model may observe nothing
                gradient += torch.autograd.grad(rest.sum(), leaf)[0]
        energy = rest.detach()
        for site in self._priors():
            prior = site.prior.potential  # type: ignore[union-attr]
            found = prior.value_and_grad(site.of(flat).to(prior.device), level=level)
            value, slope = (part.cpu() for part in found)
            energy, weights = energy + site.total(value), site.weights(value)
            if isinstance(weights, Tensor):
                weights = weights.reshape(*value.shape, *[1] * (slope.ndim - value.ndim)).to(slope.dtype)
            slope = weights * slope
            gradient[:, site.start : site.stop] += slope.reshape(len(flat), -1).to(gradient.dtype)
        return energy.reshape(chains).to(x.device), gradient.reshape(x.shape).to(x.device)

    def _evaluate_energy(self, x: Tensor, level: Any) -> Tensor:
        flat = x.cpu().reshape(-1, *self.event_shape)
        if self.likelihood == "tweedie" and not flat.requires_grad:  # the estimate is a gradient itself
            with torch.enable_grad():
                energy = self._energy(flat.detach().requires_grad_(), int(level)).detach()
        else:
            energy = self._energy(flat, int(level))
        return energy.reshape(x.shape[:-1]).to(x.device)

    def _energy(self, flat: Tensor, level: int) -> Tensor:
        """Energies ``(chains,)`` of ``flat (chains, size)``, differentiable; one forward pass of each prior."""
        energy: Any = 0.0
        clean: dict[str, Tensor] = {}
        for site in self._priors():
            prior = site.prior.potential  # type: ignore[union-attr]
            schedule, points = prior.schedule, site.of(flat)
            value = prior.energy(points.to(prior.device), level=level).cpu()
            energy = energy + site.total(value)
            if self.likelihood == "tweedie" and level > 0:
                (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
                clean[site.name] = (points - schedule.sigma(level) ** 2 * slope) / schedule.alpha(level)
        return energy + self._rest(flat, clean or self._clean(flat, level), level)

    def _clean(self, flat: Tensor, level: int) -> dict[str, Tensor]:
        """What the observed sites see of each diffusion prior's site."""
        return {site.name: self._stand_in(site, site.of(flat), level) for site in self._priors()}

    def _stand_in(self, site: Site, x: Any, level: int) -> Any:
        return stand_in(x, site.prior.potential, level, self.likelihood)  # type: ignore[union-attr]

    def _rest(self, flat: Tensor, clean: Mapping[str, Tensor], level: int) -> Tensor:
        """Minus the log-density of everything but the diffusion priors, ``(chains,)``."""
        widenings = self.observations.widenings(level)

        def one(point: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
            return -self._log_rest(point, seen, level, widenings)

        with pyro.validation_enabled(False):  # its checks branch on values, which vmap cannot
            try:
                if len(flat) > 1:
                    return torch.func.vmap(one)(flat, dict(clean))
            except RuntimeError as error:
                if not self.one_by_one:
                    one(flat[0], {name: value[0] for name, value in clean.items()})  # what is wrong by itself says so
                    reason = str(error).splitlines()[0]
                    raise ValueError(
                        f"{self.name} cannot be batched over chains ({reason}): write it without .item(), without "
                        "branches on latent values, and with torch functions only; or use a kernel of bridges.pyro, or "
                        "chains=1"
                    ) from error
            rows = ({name: value[i] for name, value in clean.items()} for i in range(len(flat)))
            return torch.stack([one(point, row) for point, row in zip(flat, rows, strict=True)])

    def _log_rest(
        self, point: Tensor, seen: Mapping[str, Tensor], level: int, widenings: Mapping[str, Widening]
    ) -> Tensor:
        handler = self._given(seen, self._free(point))
        total = point.new_zeros((), dtype=torch.float64)
        for name, node in sample_sites(self._run(handler), self.name).items():
            if name in seen:
                continue
            if not node["is_observed"]:
                total = total + log_prior(node, handler)
                continue
            total = total + self.observations.log_density(name, node, level, widenings)
        return total


def _failed_as_infinite(energy: Tensor) -> Tensor:
    """Energies in which whatever is not finite, minus infinity too, is the energy of a point of density zero."""
    return torch.where(energy.isfinite(), energy, torch.inf)
