"""Distillation: an energy whose gradient is the noise that a teacher estimates.

The output of a denoising network need not be a gradient. The energy ``f`` that minimises ``|grad f - e|^2`` over noised
data, ``e`` being the teacher's estimate, has the gradient that is nearest to it. What remains of the loss is the part
of the teacher's field that is no gradient, which its circulation tells, and what the network cannot represent.

Source: Composition and Control with Distilled Energy Diffusion Models and Sequential Monte Carlo (Thornton et al.,
2025), https://arxiv.org/abs/2502.12786
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import digest as array_digest
from ..models.conditions import Classes, Conditions
from ..models.energy import EnergyModel
from ..models.noise import ScorePotential
from ..potentials.circulation import circulation
from .data import Data

MEASURED = 5
"""Number of levels at which the circulation of a teacher is measured."""


class Teacher:
    """A model whose estimates of the noise an energy learns.

    Args:
        model: a potential of one network, ``ScorePotential`` or ``EnergyModel``; under a condition if the data have
            none, else without.
        source: the data of the training.
        label_dropout: fraction of conditions that are left out in training.

    Raises:
        TypeError: ``model`` is not one of these.
        ValueError: its points or its conditions are not those of the data.
    """

    def __init__(self, model: Any, source: Data, *, label_dropout: float) -> None:
        if not isinstance(model, (ScorePotential, EnergyModel)):
            raise TypeError(
                f"a teacher is one model, got {model!r}: give a ScorePotential, an EnergyModel or what from_diffusers "
                "returned, and compose what is trained from it"
            )
        if tuple(model.event_shape) not in (tuple(source.event_shape), (1, *source.event_shape)):
            raise ValueError(
                f"the teacher {model} has points of shape {model.event_shape}, the data of {source.event_shape}: give "
                "data of its shape"
            )
        if any(module.training for module in model.network.modules()):
            raise ValueError(
                f"the network of the teacher {model}, or a part of it, is in training mode: network.eval()"
            )
        self.model = model
        theirs: Conditions = model.conditions or Classes(0)
        self._fixed: Tensor | None = None
        if source.conditions.absent:
            if model.conditions is not None:
                self._fixed = theirs.stack([model.token], torch.device("cpu"))
        elif not _same(theirs, source.conditions):
            raise ValueError(
                f"the data have as conditions {str(source.conditions)!r}, the teacher {model} {str(theirs)!r}: give "
                "data with its conditions, or leave them out, labels = ''"
            )
        elif theirs.anything is None and label_dropout > 0:
            raise ValueError(
                f"the teacher {model} has no label for any class, which label_dropout={label_dropout:g} asks for: set "
                "label_dropout = 0, or from_diffusers(folder, unconditional=...)"
            )
        elif model.token != theirs.anything:
            raise ValueError(f"the teacher {model} has a condition of its own: give it without, or data without labels")

    @property
    def digest(self) -> str:
        """Differs for other teachers."""
        model: Any = self.model
        values = [np.asarray(v.detach().cpu().double()) for v in model.network.state_dict().values()]
        values += [np.asarray(part, dtype=np.float64) for part in (model.schedule.alphas, model.schedule.sigmas)]
        values += [np.asarray(part, dtype=np.float64) for part in (*model.reference, getattr(model, "times", ()))]
        kind = getattr(model, "predicts", None) or getattr(model, "form", None)
        return f"{type(model).__name__} {kind} {model.token!r} {array_digest(values)}"

    def hand_over(self, network: nn.Module) -> None:
        """Copy its weights into a network of its own architecture; any other network stays as it is."""
        mine, theirs = network.state_dict(), self.model.network.state_dict()
        if {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}:
            network.load_state_dict(theirs)

    def to(self, device: torch.device) -> None:
        """Move its network to a device."""
        self.model.to(device)

    def __call__(self, x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        """Return the noise in points ``(batch, *event_shape)`` at levels ``(batch,)``, of the dtype of ``x``."""
        if self._fixed is not None:
            condition = self._fixed.to(x.device)
        points = x.reshape(-1, *self.model.event_shape)
        return self.model.estimate_noise(points, level, condition).reshape(x.shape).to(x.dtype)  # type: ignore[arg-type]

    def turning(self, source: Data, *, seed: int) -> str:
        """Return, as JSON text, how much of its field is no gradient: the share of the circulation at several levels.

        It is measured at noised data, round loops of the length of leapfrog steps; an empty table for an energy.
        """
        if self.model.has_energy:
            return json.dumps({})
        return json.dumps({str(level): round(share, 5) for level, share in self._shares(source, seed)})

    def _shares(self, source: Data, seed: int) -> Iterator[tuple[int, float]]:
        generator, schedule = torch.Generator().manual_seed(seed), self.model.schedule
        clean = source.draw(generator)[0].double().numpy()
        rng = np.random.default_rng(seed)
        model = self.model if self.model.conditions is None or self._fixed is not None else self._under_a_condition()
        for level in np.unique(np.linspace(0, len(schedule) - 1, MEASURED).astype(int)).tolist():
            sigma = schedule.sigma(level)
            x = schedule.alpha(level) * clean + sigma * rng.standard_normal(clean.shape)
            step = sigma * clean[0].size ** -0.25
            x = x.reshape(-1, *model.event_shape)
            yield level, circulation(model, x, level=level, step=step, seed=seed).share

    def _under_a_condition(self) -> Any:
        """Return the model under any condition, or its first class where it has no label for that."""
        return self.model.given(0) if self.model.conditions.anything is None else self.model  # type: ignore[union-attr]


def _same(one: Conditions, other: Conditions) -> bool:
    """Whether a teacher's conditions are those of the data, though it may have no label for any class."""
    if isinstance(one, Classes) and isinstance(other, Classes):
        return one.count == other.count if one.anything is None else one.anything == other.count
    return type(one) is type(other) and one.content() == other.content()
