"""Agreement of levels: a loss by which energies of neighbouring levels differ as their densities do.

Denoising determines the gradient of the energy at every level, but neither the difference of energies between levels
nor between separate modes. The log-weights of annealing, swaps of replica exchange and normalisers consist of these
differences. Let t be a level, s the next noisier one, q the forward kernel and r the reverse-diffusion step. Points
``x_t`` are noised data and ``x_s ~ q(. | x_t)``. The log-weight of the reverse step is

    R = U_s(x_s) - U_t(x_t) + log q(x_s | x_t) - log r(x_t | x_s)

and varies as little as the step allows where both energies are those of the data, up to a constant for the pair of
levels. The loss is a Huber loss of its deviation from the mean of the batch's points at the same two levels. The step's
estimate of the noise is a constant to it.

Its unit is about what ``R`` varies by with exact energies, ``dlambda |e| / sqrt(2)``, where lambda is minus the log
signal-to-noise ratio and ``e`` the error of the estimated noise: of Gaussian data with variance ``v``, ``R`` varies by
``dlambda m / sqrt(2)`` in each coordinate, and ``|e|^2`` is ``m = v / (v + sigma^2 / alpha^2)``, which is 1 or less.
So a small error that has the same sign over many noisy levels, where ``R`` tells of it most precisely, counts as much
as a large one at the clean end.

What ``R`` varies by with exact energies, by the error of a Gaussian step, is divided between the two energies: the loss
is biased. This error falls with the square of the distance of the levels, and what is to be learned with the distance.
Pairs are therefore neighbours on a finer schedule, which networks can be told the levels of.

Source: this project; the exact difference in lambda that R is an estimate of, with the reverse step as a control
variate, is that of Learning Normalized Image Densities via Dual Score Matching (Guth et al., 2025),
https://arxiv.org/abs/2506.05310
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.forms import Form, Reference, noise_potential
from ..schedule import NoiseSchedule
from .objective import mean_error, noised, per_point

FINER = 4
"""Number of levels of the finer schedule for each of the schedule."""

GROUP = 8
"""Number of points of a batch at the same two levels."""

FAR = 1.0
"""``dlambda`` of a pair from which on its levels are not compared: where the signal all but vanishes, as at the
noisiest level of a cosine schedule, a reverse step multiplies the error of the estimated noise."""

NOISIEST = 8
"""How much oftener the noisiest pair is drawn: walks start there, and a reverse step does not forgive errors there."""

OUTLYING = 4.0
"""Deviation, in the loss's units, from which on it grows linearly."""


class Losses(NamedTuple):
    """Two scalars: the denoising loss per coordinate, and the loss of agreement."""

    denoising: Tensor
    agreement: Tensor


def agreement_losses(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    clean: Tensor,
    *,
    condition: Tensor | None = None,
    reference: Reference = (0.0, 1.0),
    relative: bool = False,
    generator: torch.Generator,
) -> Losses:
    """Return both losses, by one network call at twice the points; denoising counts at both levels of a pair.

    Args:
        network: the vector field ``s``, whose parameters are trained.
        form: how the energy is computed from ``s``, see ``ppl_diffusion.models.forms``.
        schedule: the noise levels, two or more.
        clean: data, shape ``(batch, *event_shape)``, two points or more.
        condition: stacked tokens, of length ``batch``.
        reference: mean and variance of the data.
        relative: as in :func:`~ppl_diffusion.training.objective.denoising_loss`.
        generator: generator of levels and noise, on the device of ``clean``.
    """
    schedule = _fine(schedule)
    count, groups = len(clean), max(1, len(clean) // GROUP)
    group = torch.arange(count, device=clean.device) % groups
    pairs, device = len(schedule) - 1, clean.device
    t = torch.randint(pairs - 1 + NOISIEST, (groups,), generator=generator, device=device).clamp(max=pairs - 1)[group]
    s = t + 1
    x_t, noise_t = noised(schedule, clean, t, generator)
    alpha, sigma, mix = (per_point(value, clean) for value in _forward(schedule, t, s))
    fresh = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    x_s = alpha.to(clean.dtype) * x_t.detach() + sigma.to(clean.dtype) * fresh
    noise_s = mix.to(clean.dtype) * noise_t + (1 - mix**2).sqrt().to(clean.dtype) * fresh
    x, level = torch.cat([x_t.detach(), x_s]).requires_grad_(), torch.cat([t, s])
    noise = torch.cat([noise_t, noise_s])
    both = None if condition is None else torch.cat([condition] * 2)
    f = noise_potential(network, form, schedule, x, level, both, reference)
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    energy_t, energy_s = (f / schedule.sigma(level)).chunk(2)
    noise_found = estimate.detach().double().chunk(2)[1]
    step = _log_ratio(schedule, x_t.detach().double(), x_s.double(), noise_found, t, s)
    weight = energy_s - energy_t + step

    def mean(values: Tensor) -> Tensor:  # of the points at the same two levels
        total = torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, group, values)
        return (total / torch.zeros_like(total).index_add(0, group, torch.ones_like(values)))[group]

    missed = (estimate.detach() - noise).double().square().flatten(1).sum(1)
    dlambda = schedule.log_snr(t) - schedule.log_snr(s)
    apart = (weight - mean(weight)) / (dlambda * (mean(missed.chunk(2)[1]) / 2).sqrt())
    apart = torch.where(dlambda < FAR, apart, 0.0)
    error = mean_error(estimate, noise, schedule, level, reference if relative else None)
    return Losses(error, F.huber_loss(apart, torch.zeros_like(apart), delta=OUTLYING))


@cache
def _fine(schedule: NoiseSchedule) -> NoiseSchedule:
    return schedule.finer(FINER)


def _forward(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return factor and standard deviation of the forward kernels from t to s, and the share of the noise at t in the
    noise at s, each ``(batch,)`` float64."""
    alpha = schedule.alpha(s) / schedule.alpha(t)
    mix = alpha * schedule.sigma(t) / schedule.sigma(s)
    return alpha, schedule.sigma(s) * (1 - mix**2).sqrt(), mix


def _log_ratio(schedule: NoiseSchedule, x_t: Tensor, x_s: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return ``log q(x_s | x_t) - log r(x_t | x_s)``, shape ``(batch,)``, up to a constant for each pair of levels.

    The step r is the one of :meth:`~ppl_diffusion.NoiseSchedule.reverse`, with ``noise`` as the estimate at ``x_s``.
    """
    alpha, sigma, mix = (per_point(value, x_t) for value in _forward(schedule, t, s))
    mean = (x_s - sigma**2 / per_point(schedule.sigma(s), x_t) * noise) / alpha
    forward, reverse = (x_s - alpha * x_t) / sigma, (x_t - mean) * alpha / (sigma * mix)
    return 0.5 * (reverse**2 - forward**2).flatten(1).sum(1)
