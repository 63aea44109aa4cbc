"""What a model can be conditioned on: a class, or where something is in the picture.

A condition reaches the network as a row of numbers, its *token*; the token ``anything`` means the unconditional
model, which shares the network. Tokens of several conditions are stacked, so that one call of the network
serves them all.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

Token = int | tuple[float, ...]


class ConditionWarning(UserWarning):
    """A condition that the model has not been trained on."""


class Conditions(ABC):
    """The conditions that a model knows."""

    @property
    @abstractmethod
    def anything(self) -> Token:
        """The token of the unconditional model."""

    @abstractmethod
    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        """The token of one condition and how it is written, for ``model.given(*values, **named)``.

        Raises:
            ValueError, TypeError: a condition that the model does not have.
        """

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the network is told at its making."""

    @abstractmethod
    def __str__(self) -> str:
        """In a few words, for a table."""

    def stack(self, tokens: Sequence[Token], device: torch.device) -> Tensor:
        """Tokens as the network takes them: ``(len(tokens),)`` integers or ``(len(tokens), numbers)`` floats."""
        return torch.tensor(tokens, device=device)


@dataclass(frozen=True)
class Classes(Conditions):
    """Class labels ``0 .. count - 1``; none for an unconditional model. The label ``count`` means "any"."""

    count: int = 0

    @property
    def anything(self) -> int:
        return self.count

    @property
    def options(self) -> dict[str, Any]:
        return {"classes": self.count}

    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        allowed = f".given(0) to .given({self.count - 1})"
        if self.count == 0:
            raise ValueError(f"{model} is not conditional: use it without .given(...)")
        if named or len(values) != 1:
            raise TypeError(f"{model} takes one class: use {allowed}")
        (label,) = values
        if not isinstance(label, Integral) or isinstance(label, bool):
            raise TypeError(f"a class of {model} is an integer, got {label!r}: use {allowed}")
        label = int(label)
        if not 0 <= label < self.count:
            raise ValueError(f"{model} has no class {label}: use {allowed}")
        return label, str(label)

    def __str__(self) -> str:
        return f"classes 0 to {self.count - 1}" if self.count else "-"


CLOSE = 0.005
"""Share of a picture by which a position may lie outside those of the training data without a word."""


@dataclass(frozen=True)
class Positions(Conditions):
    """The place ``(x, y)`` of one object among those in a picture, x to the right and y down, both in [0, 1].

    Attributes:
        low, high: bounds of both coordinates in the training data.
    """

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
        if not all(self.low - CLOSE <= value <= self.high + CLOSE for value in (x, y)):
            warnings.warn(
                f"{model} has seen positions from {self.low:.2g} to {self.high:.2g} only, x={x:.3g}, y={y:.3g} is "
                "outside: expect pictures without the object",
                ConditionWarning,
                stacklevel=3,
            )
        return (x, y, 1.0), f"{x:.4g}, {y:.4g}"

    def __str__(self) -> str:
        return "positions x, y"


def stacked(conditions: Conditions, tokens: Sequence[Token], sizes: Sequence[int], device: torch.device) -> Tensor:
    """Conditions of stacked points as the network takes them, and may change them: one for all, or one for each.

    Args:
        conditions: what the tokens mean.
        tokens: of the groups of points.
        sizes: how many points each group has.
        device: of the network.

    Returns:
        Rows as of :meth:`Conditions.stack`: ``(1, ...)`` for a single token, else ``(sum(sizes), ...)``.
    """
    asked = conditions, tuple(tokens), tuple(sizes), device, torch.get_default_dtype()
    try:
        return _kept(*asked).clone()
    except TypeError:  # what cannot be hashed
        return _stacked(*asked)


def _stacked(
    conditions: Conditions, tokens: tuple[Token, ...], sizes: tuple[int, ...], device: torch.device, _: torch.dtype
) -> Tensor:
    condition = conditions.stack(tokens, device)
    if len(tokens) == 1:
        return condition
    return condition.repeat_interleave(torch.tensor(sizes, device=device), dim=0, output_size=sum(sizes))


_kept = lru_cache(maxsize=64)(_stacked)
"""An accelerator waits for what it is sent."""


def dump(conditions: Conditions) -> str:
    """Conditions as text for the header of a weight file."""
    if isinstance(conditions, Positions):
        return json.dumps({"positions": [conditions.low, conditions.high]})
    return json.dumps(conditions.options)


def parse(text: str) -> Conditions:
    """What :func:`dump` wrote.

    Raises:
        ValueError: another text.
    """
    match json.loads(text):
        case {"positions": [float() | int() as low, float() | int() as high]}:
            return Positions(float(low), float(high))
        case {"classes": int(count)}:
            return Classes(count)
    raise ValueError(f"unknown conditions {text}")
