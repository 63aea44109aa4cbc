"""Training objectives: the denoising loss, a loss of classifying the noise level of a point, and that of a classifier.

Denoising determines the gradient of the energy at every level, but neither the difference of energies between levels
nor between separate modes. Log-weight increments between rungs consist of just these differences. The second loss
classifies whether a point ``x`` noised to level ``t`` comes from ``t`` or from another level ``u``. With
``log p = c - U``,

    log-odds = U_u(x) - U_t(x) + c_t - c_u,        loss = -log sigmoid(log-odds),

which is minimal where ``c - U`` is the log-density of every level, up to one constant common to all levels. The
constants ``c`` are trained along with the network and then discarded, since a level's constant cancels in sampling.

Two levels whose points are always classified correctly give no gradient; in many dimensions this holds for the clean
levels of a schedule. Levels are therefore drawn from a finer schedule, on which neighbouring levels differ by about a
nat. The other level is ``d`` levels up or down, where ``d`` is drawn independently of the level, so that either level
of a pair proposes it with the same probability (unequal frequencies of the levels are absorbed by the constants).

Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239;
A Diffusive Classification Loss for Learning Energy-based Generative Models (OuYang, Grenioux and
Hernandez-Lobato, 2026), https://arxiv.org/abs/2601.21025
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import constant
from ..models.forms import Form, Reference, noise_potential
from ..schedule import NoiseSchedule

DISTANCES = (1, 2, 4, 8)
"""Possible distances of the two levels of a pair, in levels of the finer schedule."""

CALIBRATION_POINTS = 16
"""Number of points from which the initial constants of the levels are estimated."""

Estimate = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Estimates the noise in points ``(batch, *event_shape)`` at levels ``(batch,)``, under stacked tokens or None."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor | None]]
"""Draws a batch: clean points ``(batch, *event_shape)``, and their stacked tokens or None."""


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
    weights = 1 / gaussian_error(schedule, level, reference) if relative else None
    return _noise_error(noise_potential(network, form, schedule, x, level, condition, reference), x, noise, weights)


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


class Losses(NamedTuple):
    """Two scalars: the denoising loss per coordinate, and the level classification loss in nats per coordinate."""

    denoising: Tensor
    which_level: Tensor


@dataclass(frozen=True)
class Levels:
    """The levels that the second loss classifies, and their trained constants.

    Attributes:
        schedule: the finer schedule.
        share: relative frequency with which each of its levels is drawn, ``(len(schedule),)``, not normalised.
        steps: differences ``c_{i+1} - c_i`` of the levels' constants, ``(len(schedule) - 1,)`` float64; trained.
    """

    schedule: NoiseSchedule
    share: Tensor
    steps: nn.Parameter

    @classmethod
    def of(cls, schedule: NoiseSchedule, *, size: int, device: torch.device | str = "cpu") -> Levels:
        """Refine ``schedule`` for points of ``size`` coordinates, by levels between its own.

        From level to level the log-variance of the noise increases by at most ``sqrt(2 / size)``, the relative standard
        deviation of ``|z|^2`` for ``z ~ N(0, I)``. The interval between two levels of ``schedule`` is drawn about
        equally often for all, however many levels it is divided into.
        """
        growth = np.diff(2 * np.log(schedule.sigmas)) / np.sqrt(2 / size)
        parts = np.maximum(np.ceil(growth), 1).astype(int)
        inside = [i + np.arange(n) / n for i, n in enumerate(parts)]
        places = np.concatenate([*inside, [len(parts)]])
        alphas, sigmas = (np.interp(places, range(len(t)), np.log(t)) for t in (schedule.alphas, schedule.sigmas))
        finer = NoiseSchedule(tuple(np.exp(alphas)), tuple(np.exp(sigmas)))
        share = torch.tensor(np.gradient(places), device=device)
        return cls(
            finer, share, nn.Parameter(torch.zeros(len(parts.repeat(parts)), dtype=torch.float64, device=device))
        )

    @property
    def constants(self) -> Tensor:
        """Constants ``c`` of the levels, ``(len(schedule),)``; 0 at the cleanest."""
        return F.pad(self.steps.cumsum(0), (1, 0))

    def losses(
        self,
        network: nn.Module,
        form: Form,
        clean: Tensor,
        *,
        condition: Tensor | None = None,
        reference: Reference = (0.0, 1.0),
        generator: torch.Generator,
    ) -> Losses:
        """Return both losses, by one network call at the levels of the points and one at the levels to compare with.

        Args:
            network: the vector field ``s``, whose parameters are trained.
            form: how the energy is computed from ``s``, see ``ppl_diffusion.models.forms``.
            clean: data, shape ``(batch, *event_shape)``.
            condition: stacked tokens, of length ``batch``.
            reference: mean and variance of the data.
            generator: generator of levels and noise, on the device of ``clean``.
        """
        count, device, last = len(clean), clean.device, len(self.schedule) - 1
        level = torch.multinomial(self.share, count, replacement=True, generator=generator)
        x, noise = noised(self.schedule, clean, level, generator)
        f = noise_potential(network, form, self.schedule, x, level, condition, reference)
        choice = torch.randint(2 * len(DISTANCES), (count,), generator=generator, device=device)
        neighbour = level + constant([*DISTANCES, *(-d for d in DISTANCES)], device)[choice].long()
        inside_schedule = (neighbour >= 0) & (neighbour <= last)
        neighbour = neighbour.clamp(0, last)
        g = noise_potential(network, form, self.schedule, x.detach(), neighbour, condition, reference)
        odds = g / self.schedule.sigma(neighbour) - f / self.schedule.sigma(level)
        constants = self.constants
        surprises = surprise(odds + constants[level] - constants[neighbour])
        return Losses(_noise_error(f, x, noise), (surprises * inside_schedule).mean() / clean[0].numel())

    @torch.no_grad()
    def measure(self, network: nn.Module, form: Form, draw: Draw, *, reference: Reference, seed: int) -> None:
        """Set the constants to estimates for the current network, from which their training starts.

        ``c_{i+1} - c_i`` is the mean of ``U_{i+1}(x) - U_i(x)`` over points of which half are noised to level ``i``
        and half to ``i + 1``.
        """
        generator, device = torch.Generator().manual_seed(seed), self.steps.device
        clean, condition = (part if part is None else part[:CALIBRATION_POINTS] for part in draw(generator))
        assert clean is not None
        noise = torch.randn(clean.shape, generator=generator).to(device)
        clean = clean.to(device)
        condition = None if condition is None else torch.cat([condition] * 4).to(device)
        for i, j in pairwise(range(len(self.schedule))):
            noised_points = [self.schedule.alpha(k) * clean + self.schedule.sigma(k) * noise for k in (i, j)]
            level = torch.tensor([i, i, j, j], device=device).repeat_interleave(len(clean))
            f = noise_potential(network, form, self.schedule, torch.cat(noised_points * 2), level, condition, reference)
            below, above = (f / self.schedule.sigma(level)).chunk(2)
            self.steps[i] = (above - below).mean()


def surprise(odds: Tensor) -> Tensor:
    """Return ``-log sigmoid(odds)`` elementwise: the loss, in nats, of an outcome that had these log-odds."""
    return F.softplus(-odds)


def noised(schedule: NoiseSchedule, clean: Tensor, level: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``alpha clean + sigma noise``, with ``requires_grad``, and the noise; both of the shape of ``clean``."""
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    shape = (-1, *[1] * (clean.ndim - 1))
    alpha, sigma = (scale(level).reshape(shape).to(clean.dtype) for scale in (schedule.alpha, schedule.sigma))
    return (alpha * clean + sigma * noise).requires_grad_(), noise


def _noise_error(f: Tensor, x: Tensor, noise: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error of ``grad_x f`` as an estimate of the noise, weighted by ``weights (batch,)``."""
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    errors = (estimate - noise) ** 2
    return errors.mean() if weights is None else (weights.to(errors.dtype) * errors.flatten(1).mean(1)).mean()
