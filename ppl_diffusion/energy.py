"""A network as a potential.

Under ``x_t = alpha x_0 + sigma z`` the best estimate of the noise ``z`` from ``x_t`` is ``-sigma`` times
the score. If the estimate is a gradient, ``eps(x, t) = grad_x f(x, t)``, there is an energy,
``U = f / sigma``, and ``-grad U`` is the score. Three ways to make a scalar of a vector field ``s(x, t)``:

    squared_distance   f = 1/2 ||x - s||^2              a Gaussian already when s = 0
    squared_norm       f = sigma U_ref + 1/2 ||s||^2    a Gaussian times something bounded by 1
    inner_product      f = sigma U_ref + <x, s>         unbounded below in principle

``U_ref(x) = sum (x - alpha m)^2 / (2 (alpha^2 v + sigma^2))`` is the energy of a reference Gaussian with the
mean ``m`` and the variance ``v`` of the data at the same level. It rules where the network has seen
nothing, far out, so that quotients of models have the tails that quotients of their Gaussians have. At
the noisiest level of a variance-preserving schedule every form is N(0, I) when ``s`` vanishes.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552; Should EBMs Model the
Energy or the Score? (Salimans and Ho, 2021), https://openreview.net/forum?id=9AS-TF2jRNb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .arrays import Array
from .condition import Classes, Conditions, Token
from .potential import Potential
from .schedule import NoiseSchedule

Form = Literal["squared_distance", "squared_norm", "inner_product"]

Reference = tuple[Any, Any]
"""Mean and variance of the data: numbers, or arrays that broadcast to the event's shape."""


class EnergyModel(Potential):
    """An energy diffusion model: ``U(x, level) = f(x, level) / sigma_level``.

    Conditions of one model share its network, and are evaluated by one call of it.

    Args:
        network: ``s(x, log_snr, condition)`` with ``x (batch, *event)``, images with a channel axis; it is put
            in evaluation mode and its parameters are frozen.
        form: how the energy is made of ``s``.
        schedule: the noise levels.
        event_shape: shape of one point; images of one channel may leave the channel out.
        conditions: what the network can be conditioned on; by default nothing.
        token: of one condition, or None for the unconditional model.
        reference: mean and variance of the data, numbers or arrays that broadcast to ``event_shape``.
        name: what it is called in expressions.
        info: provenance, as it stands in the weight file.

    Raises:
        ValueError: an unknown form.
    """

    backend = "torch"

    def __init__(
        self,
        network: nn.Module,
        *,
        form: Form,
        schedule: NoiseSchedule,
        event_shape: Sequence[int],
        conditions: Conditions | None = None,
        token: Token | None = None,
        reference: Reference = (0.0, 1.0),
        name: str = "model",
        info: Mapping[str, str] | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r}: use one of {', '.join(get_args(Form))}")
        self.network = network.eval().requires_grad_(False)
        self.form, self.schedule, self.event_shape = form, schedule, tuple(event_shape)
        self.conditions = conditions or Classes(0)
        self.token = self.conditions.anything if token is None else token
        self.name, self.info, self._reference = name, dict(info or {}), reference

    @property
    def reference(self) -> Reference:
        """Mean and variance of the data."""
        return self._reference

    @property
    def device(self) -> torch.device:
        """Where the network is, and points must be."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> EnergyModel:
        """The same model with its network moved to ``device``."""
        return self._with(self.token, self.name, self.network.to(device))

    def given(self, *condition: Any, **named: Any) -> EnergyModel:
        """The model under one condition, ``.given(3)`` or ``.given(x=0.3, y=0.6)``; without it, that of all.

        Raises:
            ValueError: the model is not conditional, or does not have this condition.
            TypeError: a condition of another kind.
        """
        base = self.name.split("[")[0]
        token, text = self.conditions.token(base, *condition, **named)
        return self._with(token, f"{base}[{text}]", self.network)

    def _with(self, token: Token, name: str, network: nn.Module) -> EnergyModel:
        return EnergyModel(
            network,
            form=self.form,
            schedule=self.schedule,
            event_shape=self.event_shape,
            conditions=self.conditions,
            token=token,
            reference=self.reference,
            name=name,
            info=self.info,
        )

    @property
    def group(self) -> Any:
        """The network: conditions of one model are evaluated together."""
        return self.network

    def evaluate_group(self, members: Sequence[Potential], x: Array, level: Any) -> list[tuple[Array, Array]]:
        """Energies and gradients under every condition, by one call of the network on the stacked points."""
        chains, flat = x.shape[: x.ndim - len(self.event_shape)], x.reshape(-1, *self.event_shape)
        with torch.enable_grad():
            points = flat.detach().repeat(len(members), *[1] * len(self.event_shape)).requires_grad_()
            energy = self._network_energy(points, level, [member.token for member in members])  # type: ignore[attr-defined]
            (gradient,) = torch.autograd.grad(energy.sum(), points)
        energies, gradients = energy.detach().chunk(len(members)), gradient.chunk(len(members))
        return [(u.reshape(chains), g.reshape(x.shape)) for u, g in zip(energies, gradients, strict=True)]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], x, level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        chains, flat = x.shape[: x.ndim - len(self.event_shape)], x.reshape(-1, *self.event_shape)
        return self._network_energy(flat, level, [self.token]).reshape(chains)

    def _network_energy(self, x: Tensor, level: Any, tokens: Sequence[Token]) -> Tensor:
        """Energies ``(batch,)`` of points ``(batch, *event_shape)``, as many for each token."""
        if x.device.type != self.device.type:
            raise ValueError(f"{self.name} is on {self.device}, the points on {x.device}: pass x.to('{self.device}')")
        condition = self.conditions.stack(tokens, x.device)
        if len(tokens) > 1:
            condition = condition.repeat_interleave(len(x) // len(tokens), dim=0)
        where = torch.tensor([int(level)], device=x.device)  # one for all: the embedding is computed once
        f = noise_potential(self.network, self.form, self.schedule, x, where, condition, self.reference)
        return f / self.schedule.sigma(level)


def noise_potential(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    x: Tensor,
    level: Tensor,
    condition: Tensor | None,
    reference: Reference = (0.0, 1.0),
) -> Tensor:
    """``f(x, level)``, whose gradient in ``x`` estimates the noise; sums in float64.

    Args:
        network: the vector field ``s``; it computes in the precision of its parameters.
        form: how ``f`` is made of ``s``.
        schedule: the noise levels.
        x: points, shape ``(batch, *event_shape)``.
        level: integers, shape ``(batch,)`` or ``(1,)``.
        condition: stacked tokens, of length ``batch`` or 1; not read by a network without conditions.
        reference: mean and variance of the data; not read by ``squared_distance``.

    Returns:
        Shape ``(batch,)``, float64.
    """
    precision = next(network.parameters()).dtype
    images = x[:, None] if x.ndim == 3 else x
    s = network(images.to(precision), schedule.log_snr(level).to(precision), condition).reshape(x.shape)
    axes = tuple(range(1, x.ndim))
    if form == "squared_distance":
        return 0.5 * ((x.double() - s.double()) ** 2).sum(axes)
    mean, variance = (torch.as_tensor(value, dtype=torch.float64, device=x.device) for value in reference)
    alpha, sigma = (_per_point(scale(level), x) for scale in (schedule.alpha, schedule.sigma))
    gaussian = 0.5 * sigma * (x.double() - alpha * mean) ** 2 / (alpha**2 * variance + sigma**2)
    inner = 0.5 * s.double() ** 2 if form == "squared_norm" else x.double() * s.double()
    return (gaussian + inner).sum(axes)


def _per_point(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))
