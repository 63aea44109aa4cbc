"""A network as a potential, and the objective that trains it.

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
from .potential import Potential
from .schedule import NoiseSchedule

Form = Literal["squared_distance", "squared_norm", "inner_product"]

Reference = tuple[Any, Any]
"""Mean and variance of the data: numbers, or arrays that broadcast to the event's shape."""


class EnergyModel(Potential):
    """An energy diffusion model: ``U(x, level) = f(x, level) / sigma_level``.

    Conditions of one model share its network, and are evaluated by one call of it.

    Args:
        network: ``s(x, log_snr, label)`` with ``x (batch, *event)``, images with a channel axis; it is put
            in evaluation mode and its parameters are frozen.
        form: how the energy is made of ``s``.
        schedule: the noise levels.
        event_shape: shape of one point; images of one channel may leave the channel out.
        classes: number of class labels that the network knows.
        label: the class, or None for the unconditional model.
        reference: mean and variance of the data, numbers or arrays that broadcast to ``event_shape``.
        name: what it is called in expressions.
        info: provenance, as it stands in the weight file.

    Raises:
        ValueError: an unknown form, or a label that the network does not know.
    """

    backend = "torch"

    def __init__(
        self,
        network: nn.Module,
        *,
        form: Form,
        schedule: NoiseSchedule,
        event_shape: Sequence[int],
        classes: int = 0,
        label: int | None = None,
        reference: Reference = (0.0, 1.0),
        name: str = "model",
        info: Mapping[str, str] | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r}: use one of {', '.join(get_args(Form))}")
        self.network = network.eval().requires_grad_(False)
        self.form, self.schedule, self.event_shape = form, schedule, tuple(event_shape)
        self.classes, self.label, self.name, self.info = classes, label, name, dict(info or {})
        self.reference = reference

    @property
    def device(self) -> torch.device:
        """Where the network is, and points must be."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> EnergyModel:
        """The same model with its network moved to ``device``."""
        return self._with(self.label, self.name, self.network.to(device))

    def given(self, label: int) -> EnergyModel:
        """The model of one class; without it, that of all.

        Raises:
            ValueError: the model has no classes, or not this one.
            TypeError: a label that is not an integer.
        """
        base, allowed = self.name.split("[")[0], f".given(0) to .given({self.classes - 1})"
        if self.classes == 0:
            raise ValueError(f"{base} is not conditional: use it without .given({label!r})")
        if not isinstance(label, int) or isinstance(label, bool):
            raise TypeError(f"a class of {base} is an integer, got {label!r}: use {allowed}")
        if not 0 <= label < self.classes:
            raise ValueError(f"{base} has no class {label}: use {allowed}")
        return self._with(label, f"{base}[{label}]", self.network)

    def _with(self, label: int | None, name: str, network: nn.Module) -> EnergyModel:
        return EnergyModel(
            network,
            form=self.form,
            schedule=self.schedule,
            event_shape=self.event_shape,
            classes=self.classes,
            label=label,
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
            energy = self._network_energy(points, level, [member._token() for member in members])  # type: ignore[attr-defined]
            (gradient,) = torch.autograd.grad(energy.sum(), points)
        energies, gradients = energy.detach().chunk(len(members)), gradient.chunk(len(members))
        return [(u.reshape(chains), g.reshape(x.shape)) for u, g in zip(energies, gradients, strict=True)]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], x, level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        chains, flat = x.shape[: x.ndim - len(self.event_shape)], x.reshape(-1, *self.event_shape)
        return self._network_energy(flat, level, [self._token()]).reshape(chains)

    def _network_energy(self, x: Tensor, level: Any, tokens: Sequence[int]) -> Tensor:
        """Energies ``(batch,)`` of points ``(batch, *event_shape)``, as many for each label token."""
        if x.device.type != self.device.type:
            raise ValueError(f"{self.name} is on {self.device}, the points on {x.device}: pass x.to('{self.device}')")
        label = torch.tensor(tokens, device=x.device)
        if len(tokens) > 1:
            label = label.repeat_interleave(len(x) // len(tokens))
        where = torch.tensor([int(level)], device=x.device)  # one for all: the embedding is computed once
        f = noise_potential(self.network, self.form, self.schedule, x, where, label, self.reference)
        return f / self.schedule.sigma(level)

    def _token(self) -> int:
        return self.classes if self.label is None else self.label


def noise_potential(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    x: Tensor,
    level: Tensor,
    label: Tensor | None,
    reference: Reference = (0.0, 1.0),
) -> Tensor:
    """``f(x, level)``, whose gradient in ``x`` estimates the noise; sums in float64.

    Args:
        network: the vector field ``s``; it computes in the precision of its parameters.
        form: how ``f`` is made of ``s``.
        schedule: the noise levels.
        x: points, shape ``(batch, *event_shape)``.
        level: integers, shape ``(batch,)`` or ``(1,)``.
        label: class labels, shape ``(batch,)`` or ``(1,)``; not read by a network without classes.
        reference: mean and variance of the data; not read by ``squared_distance``.

    Returns:
        Shape ``(batch,)``, float64.
    """
    precision = next(network.parameters()).dtype
    images = x[:, None] if x.ndim == 3 else x
    s = network(images.to(precision), schedule.log_snr(level).to(precision), label).reshape(x.shape)
    axes = tuple(range(1, x.ndim))
    if form == "squared_distance":
        return 0.5 * ((x.double() - s.double()) ** 2).sum(axes)
    mean, variance = (torch.as_tensor(value, dtype=torch.float64, device=x.device) for value in reference)
    alpha, sigma = (_per_point(scale(level), x) for scale in (schedule.alpha, schedule.sigma))
    gaussian = 0.5 * sigma * (x.double() - alpha * mean) ** 2 / (alpha**2 * variance + sigma**2)
    inner = 0.5 * s.double() ** 2 if form == "squared_norm" else x.double() * s.double()
    return (gaussian + inner).sum(axes)


def denoising_loss(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    clean: Tensor,
    *,
    label: Tensor | None = None,
    reference: Reference = (0.0, 1.0),
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the estimated noise, per coordinate, over all levels alike; a scalar.

    Args:
        network: the vector field ``s``, whose parameters are trained.
        form: how the energy is made of ``s``.
        schedule: the noise levels; every one is drawn, level 0 included.
        clean: data, shape ``(batch, *event_shape)``.
        label: class labels, shape ``(batch,)``.
        reference: mean and variance of the data.
        generator: where levels and noise come from.
    """
    level = torch.randint(len(schedule), (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    alpha, sigma = (_per_point(scale(level), clean).to(clean.dtype) for scale in (schedule.alpha, schedule.sigma))
    x = (alpha * clean + sigma * noise).requires_grad_()
    f = noise_potential(network, form, schedule, x, level, label, reference)
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return ((estimate - noise) ** 2).mean()


def _per_point(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))
