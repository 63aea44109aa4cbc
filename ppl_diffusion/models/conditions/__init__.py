"""Conditions of a model: class labels, or the position of an object in the picture.

A condition is passed to the network as a *token*, an integer or a tuple of numbers. The token ``anything`` selects
the unconditional model, which shares the network with the conditional ones. Tokens of several conditions are stacked
into one tensor, so that a single call of the network evaluates them all.
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

from ...potentials.common_ground import ConditionWarning

Token = int | tuple[float, ...]


class Conditions(ABC):
    """The conditions that a model supports, and their encoding as tokens for its network."""

    @property
    @abstractmethod
    def anything(self) -> Token:
        """The token of the unconditional model."""

    @abstractmethod
    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        """Return the token of the condition in ``model.given(*values, **named)``, and its text for the model's name.

        Raises:
            ValueError, TypeError: the model does not have this condition.
        """

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the network's constructor that these conditions require."""

    @abstractmethod
    def __str__(self) -> str:
        """A short description, for tables of models."""

    def stack(self, tokens: Sequence[Token], device: torch.device) -> Tensor:
        """Return tokens as a tensor: integers ``(len(tokens),)`` or floats ``(len(tokens), numbers per token)``."""
        return torch.tensor(tokens, device=device)


@dataclass(frozen=True)
class Classes(Conditions):
    """Class labels ``0 .. count - 1``. The label ``count`` means "any class"; ``count=0`` is an unconditional model."""

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


POSITION_TOLERANCE = 0.005
"""How far a position may lie outside the training range without a warning, as a fraction of the picture's side."""


@dataclass(frozen=True)
class Positions(Conditions):
    """The position ``(x, y)`` of one of the objects in a picture, x to the right and y down, both in [0, 1].

    A token is ``(x, y, 1.0)``, or all zeros for the unconditional model.

    Attributes:
        low, high: smallest and largest coordinate (x or y) in the training data.
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
        if not all(self.low - POSITION_TOLERANCE <= value <= self.high + POSITION_TOLERANCE for value in (x, y)):
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
    """Return the condition tensor for a batch of stacked groups of points, each group with its own token.

    Args:
        conditions: the encoding of the tokens.
        tokens: one token for each group.
        sizes: number of points in each group.
        device: device of the network.

    Returns:
        Rows as of :meth:`Conditions.stack`: ``(1, ...)`` for a single token, which broadcasts over all points, else
        ``(sum(sizes), ...)``. It is a copy, which the network may modify in place.
    """
    arguments = conditions, tuple(tokens), tuple(sizes), device, torch.get_default_dtype()
    try:
        return _cached_condition_tensor(*arguments).clone()
    except TypeError:  # arguments that cannot be hashed
        return _condition_tensor(*arguments)


def _condition_tensor(
    conditions: Conditions, tokens: tuple[Token, ...], sizes: tuple[int, ...], device: torch.device, _: torch.dtype
) -> Tensor:
    condition = conditions.stack(tokens, device)
    if len(tokens) == 1:
        return condition
    return condition.repeat_interleave(torch.tensor(sizes, device=device), dim=0, output_size=sum(sizes))


_cached_condition_tensor = lru_cache(maxsize=64)(_condition_tensor)
"""Cached, because every new tensor for a GPU costs a synchronous host-to-device copy."""


def dump(conditions: Conditions) -> str:
    """Serialise conditions as JSON text for the header of a weight file."""
    if isinstance(conditions, Positions):
        return json.dumps({"positions": [conditions.low, conditions.high]})
    return json.dumps(conditions.options)


def parse(text: str) -> Conditions:
    """Return the conditions that :func:`dump` serialised.

    Raises:
        ValueError: JSON text that does not describe conditions.
    """
    match json.loads(text):
        case {"positions": [float() | int() as low, float() | int() as high]}:
            return Positions(float(low), float(high))
        case {"classes": int(count)}:
            return Classes(count)
    raise ValueError(f"unknown conditions {text}")
