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

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .arrays import Array, constant, on_cpu
from .chunks import Chunks
from .condition import Classes, Conditions, Token, stacked
from .density import Density
from .potential import Potential
from .schedule import NoiseSchedule

Form = Literal["squared_distance", "squared_norm", "inner_product"]

Reference = tuple[Any, Any]
"""Mean and variance of the data: numbers, or arrays that broadcast to the event's shape."""


class EnergyModel(Potential):
    """An energy diffusion model: ``U(x, level) = f(x, level) / sigma_level``.

    Conditions of one model share its network, and are evaluated by one call of it.

    Args:
        network: a torch module ``s(x, log_snr, condition)`` of the shape of ``x``: ``x (batch, *event)``, images with a
            channel axis; ``log_snr (batch,)`` or ``(1,)``, one level for all, so broadcast it; ``condition``, tokens of
            length ``batch`` or 1, to be ignored by a network without conditions. It is put in evaluation mode and its
            parameters are frozen. On CUDA, calls of the networks of this library are recorded; for another one see
            ``ppl_diffusion.recording``. ``ppl_diffusion.objective.denoising_loss`` is what it is trained by.
        form: how the energy is made of ``s``: "squared_distance", "squared_norm" or "inner_product", see
            :func:`noise_potential`.
        schedule: the noise levels.
        event_shape: shape of one point; images of one channel may leave the channel out.
        conditions: what the network can be conditioned on; by default nothing.
        token: of one condition, or None for the unconditional model.
        reference: mean and variance of the data, numbers or arrays that broadcast to ``event_shape``, as in training.
        name: what it is called in expressions.
        info: provenance, as it stands in the weight file.
        chunks: how many points are evaluated at once; a rule of its own by default, see ``ppl_diffusion.chunks``.

    Raises:
        ValueError: an unknown form; at evaluation, a network that returns another shape.
        TypeError: a network that is no module with parameters, or no schedule.
    """

    backend = "torch"
    level_arrays = True

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
        chunks: Chunks | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r}: use one of {', '.join(get_args(Form))}")
        if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
            raise TypeError(f"network must be a torch module with parameters, got {network!r}: see EnergyFunction")
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {schedule!r}: try NoiseSchedule.cosine(100)")
        self.network = network.eval().requires_grad_(False)
        self.form, self.schedule, self.event_shape = form, schedule, tuple(event_shape)
        self.conditions = conditions or Classes(0)
        self.token = self.conditions.anything if token is None else token
        self.name, self.info, self._reference = name, dict(info or {}), reference
        self.chunks = chunks or Chunks(math.prod(self.event_shape), self.network)

    @property
    def reference(self) -> Reference:
        """Mean and variance of the data."""
        return self._reference

    @property
    def device(self) -> torch.device:
        """Where the network is, and points must be."""
        return self.chunks.device

    def to(self, device: str | torch.device) -> EnergyModel:
        """This model, its network moved to ``device``, as torch moves modules: for all who share it."""
        self.network.to(device)
        return self

    def given(self, *condition: Any, **named: Any) -> EnergyModel:
        """The model under one condition, ``.given(3)`` or ``.given(x=0.3, y=0.6)``; without it, that of all.

        Raises:
            ValueError: the model is not conditional, or does not have this condition.
            TypeError: a condition of another kind.
        """
        base = self.name.split("[")[0]
        token, text = self.conditions.token(base, *condition, **named)
        return EnergyModel(
            self.network,
            form=self.form,
            schedule=self.schedule,
            event_shape=self.event_shape,
            conditions=self.conditions,
            token=token,
            reference=self.reference,
            name=f"{base}[{text}]",
            info=self.info,
            chunks=self.chunks,
        )

    @property
    def identity(self) -> Any:
        """Network and condition."""
        return self.group, self.token

    @property
    def group(self) -> Any:
        """The network and what makes an energy of it: conditions of one model are evaluated together."""
        return self.network, self.form, id(self._reference)

    def evaluate_group(
        self, members: Sequence[Density], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Energies and gradients under every condition, by one call of the network on the stacked points."""
        together, sizes, condition = self._together(members, points)
        where = self._where(level)

        def some(part: slice) -> tuple[Tensor, ...]:
            return self._gradient(together[part], where, condition if len(condition) == 1 else condition[part])

        energies, gradients = (values.split(sizes) for values in self.chunks.evaluate(some, len(together)))
        return [
            (u.reshape(self._chains(x)), g.reshape(x.shape))
            for u, g, x in zip(energies, gradients, points, strict=True)
        ]

    def energy_group(self, members: Sequence[Density], points: Sequence[Array], level: Any) -> list[Array]:
        """Energies under every condition, by one call of the network on the stacked points."""
        together, sizes, condition = self._together(members, points)
        where = self._where(level)

        def some(part: slice) -> tuple[Tensor]:
            return (self._energy(together[part], where, condition if len(condition) == 1 else condition[part]),)

        (energies,) = self.chunks.evaluate(some, len(together))
        return [u.reshape(self._chains(x)) for u, x in zip(energies.split(sizes), points, strict=True)]

    def _together(self, members: Sequence[Density], points: Sequence[Array]) -> tuple[Tensor, list[int], Tensor]:
        """All points, how many each member has, and their conditions as the network takes them."""
        flat = [x.reshape(-1, *self.event_shape) for x in points]
        sizes = [len(x) for x in flat]
        for x in flat:
            if x.device.type != self.device.type:
                where = f"{self.name} is on {self.device}, the points on {x.device}"
                raise ValueError(f"{where}: pass x.to('{self.device}')")
        tokens = [member.token for member in members]  # type: ignore[attr-defined]
        return torch.cat(flat), sizes, stacked(self.conditions, tokens, sizes, self.device)

    def _chains(self, x: Array) -> Any:
        return x.shape[: x.ndim - len(self.event_shape)]

    @on_cpu()
    def tune(self, points: int, *, level: int | None = None) -> dict[int, float]:
        """Find out in how many points at once the network is evaluated fastest on its device, and keep to it.

        Models under other conditions share the finding. Rounding may depend on it, so tune before the first run
        and not between runs that should agree.

        Args:
            points: evaluated together: chains times conditions.
            level: noise level, by default one in the middle.

        Returns:
            Seconds for one evaluation of all points, by the number that goes at once.
        """
        x = torch.randn(points, *self.event_shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        where = self._where(len(self.schedule) // 2 if level is None else level)

        def some(part: slice) -> tuple[Tensor, ...]:
            return self._gradient(x[part], where, stacked(self.conditions, [self.token], [1], self.device))

        return self.chunks.tune(some, points)

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _where(self, level: Any) -> Tensor:
        """The level as the network takes it: one for all points, so that its embedding is computed once."""
        if isinstance(level, Tensor):
            return level.to(self.device)
        self.schedule.check_level(int(level))
        return torch.full((1,), int(level), device=self.device)

    @property
    def _energy(self) -> Callable[..., Tensor]:
        """The energy as a function of points, level and condition, which knows no other model."""
        return partial(_energy, self.network, self.form, self.schedule, self.reference)

    def _gradient(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Energies and gradients; on CUDA what is recorded of such a call is replayed."""
        return self.chunks.launch(partial(_gradient, self._energy), *given, kind=(*self.group, self.schedule))


def _energy(
    network: nn.Module,
    form: Form,
    schedule: NoiseSchedule,
    reference: Reference,
    x: Tensor,
    level: Tensor,
    condition: Tensor,
) -> Tensor:
    """Energies ``(batch,)`` of points ``(batch, *event_shape)`` at a level ``(1,)``, under stacked conditions."""
    inside = level.clamp(0, len(schedule) - 1)
    f = noise_potential(network, form, schedule, x, inside, condition, reference)
    return f / schedule.sigma(inside).where(level == inside, torch.nan)


def _gradient(energy: Callable[..., Tensor], x: Tensor, level: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The same with their gradients, ``(batch, *event_shape)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x, level, condition)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


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
    s = network(images.to(precision), schedule.log_snr(level).to(precision), condition)
    if not isinstance(s, Tensor) or s.numel() != x.numel():
        found = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(f"the network must return the shape of its points, {tuple(images.shape)}, it returned {found}")
    s = s.reshape(x.shape)
    axes = tuple(range(1, x.ndim))
    if form == "squared_distance":
        return 0.5 * ((x.double() - s.double()) ** 2).sum(axes)
    mean, variance = (value if isinstance(value, float) else constant(value, x.device) for value in reference)
    alpha, sigma = (_per_point(scale(level), x) for scale in (schedule.alpha, schedule.sigma))
    gaussian = 0.5 * sigma * (x.double() - alpha * mean) ** 2 / (alpha**2 * variance + sigma**2)
    inner = 0.5 * s.double() ** 2 if form == "squared_norm" else x.double() * s.double()
    return (gaussian + inner).sum(axes)


def _per_point(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))
