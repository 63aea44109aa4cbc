"""Classifiers that were made elsewhere: the probability of a label as a factor of an expression.

A factor ``p(label | x)`` steers a density of all classes towards one of them; its power is the scale of classifier
guidance. It is a likelihood: it has an energy, and no noise of its own.

A classifier that knows noised points takes the noise level as its time. One that knows clean points only is evaluated
at the prior's estimate of the clean point,

    x_0(x) = E[x_0 | x] = (x - sigma^2 grad U(x)) / alpha,

at each level but the cleanest, where it is evaluated at ``x`` itself. The last rung is therefore exactly the density of
level 0 times ``p(label | x) ** scale``; the rungs above it are a path to it. Gradients through ``x_0`` are exact: they
take a second derivative of the prior's energy, or a first one of the network that predicts its noise.

Source: Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233;
of the estimate: Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023),
https://arxiv.org/abs/2209.14687
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from ..arrays import Array, on_cpu
from ..devices.chunks import Chunks
from ..potentials.algebra import Potential
from ..potentials.leaf import Leaf
from ..potentials.target import Target
from ..schedule import NoiseSchedule
from .batches import called_with, stack_points
from .estimate import check_estimable, clean_estimate
from .forms import check_signature, label_surprise
from .times import at_level, checked_times

PROBE = 2
"""Number of points at which the shape of the logits is checked."""

SUM_TO_ONE = 1e-4
"""How far the sum of an output may be from one, and all of it positive, to be taken for probabilities."""


class ClassifierPotential(Leaf):
    """The factor ``p(label | x) ** scale``; built by :func:`classifier_potential`.

    Labels of one network are evaluated together, by one call of it.

    Attributes:
        network: the classifier.
        label: the label, from 0 on.
        scale: the power of the probability.
        denoised: the prior at whose estimate of the clean point the network is evaluated, or None.
    """

    backend = "torch"

    def __init__(
        self,
        network: nn.Module,
        label: int,
        *,
        schedule: NoiseSchedule,
        scale: float,
        times: tuple[float, ...],
        event_shape: tuple[int, ...],
        denoised: Potential | None,
        name: str,
        chunks: Chunks,
    ) -> None:
        self.network, self.label, self.scale, self.times, self.denoised = network, label, scale, times, denoised
        self.schedule, self.event_shape, self.chunks = schedule, event_shape, chunks
        self.name = f"{name}[{label}]" if scale == 1 else f"{name}[{label}, scale={scale:.4g}]"

    @property
    def level_arrays(self) -> bool:  # type: ignore[override]
        """Whether the level may be a tensor: not with ``denoised``, where the cleanest level is another function."""
        return self.denoised is None

    @property
    def exponent(self) -> Any:
        """0: a likelihood carries no noise of its own."""
        return 0.0

    @property
    def reference(self) -> tuple[Any, Any]:
        """Mean and variance of the data: those of ``denoised``, or unknown."""
        return (0.0, 1.0) if self.denoised is None else self.denoised.reference

    @property
    def device(self) -> torch.device:
        """The device of the network, where torch points must be."""
        return self.chunks.device

    def to(self, device: str | torch.device) -> ClassifierPotential:
        """Move the network to ``device`` in place, for all labels, and return this potential."""
        self.network.to(device)
        return self

    @property
    def identity(self) -> Any:
        """Equal for the same label and scale of one network at the same times."""
        return self.group, self.label, self.scale, self.event_shape

    @property
    def group(self) -> Any:
        """Equal for labels and scales of one network, which are evaluated together."""
        denoised = None if self.denoised is None else self.denoised.identity
        return ClassifierPotential, self.network, self.times, self.schedule, denoised

    def evaluate_group(
        self, members: Sequence[Target], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` of every member, by one network call."""
        batch, sizes, labels, scales = self._stacked(members, points)

        def evaluate_chunk(part: slice) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = batch[part].detach().requires_grad_()
                energy = self._energy(x, level, labels[part], scales[part])
                return energy.detach(), torch.autograd.grad(energy.sum(), x)[0]

        energies, gradients = (values.split(sizes) for values in self.chunks.evaluate(evaluate_chunk, len(batch)))
        return [
            (u.reshape(self._chain_shape(x)), g.reshape(x.shape))
            for u, g, x in zip(energies, gradients, points, strict=True)
        ]

    def energy_group(self, members: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
        """Energies ``(*chains,)`` of every member, by one network call."""
        batch, sizes, labels, scales = self._stacked(members, points)

        def evaluate_chunk(part: slice) -> tuple[Tensor]:
            return (self._energy(batch[part], level, labels[part], scales[part]),)

        (energies,) = self.chunks.evaluate(evaluate_chunk, len(batch))
        return [u.reshape(self._chain_shape(x)) for u, x in zip(energies.split(sizes), points, strict=True)]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _stacked(self, members: Sequence[Any], points: Sequence[Array]) -> tuple[Tensor, list[int], Tensor, Tensor]:
        """Return all points ``(batch, *event_shape)``, the count of each member, and label and scale of each point."""
        batch, sizes = stack_points(self, points)
        counted = list(zip(members, sizes, strict=True))
        labels = [torch.full((n,), member.label, device=self.device) for member, n in counted]
        scales = [torch.full((n,), member.scale, device=self.device, dtype=torch.float64) for member, n in counted]
        return batch, sizes, torch.cat(labels), torch.cat(scales)

    def _energy(self, x: Tensor, level: Any, labels: Tensor, scales: Tensor) -> Tensor:
        """Return energies ``(batch,)`` of ``x (batch, *event_shape)``, NaN outside the schedule."""
        inside = level.clamp(0, len(self.schedule) - 1) if isinstance(level, Tensor) else level
        if self.denoised is None:
            logits = self._logits(x, inside)
        else:
            clean = x if level == 0 else clean_estimate(self.denoised, x, level)
            logits = self._logits(clean if x.requires_grad else clean.detach(), inside)
        if inside is not level:
            scales = scales * torch.ones_like(scales[:1]).where(level == inside, torch.nan)
        return scales * label_surprise(logits, labels)

    def _logits(self, x: Tensor, level: Any) -> Tensor:
        """Return the logits ``(batch, classes)`` of ``x (batch, *event_shape)``."""
        precision = next(self.network.parameters()).dtype
        images = (x[:, None] if x.ndim == 3 else x).to(precision)
        with called_with(images):
            if self.denoised is not None:
                return self.network(images)
            return self.network(images, at_level(self.times, level, len(x), like=images))


@on_cpu()
def classifier_potential(
    network: nn.Module,
    label: int,
    *,
    schedule: NoiseSchedule,
    scale: float = 1.0,
    times: Sequence[float] | None = None,
    event_shape: Sequence[int] | None = None,
    denoised: Potential | None = None,
    name: str = "classifier",
) -> ClassifierPotential:
    """Return the factor ``p(label | x) ** scale`` of a classifier, with energy ``-scale log p(label | x_level)``.

    Factors multiply: two labels of two classifiers are ``p * a * b``, a label to avoid is ``p / c``. The exponent of
    this factor is 0. Labels of one network are evaluated by one call of it.

    Args:
        network: a torch module that returns logits ``(batch, classes)``: ``network(x, time)``, or ``network(x)`` with
            ``denoised``. It receives ``x (batch, *event)``, images with a channel axis, and ``time (batch,)``, the
            entry of ``times`` at the level. It is put into evaluation mode and its parameters are frozen.
        label: the label, an integer from 0 on.
        schedule: the noise levels, those of the prior.
        scale: power of the probability, positive; above 1 it sharpens the label.
        times: what the network takes as the time of each level, cleanest first, one number per level: integers are
            passed as integers. By default the level itself.
        event_shape: shape of one point, ``prior.event_shape``; images of one channel may leave the channel out. By
            default that of ``denoised``.
        denoised: the prior, for a classifier of clean points, see the top of this module. It costs an evaluation of
            the prior with its derivatives. A prior of which only the score is known will do.
        name: name of the classifier in expressions.

    Raises:
        ValueError: no such label; a scale that is not positive; ``times`` not of one number per level; a network that
            returns no logits, or probabilities; no ``event_shape``; ``denoised`` with another schedule or shape. At
            evaluation, a network in training mode.
        TypeError: ``network`` is not a module with parameters or takes other arguments; ``schedule`` is not a
            NoiseSchedule; ``denoised`` is not a torch potential, or its score has no derivative.

    >>> from ppl_diffusion import load
    >>> digits, network = load("digits"), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    >>> digits * classifier_potential(network, 3, schedule=digits.schedule, denoised=digits, name="net")
    digits * net[3]
    """
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise TypeError(f"network must be a torch module with parameters, got {network!r}: wrap it in an nn.Module")
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule must be a NoiseSchedule, got {schedule!r}: give that of the prior, prior.schedule")
    _check_denoised(denoised, network, schedule, times)
    if denoised is None:
        check_signature(network, ("x", "time"), otherwise=", or give denoised=prior if it knows clean points only")
    else:
        check_signature(network, ("x",))
    if isinstance(event_shape, int):
        raise TypeError(f"event_shape is a tuple: try event_shape=({event_shape},)")
    shape = tuple(event_shape) if event_shape is not None else denoised.event_shape if denoised is not None else None
    if shape is None:
        raise ValueError("the shape of a point is not known: give event_shape=prior.event_shape")
    if denoised is not None and shape != tuple(denoised.event_shape):
        raise ValueError(f"event_shape is {shape} and that of {denoised} is {denoised.event_shape}: leave it out")
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < float(scale) < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale!r}: a label to avoid is prior / classifier")
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(f"a label is a whole number, got {label!r}: try label=0")
    network = network.eval().requires_grad_(False)
    found = ClassifierPotential(
        network,
        int(label),
        schedule=schedule,
        scale=float(scale),
        times=checked_times(times, schedule),
        event_shape=shape,
        denoised=denoised,
        name=name,
        chunks=Chunks(math.prod(shape), network),
    )
    _check_logits(found)
    return found


