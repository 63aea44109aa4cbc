"""The likelihood along the ladder: what observed sites of a Pyro model are asked at a noisy level.

At level ``k`` they see a stand-in for the clean ``x``, and are widened or raised to a power:

    widened     mean of x given x_k                        scale^2 I + J V J^T, V the variances of x given x_k
    tempered    x_k / alpha_k                              exponent alpha_k^2
    rescaled    x_k / alpha_k                              exponent 1
    tweedie     (x_k - sigma_k^2 grad U(x_k)) / alpha_k    exponent 1

At level 0 all four are the exact likelihood of the raw ``x``; the levels above are a path to it. Mean and variance are
those of Gaussian data with the mean m and the variance v of the prior's own (``Potential.reference``):

    m + alpha v (x_k - alpha m) / (alpha^2 v + sigma^2)    and    sigma^2 v / (alpha^2 v + sigma^2)

coordinate by coordinate. ``J`` is the derivative of what the site expects by ``x`` (:func:`seen`). For independent
Gaussian coordinates and one site linear in them the path is exact: at every level the posterior of ``x_k`` and of a
scale that is unknown. Pure noise tells nothing, so chains
start where the density is, and an unknown scale neither grows along the ladder nor is explained away: behind a blur
most directions of the data hold nothing of ``x``, and tell the scale at any level.

Widening is for observed sites with a location and a scale (Normal, StudentT, Laplace, Cauchy); others are tempered.
Covariances are for a Normal of one scale, unmasked, of a model that is not too large (``LARGEST``); elsewhere each
value's own variance grows, by as much as if it were a coordinate of ``x``. Several sites are widened each by itself,
as if what is uncertain in ``x`` were another's for each of them.

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

from ppl_diffusion.potential import Potential

from .coordinates import log_density
from .prior import rewrapped, unwrapped

Likelihood = Literal["widened", "tempered", "rescaled", "tweedie"]

LOCATED = (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)
"""What can be widened."""

LARGEST = 2**23
"""Observed values times coordinates of ``x`` up to which their derivative is held: 67 MB."""

ROWS = 1024
"""Points at which a model is run at once where all that it records is kept."""

SAME = 1e-3
"""Relative difference up to which gains are one number, and need no basis."""


def stand_in(x: Tensor, prior: Potential, level: int, likelihood: Likelihood) -> Tensor:
    """What observed sites see of ``x`` at a level of its prior, Tweedie's estimate excepted."""
    if level == 0:
        return x
    alpha, sigma = prior.schedule.alpha(level), prior.schedule.sigma(level)
    if likelihood != "widened":
        return x / alpha
    mean, variance = (torch.as_tensor(value, dtype=x.dtype) for value in prior.reference)
    return mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)


class Widening(NamedTuple):
    """By what the covariance of an observed site grows: ``basis diag(variances) basis^T``.

    Attributes:
        variances: a number; without a basis also an array of the site's shape, with one of shape ``(rank,)``.
        basis: orthonormal directions of the site's values, shape ``(values, rank)``, or None for the values themselves.
    """

    variances: Any = 0.0
    basis: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What an observed site sees of ``x``.

    Attributes:
        times: by how many times more than once, for sites that share what is uncertain in ``x``.
        slope: derivative of what it expects, shape ``(*values, size)``; None where each value stands for a coordinate.
    """

    times: float = 1.0
    slope: Tensor | None = None

    def widening(self, variances: Tensor) -> Widening:
        """By what it is widened where the coordinates of ``x`` have ``variances (size,)``."""
        if self.slope is None:
            return Widening(self.times * float(variances.max()))
        if bool((variances == variances[0]).all()):
            return self._of_unit._replace(variances=variances[0] * self._of_unit.variances)
        return self._under(variances)

    @cached_property
    def _of_unit(self) -> Widening:
        assert self.slope is not None
        return self._under(torch.ones(self.slope.shape[-1], dtype=torch.float64))

    def _under(self, variances: Tensor) -> Widening:
        assert self.slope is not None
        scaled = self.slope * variances.sqrt()
        rows, shape = scaled.reshape(-1, scaled.shape[-1]), scaled.shape[:-1]
        used = (rows.abs() > SAME * rows.abs().max()).sum(0)
        if bool((used <= 1).all()):  # no coordinate is seen by two values
            return Widening(self.times * (rows**2).sum(1).reshape(shape))
        basis, values, _ = torch.linalg.svd(rows, full_matrices=False)
        gains = self.times * values**2
        alike = len(rows) <= rows.shape[1] and gains.max() - gains.min() <= SAME * gains.max()
        return Widening(gains.mean()) if alike else Widening(gains, basis)


def seen(
    run: Callable[[Tensor], Mapping[str, Any]], names: Collection[str], *, at: Tensor, spread: float
) -> dict[str, Seen]:
    """What observed sites see of ``x``, from differences over its spread on both sides of a point.

    Sites that see the same ``x`` share what is uncertain in it, which their own covariances do not say: where they
    hold more values than ``x`` has coordinates, all are widened by as many times more.

    Args:
        run: runs the model at a flat ``x``, and returns its sites as Pyro's traces hold them.
        names: of the observed sites.
        at: a flat ``x``, shape ``(size,)``.
        spread: standard deviation of ``x``.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        torch.default_generator.manual_seed(0)
        nodes = run(at)
        counts = {
            name: nodes[name]["value"].numel() for name in names if isinstance(unwrapped(nodes[name]["fn"]), LOCATED)
        }
        views = max(1.0, sum(counts.values()) / len(at))
        found = {name: Seen(views) for name in counts}
        displaced = run(at + spread * torch.randn(len(at), dtype=at.dtype))
        whole = {
            name
            for name, count in counts.items()
            if count * len(at) <= LARGEST and _of_one_scale(nodes[name]) and _of_one_scale(displaced[name])
        }
        if not whole:
            return found

        def expected(x: Tensor) -> dict[str, Tensor]:
            there = run(x)
            return {name: unwrapped(there[name]["fn"]).loc - there[name]["value"] for name in whole}

        steps = spread * torch.eye(len(at), dtype=at.dtype)
        above, below = (by_row(expected, at + sign * steps) for sign in (1, -1))
    for name in whole:
        slope = (above[name] - below[name]).double().movedim(0, -1) / (2 * spread)
        if slope.isfinite().all():
            found[name] = Seen(views / max(1.0, counts[name] / len(at)), slope)
    return found


