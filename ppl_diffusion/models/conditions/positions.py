"""Conditions by place: ``model.given(x=0.3, y=0.6)``, in an expression ``model[0.3, 0.6]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...potentials.common_ground import ConditionWarning, warn_outside
from .base import Conditions, PickTokens, Token

POSITION_TOLERANCE = 0.005
"""How far a position may lie outside the training range without a warning, as a fraction of the picture's side."""


@dataclass(frozen=True)
class Positions(Conditions):
    """The position ``(x, y)`` of one of the objects in a picture, x to the right and y down, both in [0, 1].

    A token is ``(x, y, 1.0)``, or all zeros for the unconditional model.

    Attributes:
        low, high: smallest and largest coordinate (x or y) in the training data.
    """

    kind: ClassVar[str] = "positions"

    low: float
    high: float

    @property
    def anything(self) -> tuple[float, ...]:
        return (0.0, 0.0, 0.0)

    @property
    def options(self) -> dict[str, Any]:
        return {"positions": True}

    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        if values or set(named) != {"x", "y"}:
            raise TypeError(f"{model} takes a position in the picture: {model}.given(x=0.3, y=0.6)")
        for name, value in named.items():
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
                raise ValueError(f"{name} is a share of the picture from 0 to 1, got {value!r}: try {name}=0.5")
        x, y = float(named["x"]), float(named["y"])
        if not all(self.low - POSITION_TOLERANCE <= value <= self.high + POSITION_TOLERANCE for value in (x, y)):
            warn_outside(
                f"{model} has seen positions from {self.low:.2g} to {self.high:.2g} only, x={x:.3g}, y={y:.3g} is "
                "outside: expect pictures without the object",
                ConditionWarning,
            )
        return (x, y, 1.0), f"{x:.4g}, {y:.4g}"

    def arguments(self, model: str, values: Sequence[float | str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(values) != 2 or any(isinstance(value, str) for value in values):
            raise TypeError(
                f"{model} takes a position in the picture: {model}[0.3, 0.6], which is {model}.given(x=0.3, y=0.6)"
            )
        return (), {"x": values[0], "y": values[1]}

    def content(self) -> list[float]:
        return [self.low, self.high]

    @classmethod
    def restored(cls, content: Any) -> Self:
        low, high = content
        return cls(float(low), float(high))

    @classmethod
    def learned(cls, values: np.ndarray, source: str) -> tuple[Self, PickTokens]:
        """Read positions ``(n, most, 2)``, padded with NaN; one of a picture's is chosen whenever it is drawn."""
        real = np.issubdtype(values.dtype, np.floating)
        present = ~np.isnan(values).any(-1) if real and values.ndim == 3 else np.zeros((1, 1), bool)
        if values.ndim != 3 or values.shape[2] != 2 or not _present_first(present):
            raise ValueError(
                f"positions in {source} must be floats (n, most, 2), those that are there first and then NaN, at least "
                f"one for each picture, got {values.dtype} {values.shape}"
            )
        low, high = float(values[present].min()), float(values[present].max())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"positions in {source} run from {low:.4g} to {high:.4g}: give shares of the picture from 0 to 1, "
                "pixels divided by the side"
            )
        places, counts = torch.from_numpy(values.astype(np.float32)), torch.from_numpy(present.sum(1))
        ones = torch.ones(1)

        def pick_tokens(index: Tensor, generator: torch.Generator) -> Tensor:
            which = (torch.rand(len(index), generator=generator) * counts[index]).long()
            return torch.cat([places[index, which], ones.expand(len(index), 1)], dim=1)

        return cls(low, high), pick_tokens

    def __str__(self) -> str:
        return "positions x, y"


def _present_first(present: np.ndarray) -> bool:
    """Return whether every row of ``present (n, most)`` is some True entries, at least one, followed by False ones."""
    return bool(present[:, 0].all() and np.all(present[:, 1:] <= present[:, :-1]))
