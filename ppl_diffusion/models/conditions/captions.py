"""Conditions by caption: ``model.given("a red cube on the left")``, in an expression ``model["a red cube"]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...potentials.common_ground import ConditionWarning, warn_outside
from .base import Conditions, PickTokens, Token
from .encoder import MINILM, SIZE, embedding, embeddings

EXAMPLE = "a red cube on the left"


@dataclass(frozen=True)
class Captions(Conditions):
    """Captions: a text says what is in a picture, in words of its own.

    A token is the text, or "" for the unconditional model. The network gets its embedding, zeros for "".

    Attributes:
        encoder: name of the encoder of the texts.
        vocabulary: the words of the captions in the training data, lower case, sorted.
    """

    kind: ClassVar[str] = "captions"

    encoder: str
    vocabulary: tuple[str, ...]

    @property
    def anything(self) -> str:
        return ""

    @property
    def options(self) -> dict[str, Any]:
        return {"token_size": SIZE}

    def token(self, model: str, *values: Any, **named: Any) -> tuple[Token, str]:
        if named or len(values) != 1 or not isinstance(values[0], str):
            raise TypeError(
                f'{model} takes one caption: {model}.given("{EXAMPLE}"), in an expression {model}["{EXAMPLE}"]'
            )
        text = " ".join(values[0].split())
        if not words(text):
            raise ValueError(f'{values[0]!r} has no words: {model}.given("{EXAMPLE}"), or {model} for any picture')
        embedding(self.encoder, text)  # a missing encoder is told here, and the walk finds the text encoded
        unknown = [word for word in dict.fromkeys(words(text)) if word not in self.vocabulary]
        if unknown:
            warn_outside(
                f"{model} was trained on captions without the word{'s' * (len(unknown) > 1)} {', '.join(unknown)}: "
                "what that means to it is a guess of the encoder",
                ConditionWarning,
            )
        return text, repr(text)

    def stack(self, tokens: Sequence[Any], device: torch.device) -> Tensor:
        """Return the embeddings of texts, shape ``(len(tokens), SIZE)``, float32; zeros for ""."""
        none = torch.zeros(SIZE, dtype=torch.float32, device="cpu")
        rows = [embedding(self.encoder, text) if text else none for text in tokens]
        return torch.stack(rows).to(device)

    def content(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "vocabulary": list(self.vocabulary)}

    @classmethod
    def restored(cls, content: Any) -> Self:
        match content:
            case {"encoder": str() as encoder, "vocabulary": [*known]} if all(isinstance(word, str) for word in known):
                return cls(encoder, tuple(known))
        raise ValueError(f"captions have an encoder and a vocabulary, texts, not {content!r}")

    @classmethod
    def learned(cls, values: np.ndarray, source: str) -> tuple[Self, PickTokens]:
        """Read texts ``(n,)`` or ``(n, most)``, padded with ""; one of a picture's is chosen whenever it is drawn."""
        texts = values[:, None] if values.ndim == 1 else values
        there = np.char.str_len(texts) > 0 if values.dtype.kind == "U" and texts.ndim == 2 else np.zeros((1, 1), bool)
        if not there[:, 0].all() or np.any(there[:, 1:] > there[:, :-1]):
            raise ValueError(
                f"captions in {source} must be texts (n, most), those that are there first and then '', at least one "
                f"for each picture, got {values.dtype} {values.shape}"
            )
        unique, which = np.unique(texts, return_inverse=True)
        known = [str(text) for text in unique]
        table = embeddings(MINILM, known)
        rows, counts = torch.from_numpy(which.reshape(texts.shape)), torch.from_numpy(there.sum(1))

        def pick_tokens(index: Tensor, generator: torch.Generator) -> Tensor:
            chosen = (torch.rand(len(index), generator=generator) * counts[index]).long()
            return table[rows[index, chosen]]

        return cls(MINILM, tuple(sorted({word for text in known for word in words(text)}))), pick_tokens

    def __str__(self) -> str:
        return "captions"


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in their order."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
