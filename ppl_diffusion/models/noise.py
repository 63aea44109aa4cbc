"""Denoising networks that were made elsewhere: their score as a potential.

A published diffusion model predicts noise, a velocity or the clean sample. This gives the score at every level, but no
energy, since the prediction need not be a gradient: see ``ppl_diffusion.potentials.score`` for what can be done without
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Array, on_cpu
from ..devices.chunks import Chunks
from ..potentials.score import Prediction, ScoreLeaf, as_noise, no_energy, slopes_at
from ..potentials.target import Target
from ..schedule import NoiseSchedule
from .batches import called_with, stack_points
from .conditions import Classes, Conditions, Token, stacked
from .times import at_level, checked_times

PROBE = 16
"""Number of points at which the kind of a prediction is checked."""

UNLIKE = 0.5
"""Share of the range of slopes by which a network may miss the slope that its kind of prediction has."""


MOST_SIGNAL = 0.3
"""Ratio of signal to noise at the noisiest level above which the kind of a prediction is not checked."""


class ScorePotential(ScoreLeaf):
    """A denoising network as a potential without an energy.

    Models that differ only in their condition share a network, and are evaluated together by one call of it.

    Args:
        network: a torch module ``network(x, time)`` or, with ``conditions``, ``network(x, time, condition)``, which
            returns its prediction in the shape of ``x``. It receives ``x (batch, *event)``, images with a channel axis;
            ``time (batch,)``, the entry of ``times`` at the level; and stacked tokens ``(batch, ...)``. It is put into
            evaluation mode and its parameters are frozen.
        predicts: "noise", "velocity", "sample", "score" or "flow", see ``ppl_diffusion.potentials.score``.
        schedule: the noise levels on which the network was trained.
        event_shape: shape of one point; images of one channel may leave the channel out.
        times: what the network takes as the time of each level, cleanest first, one number per level: integers are
            passed as integers. By default the level itself.
        conditions: the conditions that the network supports; none by default.
        token: token of one condition, or None for the unconditional model.
        reference: mean and variance of the data, numbers or arrays that broadcast to ``event_shape``.
        name: name of the model in expressions.
        chunks: chunked evaluation of the network, shared between conditions; see ``ppl_diffusion.devices.chunks``.

    Raises:
        ValueError: an unknown prediction, or ``times`` not of one number per level; at evaluation, a network that
            returns a shape other than that of its points, or that is in training mode.
        TypeError: ``network`` is not a module with parameters, or ``schedule`` is not a NoiseSchedule.
    """

    backend = "torch"
    level_arrays = True

    def __init__(
        self,
        network: nn.Module,
        *,
        predicts: Prediction,
        schedule: NoiseSchedule,
        event_shape: Sequence[int],
        times: Sequence[float] | None = None,
        conditions: Conditions | None = None,
        token: Token | None = None,
        reference: tuple[Any, Any] = (0.0, 1.0),
        name: str = "theirs",
        chunks: Chunks | None = None,
    ) -> None:
        if predicts not in get_args(Prediction):
            raise ValueError(f"unknown prediction {predicts!r}: use one of {', '.join(get_args(Prediction))}")
        if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
            raise TypeError(f"network must be a torch module with parameters, got {network!r}: wrap it in an nn.Module")
        if isinstance(event_shape, int):
            raise TypeError(f"event_shape is a tuple: try event_shape=({event_shape},)")
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {schedule!r}: try NoiseSchedule.linear(1000)")
        self.network = network.eval().requires_grad_(False)
        self.predicts, self.schedule, self.event_shape = predicts, schedule, tuple(event_shape)
        self.times = checked_times(times, schedule)
        self.conditions = conditions
        self.token = conditions.anything if conditions is not None and token is None else token
        self.name, self._reference = name, reference
        self.chunks = chunks or Chunks(math.prod(self.event_shape), self.network)

    @property
    def reference(self) -> tuple[Any, Any]:
        """Mean and variance of the data."""
        return self._reference

    @property
    def device(self) -> torch.device:
        """The device of the network, where torch points must be."""
        return self.chunks.device

    def to(self, device: str | torch.device) -> ScorePotential:
        """Move the network to ``device`` in place, for all models that share it, and return this model."""
        self.network.to(device)
        return self

    def given(self, *condition: Any, **named: Any) -> ScorePotential:
        """Return the model under one condition, such as ``.given(3)``; it shares the network.

        Raises:
            ValueError: the model is not conditional, or does not have this condition.
            TypeError: the condition is of another kind.
        """
        base = self.name.split("[")[0]
        token, text = (self.conditions or Classes(0)).token(base, *condition, **named)
        return ScorePotential(
            self.network,
            predicts=self.predicts,
            schedule=self.schedule,
            event_shape=self.event_shape,
            times=self.times,
            conditions=self.conditions,
            token=token,
            reference=self.reference,
            name=f"{base}[{text}]",
            chunks=self.chunks,
        )

    @property
    def identity(self) -> Any:
        """Equal for models of the same network, prediction, times, condition, noise levels and shape."""
        return self.group, self.token, self.event_shape

    @property
    def group(self) -> Any:
        """Equal for models that differ only in their condition, which are evaluated together."""
        return self.network, self.predicts, self.times, self.schedule

    def evaluate_group(
        self, members: Sequence[Target], points: Sequence[Array], level: Any, *, graph: bool = False
    ) -> list[tuple[Array, Array]]:
        """Zeros ``(*chains,)`` and gradients ``(*chains, *event_shape)`` of every member, by one network call.

        With ``graph`` the gradients are differentiable in the points.
        """
        (batch, sizes), condition = stack_points(self, points), None
        if self.conditions is not None:
            tokens = [member.token for member in members]  # type: ignore[attr-defined]
            condition = stacked(self.conditions, tokens, sizes, self.device)
        gradient = partial(_gradient, self.network, self.predicts, self.schedule, self.times, graph=graph)

        def evaluate_chunk(part: slice) -> tuple[Tensor]:
            shared = condition is None or len(condition) == 1
            return (gradient(batch[part], level, condition if shared else condition[part]),)  # type: ignore[index]

        (gradients,) = self.chunks.evaluate(evaluate_chunk, len(batch))
        found = [g.reshape(x.shape) for g, x in zip(gradients.split(sizes), points, strict=True)]
        return [(no_energy(g, len(self.event_shape)), g) for g in found]

    def estimate_noise(self, x: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the noise in points ``x (batch, *event_shape)``, each at its own level ``(batch,)``; float64.

        ``condition`` holds stacked tokens, of length ``batch`` or 1.
        """
        gradient = _gradient(self.network, self.predicts, self.schedule, self.times, x, level, condition)
        return gradient * _per_point(self.schedule.sigma(level), x)

    def _gradient(self, x: Array, level: Any) -> Array:
        return self.evaluate_group([self], [x], level)[0][1]

    @on_cpu()
    def complaints(self) -> list[str]:
        """Tell if the network seems to predict something else than ``predicts``.

        At the noisiest level ``x`` is noise, so that a prediction of the noise resembles ``x``, one of the score its
        negative, and one of the clean sample or of the velocity does not.
        """
        level = len(self.schedule) - 1
        alpha, sigma, variance = self.schedule.alpha(level), self.schedule.sigma(level), self.reference[1]
        if alpha * np.mean(variance) ** 0.5 > MOST_SIGNAL * sigma or (self.predicts == "velocity" and alpha > 0.5):
            return []  # x is not all noise; or noise and data cancel in a velocity, in a schedule that explodes
        slopes = slopes_at(alpha, sigma, float(np.mean(variance)))
        noise = torch.randn(PROBE, *self.event_shape, generator=torch.Generator().manual_seed(0))
        x = (sigma * noise).to(self.device)
        condition = None
        if self.conditions is not None and self.token is None:
            return []
        if self.conditions is not None and self.token is not None:
            condition = stacked(self.conditions, [self.token], [PROBE], self.device)
        with torch.no_grad():
            output = _predict(self.network, self.times, x, level, condition).double()
        slope = float((output * x).sum() / (x.double() ** 2).sum())
        nearest = min(slopes, key=lambda kind: abs(slopes[kind] - slope))
        if abs(slope - slopes[self.predicts]) <= UNLIKE * abs(slopes["noise"]):
            return []
        return [
            f"{self.name} is said to predict {self.predicts}, but at the noisiest level its output is {slope:.2g} "
            f"times x, where {slopes[self.predicts]:.2g} is expected: try predicts={nearest!r}, or train the network"
        ]


