"""The likelihood along the ladder: what observed sites of a Pyro model are asked at a noisy level.

At level ``k`` they see a stand-in for the clean ``x``, and are widened or raised to a power:

    widened     alpha_k x_k / (alpha_k^2 + sigma_k^2)      scale^2 grows by sigma_k^2 / (alpha_k^2 + sigma_k^2)
    tempered    x_k / alpha_k                              exponent alpha_k^2
    rescaled    x_k / alpha_k                              exponent 1
    tweedie     (x_k - sigma_k^2 grad U(x_k)) / alpha_k    exponent 1

At level 0 all four are the exact likelihood of the raw ``x``; the levels above are a path to it. "widened" is the
likelihood of the mean of ``x`` given ``x_k``, with its variance, for data of unit variance: pure noise tells nothing, so
chains start where the density is, and an unknown scale keeps its normaliser, without which it would grow
along the ladder. It is for observed sites with a location and a scale (Normal, StudentT, Laplace, Cauchy); others
are tempered.

Source of widening: Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021),
https://arxiv.org/abs/2108.01368
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist

from ppl_diffusion.schedule import NoiseSchedule

Likelihood = Literal["widened", "tempered", "rescaled", "tweedie"]


def stand_in(x: Any, schedule: NoiseSchedule, level: int, likelihood: Likelihood) -> Any:
    """What observed sites see of ``x`` at a level, Tweedie's estimate excepted."""
    if level == 0:
        return x
    alpha, sigma = schedule.alpha(level), schedule.sigma(level)
    return x * (alpha / (alpha**2 + sigma**2)) if likelihood == "widened" else x / alpha


def on_the_path(fn: Any, schedule: NoiseSchedule, level: int, likelihood: Likelihood) -> tuple[Any, float]:
    """What stands for an observed site's distribution ``fn`` at a level, and the power that it is raised to."""
    if level == 0 or likelihood in ("rescaled", "tweedie"):
        return fn, 1.0
    alpha, sigma = schedule.alpha(level), schedule.sigma(level)
    wide = _widened(fn, sigma / (alpha**2 + sigma**2) ** 0.5) if likelihood == "widened" else None
    return (fn, alpha**2) if wide is None else (wide, 1.0)


def _widened(fn: Any, noise: float) -> Any:
    """A distribution with the variance of further noise; None for one that has no location and scale."""
    if isinstance(fn, dist.Independent):
        inner = _widened(fn.base_dist, noise)
        return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        inner = _widened(fn.base_dist, noise)
        return None if inner is None else inner.mask(fn._mask)
    if not isinstance(fn, (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)):
        return None
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"scale": (parameters["scale"] ** 2 + noise**2).sqrt()})
