"""Metropolis steps of the latent sites that have no diffusion prior, on arrival at a level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

REFRESHMENT_STEPS = 8
"""Number of Metropolis steps of the latent sites without a diffusion prior, on arrival at a level."""

REFRESHMENT_LOG10_SIZES = (-2.0, 0.5)
"""Range of log10 of the proposal standard deviation of such a step, in unconstrained coordinates."""


def metropolis(
    energy_of: Callable[[Tensor], Tensor], x: Tensor, free: np.ndarray, *, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Move coordinates of ``x (chains, size)`` by Metropolis steps, one random coordinate of ``free`` in each.

    Args:
        energy_of: energy ``(chains,)`` of points ``(chains, size)``; what is not finite is a density of zero.
        free: indices of the coordinates that move.

    Returns:
        New points ``(chains, size)``, and the change of energy ``(chains,)``.
    """
    rows = torch.arange(len(x))
    with torch.no_grad():
        begun = energy = _nonfinite_to_inf(energy_of(x))
        for _ in range(REFRESHMENT_STEPS):
            sizes = 10 ** rng.uniform(*REFRESHMENT_LOG10_SIZES, len(x))
            proposed = x.clone()
            proposed[rows, rng.choice(free, len(x))] += torch.from_numpy(sizes * rng.standard_normal(len(x)))
            there = _nonfinite_to_inf(energy_of(proposed))
            accepted = there + torch.from_numpy(np.log(rng.random(len(x)))) < energy
            x, energy = torch.where(accepted[:, None], proposed, x), torch.where(accepted, there, energy)
    return x, torch.where(energy == begun, 0.0, energy - begun)


def _nonfinite_to_inf(energy: Tensor) -> Tensor:
    """Replace energies that are not finite, minus infinity included, by plus infinity: density zero."""
    return torch.where(energy.isfinite(), energy, torch.inf)