def _predict(network: Callable[..., Any], times: tuple[float, ...], x: Tensor, level: Any, condition: Any) -> Tensor:
    """Return the prediction of the network, of the shape of ``x (batch, *event_shape)``."""
    precision = next(network.parameters()).dtype  # type: ignore[attr-defined]
    images = x[:, None] if x.ndim == 3 else x
    images = images.to(precision)
    time = at_level(times, level, len(x), like=images)
    given = () if condition is None else (condition.expand(len(x), *condition.shape[1:]),)
    with called_with(images):
        output = network(images, time, *given)
    if not isinstance(output, Tensor) or output.numel() != x.numel():
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the network must return the shape of its points, {tuple(images.shape)}, it returned {found}: wrap it in "
            "a module that does"
        )
    return output.reshape(x.shape)


def _gradient(
    network: Callable[..., Any],
    predicts: Prediction,
    schedule: NoiseSchedule,
    times: tuple[float, ...],
    x: Tensor,
    level: Any,
    condition: Tensor | None,
    *,
    graph: bool = False,
) -> Tensor:
    """Return minus the score at ``x (batch, *event_shape)``: the predicted noise divided by sigma; float64."""
    inside = level.clamp(0, len(schedule) - 1) if isinstance(level, Tensor) else level
    with torch.set_grad_enabled(graph):
        output = _predict(network, times, x, inside, condition).double()
        if graph and not output.requires_grad:
            raise ValueError(
                f"the prediction of {type(network).__name__} is not differentiable in x, and an estimate of clean "
                "points needs it: leave torch.no_grad() out of its forward()"
            )
        alpha, sigma = (_per_point(scale(inside), x) for scale in (schedule.alpha, schedule.sigma))
        gradient = as_noise(predicts, output, x.double(), alpha, sigma) / sigma
        return gradient if inside is level else gradient.where(_per_point(level == inside, x), torch.nan)


def _per_point(values: Any, x: Tensor) -> Any:
    """Reshape one value per point, or one for all, so that it broadcasts to ``x (batch, *event_shape)``."""
    return values.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(values, Tensor) else values
