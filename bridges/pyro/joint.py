"""The joint density of a Pyro model with a diffusion prior, as a potential over one flat vector.

At noise level ``k`` the joint density is a function of the noised ``x_k``: its prior is the potential at that level,
the other latent sites keep their priors (in unconstrained coordinates, with the Jacobian), and the observed sites
enter as described in ``bridges.pyro.likelihood``. At level 0 this is the exact joint density of the model; the higher
levels form an annealing path to it.

Everything but the diffusion prior is batched over chains by ``torch.func.vmap`` of the model itself. The model sees
values of torch's default dtype and runs on the CPU, even if the networks of its priors run on a GPU. Energies are
summed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ppl_diffusion.potentials.algebra import Potential
from ppl_diffusion.potentials.target import Target

from ..torch_jax.convert import contains_jax
from .checks import check_rerun, check_same_sites, precision_warnings
from .coordinates import log_prior
from .curved import CurvedSites, doubts_of_weights, find_curved
from .flat import energies_of, gradient_of
from .likelihood import Likelihood, Linearisation, ObservedSites, Widening, clean_estimate, linearise
from .refreshment import metropolis
from .sites import Site, sample_sites
from .starts import StartsFromPriors

PROBE_DRAWS = 64
"""Number of draws of the latent sites with which a model is checked and linearised when it is built."""


class JointPotential(StartsFromPriors, Target):
    """The joint density of a Pyro model over its flattened latent sites, ``x (*chains, size)``.

    ``bridges.pyro.anneal_model`` and ``exchange_model`` build it.

    Args:
        model: a Pyro model with at least one ``DiffusionPrior`` site.
        args, kwargs: arguments of the model.
        likelihood: how observed sites enter at noisy levels, see ``bridges.pyro.likelihood``.

    Attributes:
        notes: what is wrong with the model, in sentences.
        one_by_one: whether to run a model that ``vmap`` cannot batch for one chain after the other; by default such a
            model is refused.

    Raises:
        ValueError: no diffusion prior, or one that depends on other sites; latent sites that are discrete or cannot be
            sampled; random numbers that are not sites; subsampling plates; priors with different noise schedules;
            an unknown ``likelihood``.
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
        if any(prior.schedule != priors[0].schedule for prior in priors):
            schedules = ", ".join(f"{prior}: {prior.schedule}" for prior in priors)
            raise ValueError(
                f"the priors of {self.name} have different noise schedules ({schedules}): give them the same, such as "
                "schedule=NoiseSchedule.cosine(100)"
            )
        self.schedule = priors[0].schedule
        self.event_shape = (self.sites[-1].stop,)
        if likelihood == "tweedie" and any(contains_jax(prior) for prior in priors):
            raise ValueError(
                "JAX potentials in torch lack the second derivatives of likelihood='tweedie': leave likelihood= out, "
                "or give the prior backend='torch'"
            )
        drawn, _ = self.start(len(self.schedule) - 1, chains=PROBE_DRAWS, rng=np.random.default_rng(0))
        self.notes += precision_warnings(self.sites, drawn, self.name)
        point = torch.from_numpy(drawn[0])
        values = {site.name: site.of(point) for site in self._prior_sites()}
        check_rerun(self.sites, lambda: self._trace_at(point, values), self.name)
        dependent = [] if likelihood == "widened" else self._dependent_on_x(*torch.from_numpy(drawn[:2]))
        if dependent:
            self.notes.append(
                f"priors of {self.name} depend on x ({', '.join(dependent)}): likelihood={likelihood!r} evaluates them "
                "far from x at noisy levels, so that draws and evidence are useless: leave likelihood= out"
            )
        sources = [(site.prior.potential, site.shape) for site in self._prior_sites()]  # type: ignore[union-attr]
        linear, curved = self._linearised(drawn) if likelihood == "widened" else ({}, None)
        self.observations = ObservedSites(sources, likelihood, linear, curved)

    def update(self, args: tuple, kwargs: Mapping[str, Any] | None = None) -> None:
        """Take other arguments of the model, such as other data; what has been compiled for a kernel is used again.

        Both ``args`` and ``kwargs`` are replaced, and parameters are taken at their present values.

        Raises:
            ValueError: with these arguments the model has other latent sites, or other noise levels.
        """
        other = JointPotential(self.given, args, kwargs, likelihood=self.likelihood)
        spaces = [([(s.name, s.shape, s.prior is None) for s in p.sites], p.schedule) for p in (self, other)]
        if spaces[0] != spaces[1]:
            raise ValueError(f"with these arguments {self.name} has other latent sites: make a new JointPotential")
        kept = ("_memo", "one_by_one")
        self.__dict__.update({name: value for name, value in other.__dict__.items() if name not in kept})

    def parts(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(self.priors))

    def doubts_of_weights(self, shares: np.ndarray, *, used: bool) -> list[str]:
        told = doubts_of_weights(self.observations.curved, self.name, shares, used=used)
        return told + super().doubts_of_weights(shares, used=used)

    def parts_at(self, positions: Any) -> list[tuple[Any, Any]]:
        """Return the potential of each diffusion prior with its points ``(points, *event_shape)`` of flat ``positions
        (chains, size)``: at most as many as there are chains, of a plate a random part."""
        if positions is None:
            return super().parts_at(positions)
        found = []
        for site in self._prior_sites():
            prior = site.prior.potential  # type: ignore[union-attr]
            points = np.asarray(positions)[:, site.start : site.stop].reshape(-1, *prior.event_shape)
            if len(points) > len(positions):
                points = points[np.random.default_rng(0).permutation(len(points))[: len(positions)]]
            found.append((prior, points))
        return found

    @property
    def diffused(self) -> np.ndarray:
        """Mask of the coordinates that have a diffusion prior, and so a noise level: bool ``(size,)``."""
        kinds = [np.full(site.stop - site.start, site.prior is not None) for site in self.sites]
        return np.concatenate(kinds)

    @property
    def exponent(self) -> np.ndarray:
        """Sum of the exponents of its prior for each coordinate that has one, with the site's scale, and 1 for the
        others: ``(size,)``."""
        found = np.ones(self.event_shape)
        for site in self._prior_sites():
            prior = site.prior.potential  # type: ignore[union-attr]
            powers = site.powers().reshape(-1, *[1] * len(prior.event_shape))
            found[site.start : site.stop] = (powers * np.broadcast_to(prior.exponent, prior.event_shape)).flatten()
        return found

    def start(self, level: int, *, chains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw starting points: ``x`` from the start density of its potential, other latent sites from their priors.

        Returns:
            Flat points ``(chains, size)`` and the log-density that they were drawn from, ``(chains,)``.
        """
        values, log_density = np.empty((chains, *self.event_shape)), np.zeros(chains)
        drawn: dict[str, Tensor] = {}
        for site in self.sites:
            if site.prior is not None:
                batch = site.shape[: len(site.shape) - len(site.prior.event_shape)]
                copies = chains * int(np.prod(batch))
                x, log_q = site.prior.potential.start(level, chains=copies, rng=rng)
                powers, rank = np.tile(site.powers().ravel(), chains), len(site.prior.event_shape)
                x = x / np.sqrt(powers).reshape(-1, *[1] * rank)
                log_q = log_q + 0.5 * np.log(powers) * np.prod(site.prior.event_shape)
                values[:, site.start : site.stop] = x.reshape(chains, -1)
                log_density += log_q.reshape(chains, -1).sum(1)
                drawn[site.name] = self._clean_value(site, torch.from_numpy(x.reshape(chains, *site.shape)), level)
        self._start_others(drawn, values, log_density, rng)
        return values, log_density

    @property
    def has_energy(self) -> bool:
        """Whether all of its priors have an energy; otherwise the whole joint density is accepted by work."""
        return all(prior.has_energy for prior in self.priors)

    def refresh(self, positions: Any, level: int, *, rng: np.random.Generator) -> tuple[Any, Any]:
        """Update latent coordinates without a diffusion prior by Metropolis steps at fixed ``x``.

        Each step proposes a Gaussian move of random size of one random coordinate, and evaluates no network. An unknown
        scale on which a noisy level has little information can drift far away, and leapfrog steps that suit ``x`` would
        bring it back slowly.

        Returns:
            New positions ``(chains, size)``, and the change of energy ``(chains,)``.
        """
        free = np.flatnonzero(~self.diffused)
        if not len(free) or (self.likelihood == "tweedie" and level > 0):
            return positions, 0.0
        start = torch.from_numpy(positions)
        clean = self._clean_values(start, level)
        x, change = metropolis(lambda x: self._energy_without_priors(x, clean, level), start, free, rng=rng)
        return x.numpy(), change.numpy()

    def _linearised(self, drawn: np.ndarray) -> tuple[dict[str, Linearisation], CurvedSites | None]:
        """Linearise the observed sites at the prior mean of ``x`` and at the mean of ``drawn (n, size)`` elsewhere, and
        find those that are not linear."""
        centre = torch.from_numpy(drawn.mean(0))
        for site in self._prior_sites():
            mean = np.broadcast_to(site.prior.potential.reference[0], site.prior.event_shape)  # type: ignore[union-attr]
            centre[site.start : site.stop] = torch.from_numpy(np.broadcast_to(mean, site.shape).flatten())
        diffused = torch.from_numpy(np.flatnonzero(self.diffused))

        def run(x: Tensor) -> Any:
            point = centre.index_copy(0, diffused, x)
            return self._trace_at(point, {site.name: site.of(point) for site in self._prior_sites()})

        spread = max(float(np.mean(prior.reference[1])) for prior in self.priors) ** 0.5
        found = linearise(run, self.observed, at=centre[diffused], spread=spread)
        return found, find_curved(run, self.observed, at=centre[diffused], spread=spread)

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
            rest = self._energy_without_priors(leaf, self._clean_values(leaf, level), level)
            gradient = gradient_of(rest, leaf)  # zero if nothing but the priors depends on a latent site
        energy = rest.detach()
        for site in self._prior_sites():
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
        if self.likelihood == "tweedie" and not flat.requires_grad:  # the estimate needs a gradient
            with torch.enable_grad():
                energy = self._energy(flat.detach().requires_grad_(), int(level)).detach()
        else:
            energy = self._energy(flat, int(level))
        return energy.reshape(x.shape[:-1]).to(x.device)

    def _energy(self, flat: Tensor, level: int) -> Tensor:
        """Energy ``(chains,)`` of ``flat (chains, size)``, differentiable; one forward pass of each prior."""
        energy: Any = 0.0
        clean: dict[str, Tensor] = {}
        for site in self._prior_sites():
            prior = site.prior.potential  # type: ignore[union-attr]
            schedule, points = prior.schedule, site.of(flat)
            value = prior.energy(points.to(prior.device), level=level).cpu()
            energy = energy + site.total(value)
            if self.likelihood == "tweedie" and level > 0:
                (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
                clean[site.name] = (points - schedule.sigma(level) ** 2 * slope) / schedule.alpha(level)
        return energy + self._energy_without_priors(flat, clean or self._clean_values(flat, level), level)

    def _clean_values(self, flat: Tensor, level: int) -> dict[str, Tensor]:
        """Values ``(chains, *shape)`` at which the model is run for each site with a diffusion prior."""
        return {site.name: self._clean_value(site, site.of(flat), level) for site in self._prior_sites()}

    def _clean_value(self, site: Site, x: Any, level: int) -> Any:
        return clean_estimate(x, site.prior.potential, level, self.likelihood)  # type: ignore[union-attr]

    def _energy_without_priors(self, flat: Tensor, clean: Mapping[str, Tensor], level: int) -> Tensor:
        """Energy ``(chains,)`` without the diffusion priors, whose sites take the values ``clean (chains, *shape)``."""
        widenings = self.observations.widenings(level)

        def one(point: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
            return -self._log_density_without_priors(point, seen, level, widenings)

        return energies_of(one, flat, clean, model=self.name, one_by_one=self.one_by_one)

    def _log_density_without_priors(
        self, point: Tensor, seen: Mapping[str, Tensor], level: int, widenings: Mapping[str, Widening]
    ) -> Tensor:
        """Scalar log-density of everything but the diffusion priors at ``point (size,)``."""
        free = self._free_values(point)
        handler = self._substitute(seen, free)
        total = point.new_zeros((), dtype=torch.float64)
        found = sample_sites(self._trace(handler), self.name)
        check_same_sites(self.sites, found, self.name)
        from_points = self.observations.from_points(level)
        for name, node in found.items():
            if name in seen or name in from_points:
                continue
            if not node["is_observed"]:
                total = total + log_prior(node, handler)
                continue
            total = total + self.observations.log_density(name, node, level, widenings)
        if not from_points:
            return total

        def run(displacement: Tensor) -> Any:
            parts = displacement.split([site.stop - site.start for site in self._prior_sites()])
            there = {name: seen[name] + part.reshape(seen[name].shape) for name, part in zip(seen, parts, strict=True)}
            return self._trace(self._substitute(there, free))

        return total + self.observations.curved_log_density(run, found, level)
