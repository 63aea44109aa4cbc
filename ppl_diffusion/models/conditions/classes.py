"""Conditions by class: ``model.given(3)``, in an expression ``model[3]``."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch

from .base import Conditions, PickTokens, Token


@dataclass(frozen=True)
class Classes(Conditions):
    """Class labels ``0 .. count - 1``. The label ``count`` means "any class"; ``count=0`` is an unconditional model."""

    kind: ClassVar[str] = "classes"

    count: int = 0

    @property
    def anything(self) -> int:
        return self.count

    @property
    def absent(self) -> bool:
        return self.count == 0

    @property
    def options(self) -> dict[str, Any]:
        return {"classes": self.count}

    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        last = self.count - 1
        allowed = f".given(0) to .given({last}), in an expression {model}[0] to {model}[{last}]"
        if self.absent:
            raise ValueError(
                f"{model} is not conditional: use it without .given(...), in an expression without brackets"
            )
        if named or len(values) != 1:
            raise TypeError(f"{model} takes one class: use {allowed}")
        (label,) = values
        if not isinstance(label, Integral) or isinstance(label, bool):
            raise TypeError(f"a class of {model} is an integer, got {label!r}: use {allowed}")
        label = int(label)
        if not 0 <= label < self.count:
            raise ValueError(f"{model} has no class {label}: use {allowed}")
        return label, str(label)

    def content(self) -> int:
        return self.count

    @classmethod
    def restored(cls, content: Any) -> Self:
        if not isinstance(content, int) or content < 0:
            raise ValueError(f"the number of classes is {content!r}: it must be a whole number")
        return cls(content)

    @classmethod
    def learned(cls, values: np.ndarray, source: str) -> tuple[Self, PickTokens]:
        """Read integer labels ``(n,)``, numbered from 0 on."""
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
            raise ValueError(
                f"labels in {source} must be integers (n,) from 0 on, got {values.dtype} {values.shape}: "
                "np.unique(labels, return_inverse=True)[1] numbers them"
            )
        known = np.unique(values)
        if len(known) != int(known[-1]) + 1:
            raise ValueError(
                f"there are {len(known)} different labels in {source}, from {known[0]} to {known[-1]}: number them "
                "from 0 on without gaps, np.unique(labels, return_inverse=True)[1]"
            )
        tokens = torch.from_numpy(values.astype(np.int64))
        return cls(int(known[-1]) + 1), lambda index, generator: tokens[index]

    def __str__(self) -> str:
        return "-" if self.absent else f"classes 0 to {self.count - 1}"
