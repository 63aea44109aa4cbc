"""The estimate of a clean point from a noised one, differentiable in the noised one.

For a density of data noised by its schedule, ``x = alpha x_0 + sigma e``, the mean clean point is

    E[x_0 | x] = (x - sigma^2 grad U(x)) / alpha.

Its derivative takes a second derivative of an energy, and a first one of a network that predicts the noise.

Source: An Empirical Bayes Approach to Statistics (Robbins, 1956), https://projecteuclid.org/euclid.bsmsp/1200501653
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..potentials.algebra import Product
from ..potentials.score import split
from ..potentials.target import Target
from .noise import ScorePotential


def clean_estimate(prior: Target, x: Tensor, level: int) -> Tensor:
    """Return ``(x - sigma^2 grad U) / alpha`` of ``x (batch, *event_shape)``, of its shape, differentiable in it."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        alpha, sigma = prior.schedule.alpha(level), prior.schedule.sigma(level)
        return (x - sigma**2 * _gradient(prior, x, level)) / alpha


def check_estimable(prior: Target) -> None:
    """Raise ``TypeError`` if a prior without an energy is no product of denoising networks and energies."""
    for factor, _ in _networks(prior):
        if not isinstance(factor, ScorePotential):
            raise TypeError(
                f"the derivative of the score of {factor} is not known, only of energies, denoising networks and "
                "products of them: give one of these, denoised=prior"
            )


def _networks(prior: Target) -> list[tuple[Any, float]]:
    """Return the factors of a prior that have no energy, and their exponents."""
    if prior.has_energy:
        return []
    rest = split(prior)[1]
    return list(zip(rest.factors, rest.exponents, strict=True)) if isinstance(rest, Product) else [(rest, 1.0)]


def _gradient(prior: Target, x: Tensor, level: int) -> Tensor:
    """Return minus the score of the prior, of the shape of ``x``, differentiable; one call of every network."""
    total: Any = 0.0
    energy = prior if prior.has_energy else split(prior)[0]
    if energy is not None:
        (total,) = torch.autograd.grad(energy._evaluate_energy(x, level).sum(), x, create_graph=True)
    groups: dict[Any, list[tuple[ScorePotential, float]]] = {}
    for factor, exponent in _networks(prior):
        groups.setdefault(factor.group, []).append((factor, exponent))
    for pairs in groups.values():
        members = [factor for factor, _ in pairs]
        found = members[0].evaluate_group(members, [x] * len(members), level, graph=True)
        for (_, exponent), (_, gradient) in zip(pairs, found, strict=True):
            total = total + exponent * gradient
    return total
