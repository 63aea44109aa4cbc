"""A network as a potential, and the objective that trains it.

Under ``x_t = alpha x_0 + sigma z`` the best estimate of the noise ``z`` from ``x_t`` is ``-sigma`` times the score.
If the estimate is a gradient, ``eps(x, t) = grad_x f(x, t)``, there is an energy, ``U = f / sigma``, and ``-grad U`` is the score.
Three ways to make a scalar of a vector field ``s(x, t)``:

    squared_distance   f = 1/2 ||x - s||^2                 a Gaussian already when s = 0
    squared_norm       f = sigma/2 ||x||^2 + 1/2 ||s||^2   a Gaussian times something bounded by 1
    inner_product      f = sigma/2 ||x||^2 + <x, s>        unbounded below in principle

Each is the energy of N(0, I) at the noisiest level of a variance-preserving schedule when ``s`` vanishes.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552; Should EBMs Model the
Energy or the Score? (Salimans and Ho, 2021), https://openreview.net/forum?id=9AS-TF2jRNb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .potential import Array, Potential
from .schedule import NoiseSchedule

Form = Literal["squared_distance", "squared_norm", "inner_product"]


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
        name: str = "model",
        info: Mapping[str, str] | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r}: use one of {', '.join(get_args(Form))}")
        self.network = network.eval().requires_grad_(False)
        self.form, self.schedule, self.event_shape = form, schedule, tuple(event_shape)
        self.classes, self.label, self.name, self.info = classes, label, name, dict(info or {})

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
        base = self.name.split("[")[0]
        if self.classes == 0:
            raise ValueError(f"{base} is not conditional: use it without .given({label!r})")
        if not isinstance(label, int) or isinstance(label, bool):
            raise TypeError(f"a class of {base} is an integer, got {label!r}: use .given(0) to .given({self.classes - 1})")
        if not 0 <= label < self.classes:
            raise ValueError(f"{base} has no class {label}: use .given(0) to .given({self.classes - 1})")
        return self._with(label, f"{base}[{label}]", self.network)

    def _with(self, label: int | None, name: str, network: nn.Module) -> EnergyModel:
        return EnergyModel(
            network,
            form=self.form,
            schedule=self.schedule,
            event_shape=self.event_shape,
            classes=self.classes,
            label=label,
            name=name,
            info=self.info,
        )

    @property
    def group(self) -> Any:
        """The network: conditions of one model are evaluated together."""
        return self.network

    def evaluate_group(self, members: Sequence[Potential], x: Array, level: Any) -> list[tuple[Array, Array]]:
        """Energies and gradients under every condition, by one call of the network on the stacked points."""
        self._check_device(x)
        chains, flat = x.shape[: x.ndim - len(self.event_shape)], x.reshape(-1, *self.event_shape)
        with torch.enable_grad():
            points = flat.detach().repeat(len(members), *[1] * len(self.event_shape)).requires_grad_()
            labels = [label for member in members for label in [member._token()] * len(flat)]  # type: ignore[attr-defined]
            f = noise_potential(self.network, self.form, self.schedule, points, _filled(level, points), _labels(labels, x))
            (gradient,) = torch.autograd.grad(f.sum(), points)
        sigma = self.schedule.sigma(level)
        energies, gradients = (f.detach() / sigma).chunk(len(members)), (gradient / sigma).chunk(len(members))
        return [(u.reshape(chains), g.reshape(x.shape)) for u, g in zip(energies, gradients, strict=True)]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], x, level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        self._check_device(x)
        chains, flat = x.shape[: x.ndim - len(self.event_shape)], x.reshape(-1, *self.event_shape)
        labels = _labels([self._token()] * len(flat), x)
        f = noise_potential(self.network, self.form, self.schedule, flat, _filled(level, flat), labels)
        return (f / self.schedule.sigma(level)).reshape(chains)

    def _token(self) -> int:
        return self.classes if self.label is None else self.label

    def _check_device(self, x: Tensor) -> None:
        if x.device.type != self.device.type:
            raise ValueError(f"{self.name} is on {self.device} and the points on {x.device}: pass x.to('{self.device}')")


def noise_potential(
    network: nn.Module, form: Form, schedule: NoiseSchedule, x: Tensor, level: Tensor, label: Tensor | None
) -> Tensor:
    """``f(x, level)``, whose gradient in ``x`` estimates the noise; sums in float64.

    Args:
        network: the vector field ``s``; it computes in the precision of its parameters.
        form: how ``f`` is made of ``s``.
        schedule: the noise levels.
        x: points, shape ``(batch, *event_shape)``.
        level: integers, shape ``(batch,)``.
        label: class labels, shape ``(batch,)``, or None for a network without classes.

    Returns:
        Shape ``(batch,)``, float64.
    """
    precision = next(network.parameters()).dtype
    images = x[:, None] if x.ndim == 3 else x
    s = network(images.to(precision), schedule.log_snr(level).to(precision), label).reshape(x.shape)
    axes = tuple(range(1, x.ndim))
    if form == "squared_distance":
        return 0.5 * ((x.double() - s.double()) ** 2).sum(axes)
    reference = 0.5 * schedule.sigma(level) * (x.double() ** 2).sum(axes)
    inner = 0.5 * (s.double() ** 2) if form == "squared_norm" else x.double() * s.double()
    return reference + inner.sum(axes)


def denoising_loss(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    clean: Tensor,
    *,
    label: Tensor | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the estimated noise, per coordinate, over all levels alike; a scalar.

    Args:
        network: the vector field ``s``, whose parameters are trained.
        form: how the energy is made of ``s``.
        schedule: the noise levels; every one is drawn, level 0 included.
        clean: data, shape ``(batch, *event_shape)``.
        label: class labels, shape ``(batch,)``.
        generator: where levels and noise come from.
    """
    level = torch.randint(len(schedule), (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    extra = (-1,) + (1,) * (clean.ndim - 1)
    alpha, sigma = (scale(level).to(clean.dtype).reshape(extra) for scale in (schedule.alpha, schedule.sigma))
    x = (alpha * clean + sigma * noise).requires_grad_()
    f = noise_potential(network, form, schedule, x, level, label)
    (estimate,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return ((estimate - noise) ** 2).mean()


def _filled(level: Any, x: Tensor) -> Tensor:
    return torch.full((len(x),), int(level), device=x.device)


def _labels(labels: Sequence[int], x: Tensor) -> Tensor:
    return torch.tensor(labels, device=x.device)
