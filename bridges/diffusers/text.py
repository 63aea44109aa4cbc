"""Prompts as conditions, encoded by the tokenizer and the text encoder of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from ppl_diffusion.models.conditions import Conditions


@dataclass(frozen=True, eq=False)
class Prompts(Conditions):
    """Prompts of a pipeline; the empty prompt is the unconditional model.

    Attributes:
        pipeline: a pipeline with ``encode_prompt``.
    """

    pipeline: Any
    kind: ClassVar[str] = "prompts"

    @property
    def anything(self) -> Any:
        return ""

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def token(self, model: str, *values: Any, **named: Any) -> tuple[Any, str]:
        if named or len(values) != 1 or not isinstance(values[0], str):
            raise TypeError(
                f'{model} takes one prompt: {model}.given("a red cube"), in an expression {model}["a red cube"]'
            )
        return values[0], repr(values[0])

    def stack(self, tokens: Sequence[Any], device: torch.device) -> Tensor:
        """Return the embeddings of prompts, shape ``(len(tokens), length, size)``; the encoder stays where it is."""
        there = self.pipeline.text_encoder.device
        with torch.no_grad():
            found = self.pipeline.encode_prompt(
                list(tokens), device=there, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return found[0].to(device)

    def content(self) -> NoReturn:
        raise TypeError("prompts belong to their pipeline: keep it, pipeline.save_pretrained(folder)")

    @classmethod
    def restored(cls, content: Any) -> Self:
        raise TypeError("prompts belong to their pipeline: load it, from_diffusers(folder)")

    @classmethod
    def learned(cls, values: np.ndarray, source: str) -> Any:
        raise TypeError(f"prompts are not trained here: give another kind of conditions for {source}")

    def __str__(self) -> str:
        return "prompts"