def by_row(function: Callable[[Tensor], dict[Any, Tensor]], points: Tensor) -> dict[Any, Tensor]:
    """What a function that runs a model says of every row of ``points``, stacked; some rows at a time."""
    with pyro.validation_enabled(False):  # its checks branch on values, which vmap cannot
        try:
            return torch.func.vmap(function, chunk_size=ROWS)(points)
        except RuntimeError:  # a model that branches on its values
            rows = [function(point) for point in points]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _of_one_scale(node: Any) -> bool:
    fn, inner = node["fn"], unwrapped(node["fn"])
    plain = isinstance(inner, dist.Normal) and not isinstance(fn, dist.MaskedDistribution) and node["mask"] is None
    return plain and isinstance(node["scale"], (int, float)) and bool((inner.scale == inner.scale.flatten()[0]).all())


def left_over(prior: Potential, level: int) -> np.ndarray:
    """Variance of ``x`` given ``x_k``, of every coordinate, in the event's shape."""
    variance, noise = np.asarray(prior.reference[1], dtype=float), prior.schedule.sigma(level) ** 2
    left = noise * variance / (prior.schedule.alpha(level) ** 2 * variance + noise)
    return np.broadcast_to(left, prior.event_shape)


def on_the_path(
    fn: Any, priors: Sequence[Potential], level: int, likelihood: Likelihood, *, widening: Widening
) -> tuple[Any, float]:
    """What stands for an observed site's distribution ``fn`` at a level, and the power that it is raised to.

    The power is that of the prior of which least is known at this level.
    """
    if level == 0 or likelihood in ("rescaled", "tweedie"):
        return fn, 1.0
    if likelihood == "widened" and widening.basis is not None:
        return _Correlated(unwrapped(fn), widening.basis, widening.variances), 1.0
    if likelihood == "widened" and isinstance(unwrapped(fn), LOCATED):
        return rewrapped(fn, lambda inner: _widened(inner, widening.variances)), 1.0
    return fn, min(prior.schedule.alpha(level) for prior in priors) ** 2


class ObservedSites:
    """The observed sites of a model along a ladder.

    Args:
        sources: the potentials that ``x`` comes from, each with the shape of its site.
        likelihood: the path.
        seen: what located sites see of ``x``, by name; empty unless they are widened.
    """

    def __init__(
        self, sources: Sequence[tuple[Potential, Sequence[int]]], likelihood: Likelihood, seen: Mapping[str, Seen]
    ) -> None:
        self.sources, self.likelihood, self.seen = tuple(sources), likelihood, seen
        self._last: tuple[int, dict[str, Widening]] | None = None

    def widenings(self, level: int) -> dict[str, Widening]:
        """By what each site is widened at a level. Those of the last level are kept, those of all may be large."""
        if self._last is None or self._last[0] != level:
            left = [np.broadcast_to(left_over(prior, level), shape).ravel() for prior, shape in self.sources]
            variances = torch.from_numpy(np.concatenate(left))
            self._last = level, {name: site.widening(variances) for name, site in self.seen.items()}
        return self._last[1]

    def log_density(self, name: str, node: Any, level: int, widenings: Mapping[str, Widening]) -> Tensor:
        """Of one site of a trace of the model at a level: a scalar, as Pyro scales and masks it."""
        priors, widening = [prior for prior, _ in self.sources], widenings.get(name, Widening())
        fn, power = on_the_path(node["fn"], priors, level, self.likelihood, widening=widening)
        log_p = scale_and_mask(log_density(fn, node["value"]), node["scale"], node["mask"]).sum()
        return power * log_p


class _Correlated(NamedTuple):
    """A Normal of one scale whose covariance has grown by ``basis diag(variances) basis^T``."""

    fn: Any
    basis: Tensor
    variances: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Of all values together, a float64 scalar."""
        apart = (value - self.fn.loc).reshape(-1).double()
        noise = self.fn.scale.reshape(-1)[0].double() ** 2
        along, total = apart @ self.basis.to(apart.device), noise + self.variances.to(apart.device)
        rest = len(apart) - along.shape[-1]
        energy = (along**2 / total + total.log()).sum()
        if rest:  # directions of the data that x does not reach
            energy = energy + ((apart**2).sum() - (along**2).sum()) / noise + rest * noise.log()
        return -0.5 * (energy + len(apart) * np.log(2 * np.pi))


def _widened(fn: Any, variance: Any) -> Any:
    """A distribution that has a location and a scale, whose scale has grown by a variance."""
    scale = fn.scale
    if isinstance(variance, Tensor):
        variance = variance.to(scale)
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"scale": (scale**2 + variance).sqrt()})
