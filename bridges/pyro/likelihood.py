"""The likelihood along the ladder: how the observed sites of a Pyro model enter at a noisy level.

At level ``k`` they are evaluated at an estimate of the clean ``x``, and are widened or raised to a power:

    widened     mean of x given x_k                        covariance scale^2 I + J V J^T, V = diag(Var(x | x_k))
                several points x_0 given x_k               where a site is not linear in x, see ``bridges.pyro.curved``
    tempered    x_k / alpha_k                              exponent alpha_k^2 / (alpha_k^2 + sigma_k^2)
    rescaled    x_k / alpha_k                              exponent 1
    tweedie     (x_k - sigma_k^2 grad U(x_k)) / alpha_k    exponent 1

At level 0 all four are the exact likelihood of ``x``; the higher levels form an annealing path to it. Mean and variance
of x given x_k are those of Gaussian data with the mean m and the variance v of the prior (``Potential.reference``),

    m + alpha v (x_k - alpha m) / (alpha^2 v + sigma^2)    and    sigma^2 v / (alpha^2 v + sigma^2)

coordinate by coordinate. ``J`` is the Jacobian of the site's location with respect to ``x`` (:func:`linearise`). For
independent Gaussian coordinates and one observed site that is linear in them, the widened path is exact: at every
level it is the posterior of ``x_k`` and of an unknown noise scale. At the noisiest level the likelihood hardly depends
on ``x_k``, so chains start in a region of high density. An unknown noise scale is neither inflated along the ladder
nor absorbed by the widening: behind a blur, most directions of the data are insensitive to ``x`` and determine the
scale at every level.

Widening applies to observed sites with a location and a scale (Normal, StudentT, Laplace, Cauchy); others are tempered.
The full covariance is used for an unmasked Normal with one scale in a model that is not too large (``MAX_JACOBIAN``).
Other sites are widened value by value, as if each value observed one coordinate of ``x``. Several observed sites are
widened independently of each other, as if each had its own uncertainty of ``x``.

A site whose location is not linear in ``x``, or whose scale depends on it, is seen from several points instead of one.

Source of widening: Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021),
https://arxiv.org/abs/2108.01368
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_diffusion.potentials.algebra import Potential

from .coordinates import log_density
from .curved import LOCATION_SCALE_FAMILIES, CurvedSites
from .masks import filled
from .prior import rewrapped, unwrapped
from .rows import map_rows

Likelihood = Literal["widened", "tempered", "rescaled", "tweedie"]

MAX_JACOBIAN = 2**23
"""Largest number of entries of a Jacobian, observed values times coordinates of ``x``: 67 MB in float64."""

MAX_KEPT = 2**25
"""Largest number of entries of the bases of all widenings that are cached: 268 MB in float64."""

RELATIVE_TOLERANCE = 1e-3
"""Relative size below which entries of a Jacobian count as zero, and differences of variances as none."""


def clean_estimate(x: Tensor, prior: Potential, level: int, likelihood: Likelihood) -> Tensor:
    """Estimate the clean ``x`` from ``x_k``, of the same shape, for every ``likelihood`` but "tweedie"."""
    if level == 0:
        return x
    alpha, sigma = prior.schedule.alpha(level), prior.schedule.sigma(level)
    if likelihood != "widened":
        return x / alpha
    mean, variance = (torch.as_tensor(value, dtype=x.dtype) for value in prior.reference)
    return mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)


class Widening(NamedTuple):
    """The covariance that is added to an observed site: ``basis diag(variances) basis^T``.

    Attributes:
        variances: with a basis, shape ``(rank,)``; without, a number or an array of the site's shape.
        basis: orthonormal directions in the space of the site's values, ``(values, rank)``; None for the identity.
    """

    variances: Any = 0.0
    basis: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Linearisation:
    """How an observed site depends on ``x``, to first order.

    Attributes:
        inflation: factor of the added covariance, at least 1; above 1 where values share the uncertainty of ``x``.
        jacobian: derivative of the site's location with respect to ``x``, shape ``(*values, size)``; None to treat
            each value as an observation of one coordinate.
    """

    inflation: float = 1.0
    jacobian: Tensor | None = None

    def widening(self, variances: Tensor) -> Widening:
        """Return the widening ``inflation J diag(variances) J^T``, for the variances ``(size,)`` of ``x``."""
        if self.jacobian is None:
            return Widening(self.inflation * float(variances.max()))
        if bool((variances == variances[0]).all()):
            return self._unit_widening._replace(variances=variances[0] * self._unit_widening.variances)
        return self._widening_from(variances)

    @cached_property
    def _unit_widening(self) -> Widening:
        """The widening for unit variances, cached because equal variances only scale it."""
        assert self.jacobian is not None
        return self._widening_from(torch.ones(self.jacobian.shape[-1], dtype=torch.float64))

    def _widening_from(self, variances: Tensor) -> Widening:
        assert self.jacobian is not None
        scaled = self.jacobian * variances.sqrt()
        rows, shape = scaled.reshape(-1, scaled.shape[-1]), scaled.shape[:-1]
        used = (rows.abs() > RELATIVE_TOLERANCE * rows.abs().max()).sum(0)
        if bool((used <= 1).all()):  # no coordinate affects two values
            return Widening(self.inflation * (rows**2).sum(1).reshape(shape))
        basis, values, _ = torch.linalg.svd(rows, full_matrices=False)
        gains = self.inflation * values**2
        isotropic = len(rows) <= rows.shape[1] and gains.max() - gains.min() <= RELATIVE_TOLERANCE * gains.max()
        return Widening(gains.mean()) if isotropic else Widening(gains, basis)


def linearise(
    run: Callable[[Tensor], Mapping[str, Any]], names: Collection[str], *, at: Tensor, spread: float
) -> dict[str, Linearisation]:
    """Linearise the observed sites in ``x``, by central differences of step ``spread`` around the point ``at``.

    Sites that depend on the same ``x`` share its uncertainty, which widening each by itself ignores. Where all sites
    together have more values than ``x`` has coordinates, their widening is therefore multiplied by this ratio, divided
    by the site's own ratio where that exceeds 1 and its covariance accounts for it.

    Args:
        run: runs the model at a flat ``x (size,)``, and returns the nodes of its trace by name.
        names: names of the observed sites.
        at: a flat ``x``, shape ``(size,)``.
        spread: standard deviation of ``x``.

    Returns:
        A :class:`Linearisation` of each site that can be widened, by name.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        torch.default_generator.manual_seed(0)
        nodes = run(at)
        counts = {
            name: nodes[name]["value"].numel()
            for name in names
            if isinstance(unwrapped(nodes[name]["fn"]), LOCATION_SCALE_FAMILIES)
        }
        views = max(1.0, sum(counts.values()) / len(at))
        found = {name: Linearisation(views) for name in counts}
        displaced = run(at + spread * torch.randn(len(at), dtype=at.dtype))
        whole = {
            name
            for name, count in counts.items()
            if count * len(at) <= MAX_JACOBIAN and _has_single_scale(nodes[name]) and _has_single_scale(displaced[name])
        }
        if not whole:
            return found

        def expected(x: Tensor) -> dict[str, Tensor]:
            there = run(x)
            return {name: unwrapped(there[name]["fn"]).loc - there[name]["value"] for name in whole}

        steps = spread * torch.eye(len(at), dtype=at.dtype)
        above, below = (map_rows(expected, at + sign * steps) for sign in (1, -1))
    for name in whole:
        slope = (above[name] - below[name]).double().movedim(0, -1) / (2 * spread)
        if slope.isfinite().all():
            found[name] = Linearisation(views / max(1.0, counts[name] / len(at)), slope)
    return found


