"""Training configurations of models, read from TOML files."""

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

from ..models.energy import Form

RANGES = {
    "levels": ("whole number", 1, inf),
    "batch": ("whole number", 1, inf),
    "steps": ("whole number", 1, inf),
    "warm_up": ("whole number", 1, inf),
    "seed": ("whole number", 0, inf),
    "learning_rate": ("number", 1e-12, inf),
    "ema": ("number", 0, 1),
    "label_dropout": ("number", 0, 1),
    "which_level": ("number", 0, inf),
}
"""Kind, least and greatest value of every number in a configuration; both limits are included."""


@dataclass(frozen=True)
class Config:
    """A training configuration: the content of a TOML file.

    Attributes:
        name: name of the model, and of its weight file.
        data: name of a planar density, or "npz" for points in a file that is given on the command line.
        images: key of the points in that file: uint8 images ``(n, ..., height, width)`` or floats ``(n, ...)``.
        labels: key of class labels, integers ``(n,)``, "" for none; ignored if ``positions`` is given.
        positions: key of the positions of the objects in each picture, ``(n, most, 2)`` in [0, 1], padded with NaN.
        description: one line for readers.
        network: kind ("mlp" or "unet") and constructor arguments of the network.
        form: how the energy is computed from the network's output, see ``ppl_diffusion.models.energy``.
        levels: number of levels of the cosine schedule.
        batch, steps: size and number of batches.
        learning_rate, warm_up: peak learning rate of AdamW, and number of warm-up steps.
        ema: decay of the exponential moving average of the parameters.
        label_dropout: fraction of conditions that are replaced by "any", to train the unconditional model.
        seed: seed of data, levels, noise and initial weights.
        which_level: weight of the level classification loss (``ppl_diffusion.training.objective``); 0 omits it.
        init: a shipped model or a weight file whose weights to start from; random weights by default.
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
        try:  # convert to what JSON stores in weight files, NumPy scalars included
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
        if not isinstance(self.network["kind"], str):
            raise ValueError(
                f"kind of the network must be text, got {self.network['kind']!r}: write kind = 'mlp' or 'unet'"
            )
        for name, value in self.network.items():
            least = 0 if name in ("classes", "octaves") else 1
            for number in value if isinstance(value, list) else [value]:
                counts = isinstance(number, (int, float)) and name != "positions"
                if counts and (isinstance(number, bool) or not float(number).is_integer() or number < least):
                    raise ValueError(f"{name} of the network must be whole numbers >= {least}, got {value!r}")
        for name in ("name", "data", "description", "images", "labels", "init"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} in the configuration must be text, got {getattr(self, name)!r}")


def load_config(source: str | Path) -> Config:
    """Load a configuration from a TOML file, or a shipped one by name.

    Raises:
        FileNotFoundError: ``source`` is neither a file nor the name of a shipped configuration.
        ValueError: the file is not TOML, has unknown or missing keys, or values that are not allowed.
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
