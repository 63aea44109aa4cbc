"""The likelihood along the ladder: what observed sites of a Pyro model are asked at a noisy level.

At level ``k`` they see a stand-in for the clean ``x``, and are widened or raised to a power:

    widened     mean of x given x_k                        scale^2 + variance of x given x_k
    tempered    x_k / alpha_k                              exponent alpha_k^2
    rescaled    x_k / alpha_k                              exponent 1
    tweedie     (x_k - sigma_k^2 grad U(x_k)) / alpha_k    exponent 1

At level 0 all four are the exact likelihood of the raw ``x``; the levels above are a path to it. Mean and variance are
those of Gaussian data with the mean m and the variance v of the prior's own (``Potential.reference``):

    m + alpha v (x_k - alpha m) / (alpha^2 v + sigma^2)    and    sigma^2 v / (alpha^2 v + sigma^2)

Pure noise tells nothing then, so chains start where the density is, and an unknown scale keeps its normaliser,
without which it would grow along the ladder. Widening is for observed sites with a location and a scale (Normal,
StudentT, Laplace, Cauchy); others are tempered.

Source of widening: Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021),
https://arxiv.org/abs/2108.01368
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_diffusion.potential import Potential

Likelihood = Literal["widened", "tempered", "rescaled", "tweedie"]


def stand_in(x: Tensor, prior: Potential, level: int, likelihood: Likelihood) -> Tensor:
    """What observed sites see of ``x`` at a level of its prior, Tweedie's estimate excepted."""
    if level == 0:
        return x
    alpha, sigma = prior.schedule.alpha(level), prior.schedule.sigma(level)
    if likelihood != "widened":
        return x / alpha
    mean, variance = (torch.as_tensor(value, dtype=x.dtype) for value in prior.reference)
    return mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)


def on_the_path(
    fn: Any, priors: Sequence[Potential], level: int, likelihood: Likelihood, *, views: float
) -> tuple[Any, float]:
    """What stands for an observed site's distribution ``fn`` at a level, and the power that it is raised to.

    Of several priors of a model the one of which least is known at this level decides. Further noise is that of ``x``,
    the same in every view of it: ``views``, observed values for each coordinate of ``x``, multiplies its variance.
    """
    if level == 0 or likelihood in ("rescaled", "tweedie"):
        return fn, 1.0
    variance = max(1.0, views) * max(_variance(prior, level) for prior in priors)
    wide = _widened(fn, variance) if likelihood == "widened" else None
    return (fn, min(prior.schedule.alpha(level) for prior in priors) ** 2) if wide is None else (wide, 1.0)


def _variance(prior: Potential, level: int) -> float:
    """Of ``x`` given ``x_k``, the mean over coordinates."""
    variance, noise = np.asarray(prior.reference[1]), prior.schedule.sigma(level) ** 2
    return float(np.mean(noise * variance / (prior.schedule.alpha(level) ** 2 * variance + noise)))


def _widened(fn: Any, variance: float) -> Any:
    """A distribution whose scale has grown by a variance; None for one that has no location and scale."""
    if isinstance(fn, dist.Independent):
        inner = _widened(fn.base_dist, variance)
        return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        inner = _widened(fn.base_dist, variance)
        return None if inner is None else inner.mask(fn._mask)
    if not isinstance(fn, (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)):
        return None
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"scale": (parameters["scale"] ** 2 + variance).sqrt()})