def _has_single_scale(node: Any) -> bool:
    """Whether a site is an unmasked Normal whose values all have the same scale."""
    fn, inner = node["fn"], unwrapped(node["fn"])
    plain = isinstance(inner, dist.Normal) and not isinstance(fn, dist.MaskedDistribution) and node["mask"] is None
    return plain and isinstance(node["scale"], (int, float)) and bool((inner.scale == inner.scale.flatten()[0]).all())


def conditional_variance(prior: Potential, level: int) -> np.ndarray:
    """Return ``Var(x | x_k) = sigma^2 v / (alpha^2 v + sigma^2)`` of every coordinate, shape ``event_shape``."""
    variance, noise = np.asarray(prior.reference[1], dtype=float), prior.schedule.sigma(level) ** 2
    left = noise * variance / (prior.schedule.alpha(level) ** 2 * variance + noise)
    return np.broadcast_to(left, prior.event_shape)


def annealed_distribution(
    fn: Any, priors: Sequence[Potential], level: int, likelihood: Likelihood, *, widening: Widening
) -> tuple[Any, float]:
    """Return the distribution that replaces an observed site's ``fn`` at a level, and the power of its density.

    The power is ``alpha_k ** 2 / (alpha_k ** 2 + sigma_k ** 2)`` of the prior for which it is smallest, or 1 where
    nothing is tempered.
    """
    if level == 0 or likelihood in ("rescaled", "tweedie"):
        return fn, 1.0
    if likelihood == "widened" and widening.basis is not None:
        return _CorrelatedNormal(unwrapped(fn), widening.basis, widening.variances), 1.0
    if likelihood == "widened" and isinstance(unwrapped(fn), LOCATION_SCALE_FAMILIES):
        return rewrapped(fn, lambda inner: _widened(inner, widening.variances)), 1.0
    scales = [(prior.schedule.alpha(level) ** 2, prior.schedule.sigma(level) ** 2) for prior in priors]
    return fn, min(signal / (signal + noise) for signal, noise in scales)


