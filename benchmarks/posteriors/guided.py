"""Reverse diffusion that is guided by a measurement, as popular samplers of posteriors are.

Both samplers take Tweedie's estimate of what is clean, ``x_0(x) = (x - sigma^2 grad U(x)) / alpha``, for all that is
known of it at a level.

Sources: Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023),
https://arxiv.org/abs/2209.14687; Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023),
https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ppl_diffusion import Potential
from ppl_diffusion.potentials.score import ScoreLeaf


def tweedie(prior: Potential, x: Tensor, level: int) -> Tensor:
    """Return the estimate of the clean point of ``x (chains, *event_shape)``, differentiable in it."""
    alpha, sigma = prior.schedule.alpha(level), prior.schedule.sigma(level)
    (slope,) = torch.autograd.grad(prior.energy(x, level=level).sum(), x, create_graph=True)
    return (x - sigma**2 * slope) / alpha


def dps(
    prior: Potential,
    operator: Callable[[Tensor], Tensor],
    y: Tensor,
    *,
    draws: int,
    strength: float,
    seed: int,
    turned: Callable[[Tensor], Tensor] = lambda pull: pull,
) -> np.ndarray:
    """Return draws ``(draws, *event_shape)`` by DPS: reverse steps minus ``strength * grad ||y - A(clean estimate)||``.

    Args:
        prior: a torch density with an energy.
        operator: what is measured of points ``(draws, *event_shape)``.
        y: the measurement, of one shape for all draws, or one for each.
        draws: number of draws.
        strength: size of the guidance, in units of ``x`` by those of ``y``.
        seed: seed of all random numbers.
        turned: what makes a step of a gradient ``(draws, *event_shape)``, for a metric other than that of ``x``.
    """
    generator, schedule = torch.Generator().manual_seed(seed), prior.schedule
    x = torch.randn(draws, *prior.event_shape, generator=generator)
    for level in reversed(range(len(schedule))):
        sigma = schedule.sigma(level)
        x = x.detach().requires_grad_()
        clean = tweedie(prior, x, level)
        misfit = (y - operator(clean)).reshape(draws, -1).norm(dim=1)
        (pull,) = torch.autograd.grad(misfit.sum(), x)
        x, clean = x.detach(), clean.detach()
        if level == 0:
            return clean.numpy()
        alpha_t, sigma_t = schedule.alpha(level - 1), schedule.sigma(level - 1)
        ratio, spread = schedule.forward(level - 1, level)
        mean = (ratio * sigma_t**2 * x + alpha_t * spread**2 * clean) / sigma**2
        noise = torch.randn(x.shape, generator=generator) * (level > 1)
        x = mean + spread * sigma_t / sigma * noise - strength * turned(pull)
    raise AssertionError


class PseudoinverseGuided(ScoreLeaf):
    """Scores of a prior and a linear measurement at every level, with the guidance of Song et al.

    The measurement given ``x`` is taken for Gaussian, ``N(gain x_0(x), scale^2 I + v gain gain^T)``, where v is the
    variance of what is clean given ``x`` for Gaussian data of variance 1. So is the derivative of ``x_0(x)``, as
    steps with its own diverge where it is large. For Gaussian data of variance 1 the score is exact.

    Args:
        prior: a torch density of vectors, with an energy.
        gain: matrix ``(m, size)``.
        y: measurements ``(chains, m)``, one of each chain.
        scale: standard deviation of the noise.
    """

    def __init__(self, prior: Potential, gain: np.ndarray, y: Tensor, *, scale: float) -> None:
        values, basis = np.linalg.eigh(gain @ gain.T)
        self.prior, self.scale, self.gains = prior, scale, torch.from_numpy(values)
        self.rotated, self.about = torch.from_numpy(basis.T @ gain), y @ torch.from_numpy(basis)
        self.schedule, self.event_shape, self.backend = prior.schedule, prior.event_shape, "torch"
        self.name = f"guided {prior}"

    def _gradient(self, x: Tensor, level: int) -> Tensor:
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        _, slope = self.prior.value_and_grad(x, level=level)
        clean = (x - sigma**2 * slope) / alpha
        total = alpha**2 + sigma**2
        misfit = (clean @ self.rotated.T - self.about) / (self.scale**2 + sigma**2 / total * self.gains)
        return slope + alpha / total * misfit @ self.rotated
