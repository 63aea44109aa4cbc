"""How a model is trained: a TOML file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any, get_args

import numpy as np

from .energy import Form

RANGES = {
    "levels": ("whole number", 1, inf),
    "batch": ("whole number", 1, inf),
    "steps": ("whole number", 1, inf),
    "warm_up": ("whole number", 1, inf),
    "seed": ("whole number", 0, inf),
    "learning_rate": ("number", 0, inf),
    "ema": ("number", 0, 1),
    "label_dropout": ("number", 0, 1),
    "which_level": ("number", 0, inf),
}
"""What numbers of a configuration may be."""


@dataclass(frozen=True)
class Config:
    """How a model is trained; the content of a TOML file.

    Attributes:
        name: of the model, and of its weight file.
        data: a planar density by name, or "npz", points in a file that is given at the command.
        images: key of them in that file: pictures, uint8 ``(n, ..., height, width)``, or floating points ``(n, ...)``.
        labels: key of class labels, integers ``(n,)``, "" for none; not read where there are positions.
        positions: key of the places of the objects in each picture, ``(n, most, 2)`` in [0, 1], padded with NaN.
        description: one line for people.
        network: kind ("mlp" or "unet") and arguments of the network.
        form: how the energy is made of the network.
        levels: of the cosine schedule.
        batch, steps: size and number of batches.
        learning_rate, warm_up: peak of AdamW's rate, and steps until it.
        ema: decay of the average of the parameters.
        label_dropout: share of conditions that are replaced by "any".
        seed: of data, levels, noise and initial weights.
        which_level: weight of the loss that tells levels apart; 0 leaves it out.
        init: a shipped model or a weight file to start from; by default fresh weights.
    """

    name: str
    data: str
    network: Mapping[str, Any]
    description: str = ""
    images: str = "x_train"
    labels: str = "y_train"
    positions: str | None = None
    form: Form = "squared_distance"
    levels: int = 100
    batch: int = 64
    steps: int = 10_000
    learning_rate: float = 1e-3
    warm_up: int = 200
    ema: float = 0.999
    label_dropout: float = 0.15
    seed: int = 0
    which_level: float = 0.0
    init: str = ""

    def __post_init__(self) -> None:
        try:  # as it is kept beside the weights, NumPy's numbers too
            plain = json.loads(json.dumps(asdict(self), default=np.generic.item))
        except (TypeError, ValueError) as error:
            raise ValueError(f"a configuration holds numbers, text and tables of them, got {self!r}") from error
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.form not in get_args(Form):
            raise ValueError(f"unknown form {self.form!r} in the configuration: use one of {', '.join(get_args(Form))}")
        for name, (kind, least, most) in RANGES.items():
            value = getattr(self, name)
            fits = isinstance(value, (int, float) if kind == "number" else int) and not isinstance(value, bool)
            if not fits or not least <= value <= most:
                limits = f">= {least}" if most == inf else f"from {least} to {most}"
                raise ValueError(f"{name} in the configuration must be a {kind} {limits}, got {value!r}")
        if not isinstance(self.network, Mapping) or "kind" not in self.network:
            raise ValueError(
                f"network in the configuration must be a table with a kind, got {self.network!r}: write [network] and "
                'kind = "unet" under it'
            )
        for name in ("name", "data", "description", "images", "labels", "init"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} in the configuration must be text, got {getattr(self, name)!r}")


def load_config(source: str | Path) -> Config:
    """A configuration from a TOML file, or a shipped one by name.

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
        ValueError: not TOML, unknown or missing keys.
    """
    shipped = files("ppl_diffusion") / "configs" / f"{source}.toml"
    path: Any = Path(source) if Path(source).is_file() else shipped
    if not path.is_file():
        known = sorted(p.name[:-5] for p in (files("ppl_diffusion") / "configs").iterdir() if p.name.endswith(".toml"))
        raise FileNotFoundError(f"no configuration {source}: give a TOML file, or one of {', '.join(known)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not TOML: {error}") from error
    keys = sorted(f.name for f in fields(Config))
    for key in values:
        if key not in keys:
            raise ValueError(f"unknown key {key!r} in {source}: use {', '.join(keys)}")
    for key in ("name", "data", "network"):
        if key not in values:
            raise ValueError(f"{source} lacks the key {key!r}: see the shipped configuration of ring")
    return Config(**values)
