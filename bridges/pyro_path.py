"""The likelihood along the ladder: what observed sites of a Pyro model are asked at a noisy level.

At level ``k`` they see a stand-in for the clean ``x``, and are widened or raised to a power:

    widened     mean of x given x_k                        scale^2 I + v_k J J^T, v_k the variance of x given x_k
    tempered    x_k / alpha_k                              exponent alpha_k^2
    rescaled    x_k / alpha_k                              exponent 1
    tweedie     (x_k - sigma_k^2 grad U(x_k)) / alpha_k    exponent 1

At level 0 all four are the exact likelihood of the raw ``x``; the levels above are a path to it. Mean and variance are
those of Gaussian data with the mean m and the variance v of the prior's own (``Potential.reference``):

    m + alpha v (x_k - alpha m) / (alpha^2 v + sigma^2)    and    sigma^2 v / (alpha^2 v + sigma^2)

``J`` is the derivative of what the site expects by ``x`` (:func:`seen`). For Gaussian data and a linear model the path
is exact: at every level the posterior of ``x_k`` and of a scale that is unknown. Pure noise tells nothing, so chains
start where the density is, and an unknown scale neither grows along the ladder nor is explained away: behind a blur
most directions of the data hold nothing of ``x``, and tell the scale at any level.

Widening is for observed sites with a location and a scale (Normal, StudentT, Laplace, Cauchy); others are tempered.
Covariances are for a Normal of one scale, unmasked, of a model that is not too large (``LARGEST``); elsewhere each
value's own variance grows, by as much as if it were a coordinate of ``x``.

Source of widening: Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021),
https://arxiv.org/abs/2108.01368
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_diffusion.potential import Potential

Likelihood = Literal["widened", "tempered", "rescaled", "tweedie"]

LOCATED = (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)
"""What can be widened."""

LARGEST = 2**23
"""Observed values times coordinates of ``x`` up to which their derivative is held: 67 MB."""

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


class Seen(NamedTuple):
    """What an observed site sees of ``x``: the left singular vectors of its derivative, and squared singular values.

    Attributes:
        gains: eigenvalues of ``J J^T``, shape ``(rank,)``; one number where all are the same, or it stands for them.
        basis: their eigenvectors, shape ``(values, rank)``; None for one number.
    """

    gains: Any = 1.0
    basis: Tensor | None = None


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
            name: nodes[name]["value"].numel() for name in names if isinstance(_simple(nodes[name]["fn"]), LOCATED)
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
            return {name: (_simple(there[name]["fn"]).loc - there[name]["value"]).reshape(-1) for name in whole}

        steps = spread * torch.eye(len(at), dtype=at.dtype)
        above, below = (_rows(expected, at + sign * steps) for sign in (1, -1))
    for name in whole:
        slope = (above[name] - below[name]).double() / (2 * spread)
        if slope.isfinite().all():
            basis, values, _ = torch.linalg.svd(slope.T, full_matrices=False)
            gains = values**2 * views / max(1.0, counts[name] / len(at))
            alike = counts[name] <= len(at) and gains.max() - gains.min() <= SAME * gains.max()
            found[name] = Seen(float(gains.mean())) if alike else Seen(gains, basis)
    return found


def _rows(function: Callable[[Tensor], dict[str, Tensor]], points: Tensor) -> dict[str, Tensor]:
    try:
        return torch.func.vmap(function, chunk_size=64)(points)
    except RuntimeError:  # a model that branches on its values
        rows = [function(point) for point in points]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _of_one_scale(node: Any) -> bool:
    fn, inner = node["fn"], _simple(node["fn"])
    plain = isinstance(inner, dist.Normal) and not isinstance(fn, dist.MaskedDistribution) and node["mask"] is None
    return plain and isinstance(node["scale"], (int, float)) and bool((inner.scale == inner.scale.flatten()[0]).all())


def on_the_path(
    fn: Any, priors: Sequence[Potential], level: int, likelihood: Likelihood, *, sees: Seen
) -> tuple[Any, float]:
    """What stands for an observed site's distribution ``fn`` at a level, and the power that it is raised to.

    Of several priors of a model the one of which least is known at this level decides.
    """
    if level == 0 or likelihood in ("rescaled", "tweedie"):
        return fn, 1.0
    variance = max(_variance(prior, level) for prior in priors)
    if likelihood == "widened" and sees.basis is not None:
        return _Correlated(_simple(fn), sees.basis, variance * sees.gains), 1.0
    wide = _widened(fn, variance * sees.gains) if likelihood == "widened" else None
    return (fn, min(prior.schedule.alpha(level) for prior in priors) ** 2) if wide is None else (wide, 1.0)


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


def _variance(prior: Potential, level: int) -> float:
    """Of ``x`` given ``x_k``, the mean over coordinates."""
    variance, noise = np.asarray(prior.reference[1]), prior.schedule.sigma(level) ** 2
    return float(np.mean(noise * variance / (prior.schedule.alpha(level) ** 2 * variance + noise)))


def _simple(fn: Any) -> Any:
    """A distribution without the wrappings that leave its location and scale alone."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _widened(fn: Any, variance: float) -> Any:
    """A distribution whose scale has grown by a variance; None for one that has no location and scale."""
    if isinstance(fn, dist.Independent):
        inner = _widened(fn.base_dist, variance)
        return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        inner = _widened(fn.base_dist, variance)
        return None if inner is None else inner.mask(fn._mask)
    if not isinstance(fn, LOCATED):
        return None
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"scale": (parameters["scale"] ** 2 + variance).sqrt()})
