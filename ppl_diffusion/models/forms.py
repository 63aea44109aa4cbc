"""The forms of an energy: how a scalar is made from a network's output.

Under ``x_t = alpha x_0 + sigma z`` the best estimate of the noise ``z`` from ``x_t`` is ``-sigma`` times the score. If
the estimate is a gradient, ``eps(x, t) = grad_x f(x, t)``, then ``U = f / sigma`` is an energy and ``-grad U`` is the
score. A scalar ``f`` can be made from a network's vector field ``s(x, t)`` in three ways:

    squared_distance   f = 1/2 ||x - s||^2              a Gaussian already when s = 0
    squared_norm       f = sigma U_ref + 1/2 ||s||^2    a Gaussian times something bounded by 1
    inner_product      f = sigma U_ref + <x, s>         unbounded below in principle

``U_ref(x) = sum (x - alpha m)^2 / (2 (alpha^2 v + sigma^2))`` is the energy, at the same level, of a reference Gaussian
whose mean ``m`` and variance ``v`` are those of the data. It is meant to dominate far from the data, where the network
was not trained, so that a quotient of models has the tails of the quotient of their Gaussians. At the noisiest level
of a variance-preserving schedule every form is N(0, I) when ``s`` vanishes.

A classifier is a fourth form: ``s`` are logits, and the energy is minus the log-probability of the condition,

    classifier         f = -sigma log softmax(s)[condition]

It is a likelihood, a factor of energies of the other forms.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552; Should EBMs Model the
Energy or the Score? (Salimans and Ho, 2021), https://openreview.net/forum?id=9AS-TF2jRNb
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import constant
from ..schedule import NoiseSchedule
from .batches import called_with

Form = Literal["squared_distance", "squared_norm", "inner_product", "classifier"]

DENSITIES: tuple[Form, ...] = ("squared_distance", "squared_norm", "inner_product")
"""The forms that are densities of their own; a classifier is a factor of them."""

Reference = tuple[Any, Any]
"""Mean and variance of the data: numbers, or arrays that broadcast to ``event_shape``."""


def noise_potential(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    x: Tensor,
    level: Tensor,
    condition: Tensor | None,
    reference: Reference = (0.0, 1.0),
) -> Tensor:
    """Return ``f(x, level)``, whose gradient in ``x`` estimates the noise; sums are in float64.

    Args:
        network: the vector field ``s``, or logits, evaluated in the precision of its parameters.
        form: how ``f`` is computed from ``s``, see the top of this module.
        schedule: the noise levels.
        x: points, shape ``(batch, *event_shape)``.
        level: integers, shape ``(batch,)`` or ``(1,)``.
        condition: stacked tokens, of length ``batch`` or 1; ignored by a network without conditions.
        reference: mean and variance of the data; ignored by ``squared_distance`` and ``classifier``.

    Returns:
        Noise potentials, shape ``(batch,)``, float64.
    """
    precision = next(network.parameters()).dtype
    images = x[:, None] if x.ndim == 3 else x
    try:
        with called_with(images):
            s = network(images.to(precision), schedule.log_snr(level).to(precision), condition)
    except TypeError:
        check_signature(network)
        raise
    if form == "classifier":
        assert condition is not None
        return schedule.sigma(level) * label_surprise(s, condition)
    if not isinstance(s, Tensor) or s.numel() != x.numel():
        returned = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(
            f"the network must return the shape of its points, {tuple(images.shape)}, it returned {returned}"
        )
    s = s.reshape(x.shape)
    axes = tuple(range(1, x.ndim))
    if form == "squared_distance":
        return 0.5 * ((x.double() - s.double()) ** 2).sum(axes)
    mean, variance = (value if isinstance(value, float) else constant(value, x.device) for value in reference)
    alpha, sigma = (per_point(scale(level), x) for scale in (schedule.alpha, schedule.sigma))
    gaussian = 0.5 * sigma * (x.double() - alpha * mean) ** 2 / (alpha**2 * variance + sigma**2)
    inner = 0.5 * s.double() ** 2 if form == "squared_norm" else x.double() * s.double()
    return (gaussian + inner).sum(axes)


def per_point(values: Tensor, x: Tensor) -> Tensor:
    """Reshape one value per point so that it broadcasts to ``x (batch, *event_shape)``."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def label_surprise(logits: Tensor, label: Tensor) -> Tensor:
    """Return ``-log p(label | x)`` in nats, shape ``(batch,)``, float64.

    Args:
        logits: shape ``(batch, classes)``.
        label: integers, shape ``(batch,)`` or ``(1,)``; ``classes`` stands for any class, of probability one.
    """
    log_probabilities = F.pad(F.log_softmax(logits.double(), 1), (0, 1))
    return -log_probabilities.gather(1, label.expand(len(logits))[:, None])[:, 0]


def check_signature(
    network: nn.Module, arguments: Sequence[str] = ("x", "log_snr", "condition"), *, otherwise: str = ""
) -> None:
    """Check that ``network`` can be called with these arguments by position, as far as its signature says.

    Args:
        network: the network.
        arguments: names of the arguments.
        otherwise: what else may be done, for the message.

    Raises:
        TypeError: it takes other arguments.
    """
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # compiled code does not say
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        asked = ", ".join(arguments)
        raise TypeError(
            f"forward() of {type(network).__name__} is called as forward({asked}), and takes {signature}: wrap it in a "
            f"module with this signature, def forward(self, {asked}){otherwise}"
        ) from error


def energy_of(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    reference: Reference,
    x: Tensor,
    level: Tensor,
    condition: Tensor,
) -> Tensor:
    """Return energies ``(batch,)`` of ``x (batch, *event_shape)`` at ``level (1,)``; NaN outside the schedule."""
    inside = level.clamp(0, len(schedule) - 1)
    f = noise_potential(network, form, schedule, x, inside, condition, reference)
    return f / schedule.sigma(inside).where(level == inside, torch.nan)


def energy_and_gradient(
    energy: Callable[..., Tensor], x: Tensor, level: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return energies ``(batch,)`` and their gradients ``(batch, *event_shape)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x, level, condition)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]