def _check_denoised(denoised: Any, network: nn.Module, schedule: NoiseSchedule, times: Any) -> None:
    if denoised is None:
        return
    if not isinstance(denoised, Potential) or denoised.backend != "torch":
        raise TypeError(f"denoised must be a torch potential, got {denoised!r}: give the prior, denoised=prior")
    check_estimable(denoised)
    if denoised.schedule != schedule:
        raise ValueError(f"{denoised} has another schedule: give schedule={denoised}.schedule")
    if denoised.device.type != next(network.parameters()).device.type:
        raise ValueError(f"{denoised} is on {denoised.device}: move the network there, network.to({denoised.device})")
    if times is not None:
        raise ValueError("a classifier of clean points takes no time: leave times or denoised out")


def _check_logits(found: ClassifierPotential) -> None:
    """Check what the network returns for a few points of noise."""
    x = torch.randn(PROBE, *found.event_shape, generator=torch.Generator().manual_seed(0)).to(found.device)
    with torch.no_grad():
        logits = found._logits(x, len(found.schedule) - 1)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != PROBE or logits.shape[1] < 2:
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the network must return logits ({PROBE}, classes) for points {tuple(x.shape)}, at least two classes, it "
            f"returned {returned}: wrap it in a module that does"
        )
    classes = logits.shape[1]
    if not 0 <= found.label < classes:
        raise ValueError(f"the network has no label {found.label}: use 0 to {classes - 1}")
    if (logits >= 0).all() and ((logits.double().sum(1) - 1).abs() < SUM_TO_ONE).all():
        raise ValueError("the network returns probabilities, which sum to one: return logits, leave the softmax out")
