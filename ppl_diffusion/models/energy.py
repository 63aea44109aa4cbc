"""Energy diffusion models: a network as a potential, ``U = f / sigma``, ``f`` of one of the forms of
``ppl_diffusion.models.forms``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..arrays import Array, on_cpu
from ..devices.chunks import Chunks
from ..devices.cuda_graphs import RECORDED
from ..potentials.common_ground import ConditionWarning, warn_outside
from ..potentials.leaf import Leaf
from ..potentials.target import Target
from ..schedule import NoiseSchedule, check_within
from .batches import of_part, stack_points
from .conditions import Classes, Conditions, Token, stacked
from .forms import Form, Reference, check_signature, energy_and_gradient, energy_of
from .networks import ClassifierCNN, EnergyMLP, EnergyUNet, is_conditional


class EnergyModel(Leaf):
    """An energy diffusion model: ``U(x, level) = f(x, level) / sigma_level``.

    Models that differ only in their condition share a network, and are evaluated together by one call of it.

    Args:
        network: a torch module ``s(x, log_snr, condition)`` that returns the shape of ``x``. It receives ``x (batch,
            *event)``, images with a channel axis; ``log_snr (batch,)``, or ``(1,)`` where all points have one level, so
            it must broadcast; and ``condition``, tokens of length ``batch`` or 1, which a network without conditions
            ignores. It is put into evaluation mode and its parameters are frozen. On CUDA, calls of this library's
            networks are recorded; for others see :meth:`record_calls`. ``objective.denoising_loss`` trains it: a
            network that predicts the noise is not one, since its output need not be the gradient of an energy.
        form: "squared_distance", "squared_norm" or "inner_product", see ``ppl_diffusion.models.forms``; or "classifier"
            for a network that returns logits ``(batch, classes)``, whose energy is that of a label, ``.given(3)``.
        schedule: the noise levels.
        event_shape: shape of one point; images of one channel may leave the channel out.
        conditions: the conditions that the network supports; none by default.
        token: token of one condition, or None for the unconditional model.
        reference: mean and variance of the data, numbers or arrays that broadcast to ``event_shape``, as in training.
        name: name of the model in expressions.
        info: provenance, as stored in the header of a weight file.
        chunks: chunked evaluation of the network, shared between conditions; see ``ppl_diffusion.devices.chunks``.

    Raises:
        ValueError: an unknown form, or a conditional network of this library without ``conditions``; at evaluation, a
            network that returns a shape other than that of its points, or that is in training mode.
        TypeError: ``network`` is not a module with parameters, or takes other arguments; or ``schedule`` is not a
            NoiseSchedule.
    """

    backend = "torch"
    level_arrays = True
    levels_of_points = True
    any_schedule = True

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
        check_signature(network)
        if isinstance(event_shape, int):
            raise TypeError(f"event_shape is a tuple: try event_shape=({event_shape},)")
        if conditions is None and is_conditional(network):
            raise ValueError(
                "the network has conditions: give conditions=, such as Classes(n) or Positions(low, high) of "
                "ppl_diffusion.models.conditions"
            )
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {schedule!r}: try NoiseSchedule.cosine(100)")
        self.network = network.eval().requires_grad_(False)
        self.form, self.schedule, self.event_shape = form, schedule, tuple(event_shape)
        self.conditions = conditions or Classes(0)
        self.token = self.conditions.anything if token is None else token
        self.name, self.info, self._reference = name, dict(info or {}), reference
        ours = type(network) in (EnergyMLP, EnergyUNet, ClassifierCNN)
        self.chunks = chunks or Chunks(math.prod(self.event_shape), self.network, record=ours)

    @property
    def reference(self) -> Reference:
        """Mean and variance of the data."""
        return self._reference

    @property
    def exponent(self) -> Any:
        """1; 0 for a classifier, a likelihood that carries no noise of its own."""
        return 0.0 if self.form == "classifier" else 1.0

    @property
    def device(self) -> torch.device:
        """The device of the network, where torch points must be."""
        return self.chunks.device

    def at(self, schedule: NoiseSchedule) -> EnergyModel:
        """Return the model at the noise levels of another schedule; it shares the network, which is told log-SNRs.

        Raises:
            ValueError: levels are noisier or cleaner than those of this model, or the schedule is not of its kind:
                ``alpha^2 + sigma^2`` must be 1 where that of this model is, and alpha be 1 where it is here.
        """
        check_within(schedule, self.schedule, self.name)
        return super().at(schedule)  # type: ignore[return-value]

    def to(self, device: str | torch.device) -> EnergyModel:
        """Move the network to ``device`` in place, for all models that share it, and return this model.

        Raises:
            ValueError: the device cannot be used.
        """
        try:
            self.network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{self.name} cannot be moved to {device} ({str(error).splitlines()[0]}): use cpu"
            ) from error
        return self

    def record_calls(self, enabled: bool = True, *, largest: int = RECORDED) -> EnergyModel:
        """Switch the recording of network calls as CUDA graphs on or off, and return this model.

        It applies to all models that share the network, and has no effect on a CPU. See
        ``ppl_diffusion.devices.cuda_graphs`` for the networks that can be recorded.

        Args:
            enabled: whether calls are recorded, and then replayed.
            largest: most coordinates of a batch that is recorded; larger ones are called as they are.
        """
        self.chunks.launch.most = largest if enabled else 0
        return self

    def given(self, *condition: Any, **named: Any) -> EnergyModel:
        """Return the model under one condition, ``.given(3)`` or ``.given(x=0.3, y=0.6)``; it shares the network.

        Warns with a ``ConditionWarning`` of conditions that training has not seen.

        Raises:
            ValueError: the model is not conditional, or does not have this condition.
            TypeError: the condition is of another kind.
        """
        base = self.name.split("[")[0]
        token, text = self.conditions.token(base, *condition, **named)
        if self._label_dropout() == 1:
            warn_outside(
                f"{base} was trained with label_dropout=1, without its conditions: {base}[{text}] means nothing",
                ConditionWarning,
            )
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

    def in_brackets(self, *values: float | str) -> EnergyModel:
        """Return the model under the condition that an expression writes as ``model[values]``; as :meth:`given`."""
        arguments, named = self.conditions.arguments(self.name.split("[")[0], values)
        return self.given(*arguments, **named)

    def _label_dropout(self) -> float | None:
        """Return the share of training points whose condition was left out, or None if it is not known."""
        try:
            return json.loads(self.info["config"]).get("label_dropout")
        except (KeyError, ValueError, AttributeError):
            return None

    def doubts(self) -> tuple[str, ...]:
        if self.form == "classifier" and self.token == self.conditions.anything:
            return (f"{self} without a label is a factor of one: give a label, {self}.given(0)",)
        if self.conditions.absent or self.token != self.conditions.anything or self._label_dropout() != 0:
            return ()
        return (
            f"{self} without a condition was never trained, as label_dropout was 0: give a condition, .given(...), or "
            "train it with label_dropout=0.15",
        )

    @property
    def identity(self) -> Any:
        """Equal for models of the same network, form, reference, condition, noise levels and shape."""
        return self.group, self.token, self.schedule, self.event_shape

    @property
    def group(self) -> Any:
        """Equal for models that differ only in their condition, which are evaluated together."""
        return self.network, self.form, id(self._reference)

    def evaluate_group(
        self, members: Sequence[Target], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` of every member, by one network call."""
        batch, sizes, condition = self._stack_points(members, points)
        levels = self._level_tensor(level, len(members))

        def evaluate_chunk(part: slice) -> tuple[Tensor, ...]:
            return self._gradient(batch[part], of_part(levels, part), of_part(condition, part))

        energies, gradients = (values.split(sizes) for values in self.chunks.evaluate(evaluate_chunk, len(batch)))
        return [
            (u.reshape(self._chain_shape(x)), g.reshape(x.shape))
            for u, g, x in zip(energies, gradients, points, strict=True)
        ]

    def energy_group(self, members: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
        """Energies ``(*chains,)`` of every member, by one call of the network on the stacked points."""
        batch, sizes, condition = self._stack_points(members, points)
        levels = self._level_tensor(level, len(members))

        def evaluate_chunk(part: slice) -> tuple[Tensor]:
            return (self._energy(batch[part], of_part(levels, part), of_part(condition, part)),)

        (energies,) = self.chunks.evaluate(evaluate_chunk, len(batch))
        return [u.reshape(self._chain_shape(x)) for u, x in zip(energies.split(sizes), points, strict=True)]

    def estimate_noise(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return the noise in points ``x (batch, *event_shape)``, each at its own level ``(batch,)``; float64.

        ``condition`` holds stacked tokens, of length ``batch`` or 1.
        """
        _, gradient = energy_and_gradient(self._energy, x, level, condition)
        return gradient.double() * self.schedule.sigma(level).reshape(-1, *[1] * (x.ndim - 1))

    def _stack_points(self, members: Sequence[Target], points: Sequence[Array]) -> tuple[Tensor, list[int], Tensor]:
        """Return all points ``(batch, *event_shape)``, the count of each member, and the condition tensor."""
        batch, sizes = stack_points(self, points)
        tokens = [member.token for member in members]  # type: ignore[attr-defined]
        return batch, sizes, stacked(self.conditions, tokens, sizes, self.device)

    @on_cpu()
    def tune(self, points: int, *, level: int | None = None) -> dict[int, float]:
        """Measure which chunk size evaluates the network fastest on its device, and use it from then on.

        The size also applies to all conditions of this model. Rounding may depend on it, so tune before the first run
        and not between runs that should agree.

        Args:
            points: number of points that are evaluated together: chains times conditions.
            level: noise level of the measurement, by default one in the middle of the schedule.

        Returns:
            Seconds for one evaluation of all points, by chunk size.
        """
        x = torch.randn(points, *self.event_shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        level_tensor = self._level_tensor(len(self.schedule) // 2 if level is None else level)

        def evaluate_chunk(part: slice) -> tuple[Tensor, ...]:
            return self._gradient(x[part], level_tensor, stacked(self.conditions, [self.token], [1], self.device))

        return self.chunks.tune(evaluate_chunk, points)

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _level_tensor(self, level: Any, members: int = 1) -> Tensor:
        """Return the level as a tensor ``(1,)``: one for all points, so that its embedding is computed once. Levels
        ``(*chains,)`` of points are returned one after the other, for all of so many members."""
        if isinstance(level, Tensor):
            levels = level.to(self.device).flatten()
            return levels if len(levels) == 1 else levels.long().repeat(members)
        self.schedule.check_level(int(level))
        return torch.full((1,), int(level), device=self.device)

    @property
    def _energy(self) -> Callable[..., Tensor]:
        """The energy as a function of points, level and condition that holds no reference to this model."""
        return partial(energy_of, self.network, self.form, self.schedule, self.reference)

    def _gradient(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return energies and gradients; on CUDA by replaying a recorded call, see
        ``ppl_diffusion.devices.cuda_graphs``."""
        return self.chunks.launch(
            partial(energy_and_gradient, self._energy), *inputs, kind=(*self.group, self.schedule)
        )
