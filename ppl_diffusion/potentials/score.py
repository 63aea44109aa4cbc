"""Densities of which only the score is known: the gradient of the log-density at every level, and no energy.

A denoising network predicts the noise ``e``, the clean ``x_0``, or a combination of both, from ``x = alpha x_0 + sigma
e``. Each of these predictions gives the others, and the score ``-e / sigma``:

    noise      e
    velocity   v = alpha e - sigma x_0     e = (alpha v + sigma x) / (alpha^2 + sigma^2)
    sample     x_0                         e = (x - alpha x_0) / sigma
    score      s                           e = -sigma s
    flow       u = e - x_0                 e = (x + alpha u) / (alpha + sigma)

Such a density can be multiplied, divided and raised to powers. What needs differences of log-density, mixtures, weights
and normalisers, is refused. Kernels accept a proposal by the work along its own path instead, see
``bridges.blackjax.line_integral``.

Source: Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022), appendix D,
https://arxiv.org/abs/2202.00512; Flow Matching for Generative Modeling (Lipman et al., 2023),
https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from ..arrays import Array, double
from .algebra import Product
from .leaf import Leaf
from .target import Target

Prediction = Literal["noise", "velocity", "sample", "score", "flow"]
"""What a denoising network predicts."""


class ScoreLeaf(Leaf):
    """A potential without an energy; a subclass implements :meth:`_gradient`.

    In ``value_and_grad`` its energy counts as zero, so that a product returns the energy of its other factors.
    """

    @property
    def has_energy(self) -> bool:
        """False: only the gradient is known."""
        return False

    @abstractmethod
    def _gradient(self, x: Array, level: Any) -> Array:
        """Return minus the score, shape ``(*chains, *event_shape)``, at validated points."""

    def complaints(self) -> list[str]:
        """Return what is wrong with it, in sentences; told by a walk."""
        return []

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        gradient = self._gradient(x, level)
        return no_energy(gradient, len(self.event_shape)), gradient

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy(x, level=level)  # raises the error that says what to do


def no_energy(gradient: Array, rank: int) -> Array:
    """Return zeros in place of energies, shape ``(*chains,)``, for gradients whose events have ``rank`` axes; NaN for a
    gradient that is not finite."""
    total = gradient.sum(tuple(range(gradient.ndim - rank, gradient.ndim))) if rank else gradient
    return 0.0 * double(total)


def as_noise(predicts: Prediction, output: Array, x: Array, alpha: Any, sigma: Any) -> Array:
    """Return the noise ``e`` that a prediction implies, see the top of this module.

    Args:
        predicts: what ``output`` is.
        output: the prediction, of the shape of ``x``.
        x: points, shape ``(batch, *event_shape)``.
        alpha, sigma: scales of data and noise, numbers or arrays that broadcast to ``x``.
    """
    if predicts == "noise":
        return output
    if predicts == "velocity":
        return (alpha * output + sigma * x) / (alpha**2 + sigma**2)
    if predicts == "sample":
        return (x - alpha * output) / sigma
    if predicts == "score":
        return -sigma * output
    return (x + alpha * output) / (alpha + sigma)


def slopes_at(alpha: float, sigma: float, variance: float) -> dict[Prediction, float]:
    """Return the slope of each prediction in ``x`` for data ``N(0, variance)``, by which predictions are told apart."""
    clean = alpha * variance / (alpha**2 * variance + sigma**2)
    noise = (1 - alpha * clean) / sigma
    return {
        "noise": noise,
        "velocity": alpha * noise - sigma * clean,
        "sample": clean,
        "score": -noise / sigma,
        "flow": noise - clean,
    }


def split(target: Target) -> tuple[Target | None, Target]:
    """Return the factors of ``target`` that have an energy as one product, None without any, and the rest as another.

    Only a product is split; any other target is a rest as a whole.
    """
    if not isinstance(target, Product):
        return None, target
    pairs = list(zip(target.factors, target.exponents, strict=True))
    known, rest = ([(f, a) for f, a in pairs if f.has_energy is has] for has in (True, False))
    if not known:
        return None, target
    exact = Product([f for f, _ in known], [a for _, a in known], log_scale=target.log_scale)
    return exact, Product([f for f, _ in rest], [a for _, a in rest])