class ObservedSites:
    """The observed sites of a model along a ladder.

    Args:
        sources: the potential of each diffusion prior, with the shape of its site.
        likelihood: how observed sites enter at noisy levels.
        linearisations: result of :func:`linearise`; empty unless sites are widened.
        curved: the sites that are seen from several points at noisy levels, if there are any.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Potential, Sequence[int]]],
        likelihood: Likelihood,
        linearisations: Mapping[str, Linearisation],
        curved: CurvedSites | None = None,
    ) -> None:
        self.sources, self.likelihood, self.linearisations = tuple(sources), likelihood, linearisations
        self.curved = curved
        self._kept: dict[int, dict[str, Widening]] = {}

    def widenings(self, level: int) -> dict[str, Widening]:
        """Return the widening of each site at a level; those of the latest levels are cached, up to ``MAX_KEPT``."""
        if level not in self._kept:
            variances = self.variances(level)
            self._kept[level] = {name: site.widening(variances) for name, site in self.linearisations.items()}
            while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[level]

    def variances(self, level: int) -> Tensor:
        """Return the variances ``(size,)`` of the clean ``x`` given ``x_k``."""
        left = [np.broadcast_to(conditional_variance(prior, level), shape).ravel() for prior, shape in self.sources]
        return torch.from_numpy(np.concatenate(left))

    def from_points(self, level: int) -> Collection[str]:
        """Return the names of the sites whose density at a level is :meth:`curved_log_density`."""
        return () if self.curved is None or level == 0 else self.curved.inflations

    def curved_log_density(
        self, run: Callable[[Tensor], Mapping[str, Any]], nodes: Mapping[str, Any], level: int
    ) -> Tensor:
        """Return the scalar log-density of the sites :meth:`from_points`; arguments as in ``CurvedSites``."""
        assert self.curved is not None
        return self.curved.log_density(run, nodes, self.variances(level).sqrt())

    def log_density(self, name: str, node: Any, level: int, widenings: Mapping[str, Widening]) -> Tensor:
        """Return the scalar log-density of one node of a trace of the model at a level, with Pyro's scale and mask."""
        priors, widening = [prior for prior, _ in self.sources], widenings.get(name, Widening())
        fn, power = annealed_distribution(node["fn"], priors, level, self.likelihood, widening=widening)
        log_p = scale_and_mask(log_density(fn, filled(node)), node["scale"], node["mask"]).sum()
        return power * log_p


class _CorrelatedNormal(NamedTuple):
    """A Gaussian with the covariance ``scale^2 I + basis diag(variances) basis^T``."""

    fn: Any
    basis: Tensor
    variances: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of all values together, a float64 scalar."""
        apart = (value - self.fn.loc).reshape(-1).double()
        noise = self.fn.scale.reshape(-1)[0].double() ** 2
        along, total = apart @ self.basis.to(apart.device), noise + self.variances.to(apart.device)
        rest = len(apart) - along.shape[-1]
        energy = (along**2 / total + total.log()).sum()
        if rest:  # directions of the data outside the basis, which do not depend on x
            energy = energy + ((apart**2).sum() - (along**2).sum()) / noise + rest * noise.log()
        return -0.5 * (energy + len(apart) * np.log(2 * np.pi))


def _size(widenings: Mapping[str, Widening]) -> int:
    """Number of entries of the bases of widenings."""
    return sum(0 if widening.basis is None else widening.basis.numel() for widening in widenings.values())


def _widened(fn: Any, variance: Any) -> Any:
    """Return a location-scale distribution with the scale ``sqrt(scale^2 + variance)``."""
    scale = fn.scale
    if isinstance(variance, Tensor):
        variance = variance.to(scale)
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"scale": (scale**2 + variance).sqrt()})
