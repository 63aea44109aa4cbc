"""What training minimises: the error of the estimated noise, and the mistakes in telling levels apart.

Denoising fixes the gradient of the energy at every level, not how energies differ from level to level nor
between separate modes, and weights between rungs are made of just that. A point ``x`` that was noised to level
``t`` can also be asked which of two levels it comes from, ``t`` or a neighbour ``u``. With ``log p = c - U``,

    log-odds = U_u(x) - U_t(x) + c_t - c_u,        loss = -log sigmoid(log-odds),

which is least where ``c - U`` is the log-density of every level, up to one constant for all. The constants
``c`` are learnt beside the network and then dropped: unknown constants of a level cancel in all that follows.

Two levels that are told apart at a glance teach nothing, and in many dimensions the clean levels of a schedule
are. So levels are drawn from a finer schedule, on which neighbours differ by about a nat. The neighbour is
``d`` levels up or down, ``d`` drawn whatever the level: a pair is drawn alike from both ends (levels that
are drawn more often than others have that in their constants).

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

from .arrays import constant
from .energy import Form, Reference, noise_potential
from .schedule import NoiseSchedule

DISTANCES = (1, 2, 4, 8)
"""How many levels apart the two levels of a pair are."""

FEW = 16
"""Points by which the constants are measured before they are learnt."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor | None]]


def denoising_loss(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    clean: Tensor,
    *,
    condition: Tensor | None = None,
    reference: Reference = (0.0, 1.0),
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the estimated noise, per coordinate, over all levels alike; a scalar.

    Args:
        network: the vector field ``s``, whose parameters are trained.
        form: how the energy is made of ``s``.
        schedule: the noise levels; every one is drawn, level 0 included.
        clean: data, shape ``(batch, *event_shape)``.
        condition: stacked tokens, of length ``batch``.
        reference: mean and variance of the data.
        generator: where levels and noise come from, on the device of ``clean``.
    """
    level = torch.randint(len(schedule), (len(clean),), generator=generator, device=clean.device)
    x, noise = noised(schedule, clean, level, generator)
    return _denoise(noise_potential(network, form, schedule, x, level, condition, reference), x, noise)


class Losses(NamedTuple):
    """Two scalars: the error of the noise per coordinate, and the surprise of the level in nats per coordinate."""

    denoising: Tensor
    which_level: Tensor


@dataclass(frozen=True)
class Levels:
    """The levels that are told apart while training.

    Attributes:
        schedule: the finer schedule.
        share: how often each of its levels is drawn, ``(len(schedule),)``.
        steps: differences ``c_{i+1} - c_i`` of the levels' constants, ``(len(schedule) - 1,)`` float64; learnt.
    """

    schedule: NoiseSchedule
    share: Tensor
    steps: nn.Parameter

    @classmethod
    def of(cls, schedule: NoiseSchedule, *, size: int, device: torch.device | str = "cpu") -> Levels:
        """Levels of points of ``size`` coordinates: all of ``schedule``, and others between them.

        The variance of the noise changes from level to level by at most a factor ``1 + sqrt(2 / size)``, about the
        relative spread of the square of so many normal numbers. All levels of ``schedule`` stand for equal shares.
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
        """``c`` of every level, ``(len(schedule),)``, 0 at the cleanest."""
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
        """Both losses, with one call of the network for the points and one for their neighbours' levels.

        Args:
            network: the vector field ``s``, whose parameters are trained.
            form: how the energy is made of ``s``.
            clean: data, shape ``(batch, *event_shape)``.
            condition: stacked tokens, of length ``batch``.
            reference: mean and variance of the data.
            generator: where levels and noise come from, on the device of ``clean``.
        """
        count, device, last = len(clean), clean.device, len(self.schedule) - 1
        level = torch.multinomial(self.share, count, replacement=True, generator=generator)
        x, noise = noised(self.schedule, clean, level, generator)
        f = noise_potential(network, form, self.schedule, x, level, condition, reference)
        kind = torch.randint(2 * len(DISTANCES), (count,), generator=generator, device=device)
        neighbour = level + constant([*DISTANCES, *(-d for d in DISTANCES)], device)[kind].long()
        there = (neighbour >= 0) & (neighbour <= last)
        neighbour = neighbour.clamp(0, last)
        g = noise_potential(network, form, self.schedule, x.detach(), neighbour, condition, reference)
        odds = g / self.schedule.sigma(neighbour) - f / self.schedule.sigma(level)
        constants = self.constants
        surprises = surprise(odds + constants[level] - constants[neighbour])
        return Losses(_denoise(f, x, noise), (surprises * there).mean() / clean[0].numel())

    @torch.no_grad()
    def measure(self, network: nn.Module, form: Form, draw: Draw, *, reference: Reference, seed: int) -> None:
        """Set the constants to what they are for the network as it is, so that learning them starts near.

        Between neighbours ``c`` changes by the mean change of the energy, half under one level, half under the
        other.
        """
        generator, device = torch.Generator().manual_seed(seed), self.steps.device
        clean, condition = (part if part is None else part[:FEW] for part in draw(generator))
        assert clean is not None
        noise = torch.randn(clean.shape, generator=generator).to(device)
        clean = clean.to(device)
        condition = None if condition is None else torch.cat([condition] * 4).to(device)
        for i, j in pairwise(range(len(self.schedule))):
            under = [self.schedule.alpha(k) * clean + self.schedule.sigma(k) * noise for k in (i, j)]
            level = torch.tensor([i, i, j, j], device=device).repeat_interleave(len(clean))
            f = noise_potential(network, form, self.schedule, torch.cat(under * 2), level, condition, reference)
            below, above = (f / self.schedule.sigma(level)).chunk(2)
            self.steps[i] = (above - below).mean()


def surprise(odds: Tensor) -> Tensor:
    """``-log sigmoid(odds)``: nats of surprise at what had these log-odds, elementwise."""
    return F.softplus(-odds)


def noised(schedule: NoiseSchedule, clean: Tensor, level: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``alpha clean + sigma noise``, ready to be differentiated by, and the noise; both of the shape of ``clean``."""
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    shape = (-1, *[1] * (clean.ndim - 1))
    alpha, sigma = (scale(level).reshape(shape).to(clean.dtype) for scale in (schedule.alpha, schedule.sigma))
    return (alpha * clean + sigma * noise).requires_grad_(), noise


def _denoise(f: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return ((estimate - noise) ** 2).mean()
