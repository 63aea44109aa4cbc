"""Training objectives: the denoising loss, and the loss of a classifier.

Denoising determines the gradient of the energy at every level; how energies of neighbouring levels come to agree is in
``ppl_diffusion.training.agreement``.

Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..models.forms import Form, Reference, noise_potential, per_point
from ..schedule import NoiseSchedule

Estimate = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Estimates the noise in points ``(batch, *event_shape)`` at levels ``(batch,)``, under stacked tokens or None."""


def denoising_loss(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    clean: Tensor,
    *,
    condition: Tensor | None = None,
    reference: Reference = (0.0, 1.0),
    teacher: Estimate | None = None,
    relative: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the estimated noise per coordinate, with levels drawn uniformly; a scalar.

    With a teacher it is the squared distance to the noise that the teacher estimates.

    Args:
        network: the vector field ``s``, whose parameters are trained.
        form: how the energy is computed from ``s``, see ``ppl_diffusion.models.forms``.
        schedule: the noise levels.
        clean: data, shape ``(batch, *event_shape)``.
        condition: stacked tokens, of length ``batch``.
        reference: mean and variance of the data.
        teacher: what estimates the noise that is to be matched.
        relative: whether the error at each level is divided by that of the best estimate for Gaussian data of the same
            variance. Noisy levels, where the noise is easily told and conditions matter, then count like clean ones.
        generator: generator of levels and noise, on the device of ``clean``.
    """
    level = torch.randint(len(schedule), (len(clean),), generator=generator, device=clean.device)
    x, noise = noised(schedule, clean, level, generator)
    if teacher is not None:
        noise = teacher(x.detach(), level, condition)
    f = noise_potential(network, form, schedule, x, level, condition, reference)
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return mean_error(estimate, noise, schedule, level, reference if relative else None)


LEAST_ERROR = 0.005
"""Least error by which that of a level is divided."""


def gaussian_error(schedule: NoiseSchedule, level: Tensor, reference: Reference) -> Tensor:
    """Return the mean squared error ``(batch,)`` of the best estimate of the noise at ``level (batch,)`` for Gaussian
    data of the variance of ``reference``, at least ``LEAST_ERROR``."""
    signal = schedule.alpha(level) ** 2 * float(np.mean(np.asarray(reference[1])))
    return (signal / (signal + schedule.sigma(level) ** 2)).clamp(min=LEAST_ERROR)


def classification_loss(
    network: nn.Module, schedule: NoiseSchedule, clean: Tensor, *, label: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of ``-log p(label | x)`` over noised points, in nats, with levels drawn uniformly; a scalar.

    Args:
        network: returns logits ``(batch, classes)``; its parameters are trained.
        schedule: the noise levels.
        clean: data, shape ``(batch, *event_shape)``.
        label: integers, shape ``(batch,)``.
        generator: generator of levels and noise, on the device of ``clean``.
    """
    level = torch.randint(len(schedule), (len(clean),), generator=generator, device=clean.device)
    x, _ = noised(schedule, clean, level, generator)
    surprises = noise_potential(network, "classifier", schedule, x.detach(), level, label) / schedule.sigma(level)
    return surprises.mean()


def noised(schedule: NoiseSchedule, clean: Tensor, level: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``alpha clean + sigma noise``, with ``requires_grad``, and the noise; both of the shape of ``clean``."""
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    alpha, sigma = (per_point(scale(level), clean).to(clean.dtype) for scale in (schedule.alpha, schedule.sigma))
    return (alpha * clean + sigma * noise).requires_grad_(), noise


def mean_error(
    estimate: Tensor, noise: Tensor, schedule: NoiseSchedule, level: Tensor, reference: Reference | None
) -> Tensor:
    """Return the mean squared error of estimates of the noise; relative to :func:`gaussian_error` under a reference."""
    errors = (estimate - noise) ** 2
    if reference is None:
        return errors.mean()
    weights = 1 / gaussian_error(schedule, level, reference)
    return (weights.to(errors.dtype) * errors.flatten(1).mean(1)).mean()
