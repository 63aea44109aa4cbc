"""What a kind of condition owns: its tokens, its place in weight files and in data, and its form in brackets.

A condition is passed to the network as a *token*. The token ``anything`` selects the unconditional model, which shares
the network with the conditional ones. Tokens of several conditions are stacked into one tensor, so that a single call
of the network evaluates them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

Token = Hashable
"""A condition as the network gets it, before stacking: by default a number or a tuple of numbers."""

PickTokens = Callable[[Tensor, torch.Generator], Tensor]
"""Maps indices ``(batch,)`` of points to their stacked tokens, drawn where a point has several."""


class Conditions(ABC):
    """The conditions that a model supports: one instance of one kind. A kind is a frozen dataclass in a file.

    A kind of your own takes part by ``load(file, kinds=(*KINDS, Mine))`` and ``train(config, kinds=(*KINDS, Mine))``,
    with ``conditions = {mine = "key in the data"}`` in the configuration. Its tokens may be vectors of numbers, which
    the networks of this library take with ``options`` of ``{"token_size": numbers}``.

    Attributes:
        kind: the name of the kind in weight files and configurations.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def anything(self) -> Token:
        """The token of the unconditional model."""

    @property
    def absent(self) -> bool:
        """Whether there is no condition at all, so that the model is an unconditional one."""
        return False

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the network's constructor that these conditions require."""

    @abstractmethod
    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        """Return the token of the condition in ``model.given(*values, **named)``, and its text for the model's name.

        Raises:
            ValueError, TypeError: the model does not have this condition.
        """

    def arguments(self, model: str, values: Sequence[float | str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``given`` that ``model[values]`` stands for in an expression; by default the values.

        Args:
            model: name of the model, for messages.
            values: numbers and texts between the brackets.

        Raises:
            ValueError, TypeError: a condition of this kind is written otherwise.
        """
        return tuple(values), {}

    def stack(self, tokens: Sequence[Token], device: torch.device) -> Tensor:
        """Return tokens as a tensor: integers ``(len(tokens),)`` or floats ``(len(tokens), numbers per token)``."""
        return torch.tensor(tokens, device=device)

    @abstractmethod
    def content(self) -> Any:
        """Return what a weight file stores of them: numbers, texts, lists and tables, as JSON has them."""

    @classmethod
    @abstractmethod
    def restored(cls, content: Any) -> Self:
        """Return the conditions of which :meth:`content` was stored.

        Raises:
            ValueError, TypeError: content that does not describe conditions of this kind.
        """

    @classmethod
    @abstractmethod
    def learned(cls, values: np.ndarray, source: str) -> tuple[Self, PickTokens]:
        """Return the conditions that training data have, and what draws the tokens of their points.

        Args:
            values: the conditions of all points, shape ``(n, ...)``, as the data file holds them.
            source: the file, for messages.

        Raises:
            ValueError: values that are not conditions of this kind.
        """

    @abstractmethod
    def __str__(self) -> str:
        """A short description, for tables of models."""


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
    key = tuple(tokens), tuple(sizes), device, torch.get_default_dtype()
    try:
        known = _TENSORS.setdefault(conditions, {})
        found = known.get(key)
    except TypeError:  # arguments that cannot be hashed
        return _condition_tensor(conditions, tokens, sizes, device)
    if found is None:
        while len(known) >= MOST_KEPT:
            known.pop(next(iter(known)))
        found = known[key] = _condition_tensor(conditions, tokens, sizes, device)
    return found.clone()


def _condition_tensor(
    conditions: Conditions, tokens: Sequence[Token], sizes: Sequence[int], device: torch.device
) -> Tensor:
    condition = conditions.stack(tokens, device)
    if len(tokens) == 1:
        return condition
    return condition.repeat_interleave(torch.tensor(sizes, device=device), dim=0, output_size=sum(sizes))


MOST_KEPT = 64
"""Most condition tensors of one instance that are kept."""

_TENSORS: WeakKeyDictionary[Conditions, dict[Hashable, Tensor]] = WeakKeyDictionary()
"""Kept, because every new tensor for a GPU costs a synchronous host-to-device copy; as long as the conditions live,
which may hold a pipeline."""
