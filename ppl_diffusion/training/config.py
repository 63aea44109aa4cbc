"""Training configurations of models, read from TOML files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..models.forms import Form
from .schema import Count, Factor, Flag, Index, Keys, Rate, Share, Text, complaint, table_of


@dataclass(frozen=True)
class Config:
    """A training configuration: the content of a TOML file.

    The types of its values are in ``ppl_diffusion.training.schema``; ``dataclasses.replace`` changes one.

    Attributes:
        name: name of the model, and of its weight file.
        data: name of a planar density, or "npz" for points in a file that is given on the command line.
        images: key of the points in that file: uint8 images ``(n, ..., height, width)`` or floats ``(n, ...)``.
        labels: key of class labels, integers ``(n,)``, "" for none; ignored if there are other conditions.
        positions: key of the positions of the objects in each picture, ``(n, most, 2)`` in [0, 1], padded with NaN.
        conditions: name of another kind of conditions, and the key of its values ``(n, ...)``.
        description: one line for readers.
        network: kind ("mlp" or "unet", "cnn" for a classifier) and constructor arguments of the network.
        form: how the energy is computed from the network's output, see ``ppl_diffusion.models.forms``. "classifier"
            trains a classifier of noised points by their labels, by cross-entropy instead of denoising.
        levels: number of levels of the cosine schedule.
        batch, steps: size and number of batches.
        learning_rate, warm_up: peak learning rate of AdamW, and number of warm-up steps.
        ema: decay of the exponential moving average of the parameters.
        label_dropout: fraction of conditions that are replaced by "any", to train the unconditional model; a
            classifier has none.
        seed: seed of data, levels, noise and initial weights.
        agreement: weight of the loss by which energies of neighbouring levels agree
            (``ppl_diffusion.training.agreement``); 0 omits it.
        init: a shipped model or a weight file whose weights to start from, of a network that differs in its conditions
            at most; random weights by default.
        relative: whether errors at each level count relative to that of Gaussian data, see ``denoising_loss``.

    Raises:
        ValueError: values that are not allowed.
    """

    name: Text
    data: Text
    network: Mapping[str, Any]
    description: Text = ""
    images: Text = "x_train"
    labels: Text = "y_train"
    positions: Text | None = None
    form: Form = "squared_distance"
    levels: Count = 100
    batch: Count = 64
    steps: Count = 10_000
    learning_rate: Rate = 1e-3
    warm_up: Count = 200
    ema: Share = 0.999
    label_dropout: Share = 0.15
    seed: Index = 0
    agreement: Factor = 0.0
    init: Text = ""
    conditions: Keys | None = None
    relative: Flag = False

    def __post_init__(self) -> None:
        try:  # convert to what JSON stores in weight files, NumPy scalars included
            text = json.dumps(asdict(self), default=np.generic.item)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a configuration holds numbers, text and tables of them, got {self!r}") from error
        try:
            values = table_of(Config).validate_json(text)
        except ValidationError as error:
            raise ValueError(complaint(error, Config)) from error
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_objective()

    def _check_objective(self) -> None:
        classifier = self.form == "classifier"
        if classifier != (self.network["kind"] == "cnn"):
            raise ValueError(
                f"form = {self.form!r} is not for the network {self.network['kind']!r}: a classifier has form = "
                "'classifier' and kind = 'cnn' under [network]"
            )
        if classifier and (self.positions or self.conditions or not self.labels):
            raise ValueError("a classifier learns labels: give labels = 'y_train', their key, and no other conditions")
        if classifier and self.agreement:
            raise ValueError("agreement compares energies of levels, and a classifier has none: leave it out")
        if self.agreement and min(self.batch, self.levels) < 2:
            raise ValueError("agreement compares points at two levels: set batch and levels to 2 or more")

    def plain(self) -> dict[str, Any]:
        """Return its content as a table, as weight files and checkpoints store it."""
        values = asdict(self)
        return {k: value for k, value in values.items() if value or k not in ("conditions", "relative", "agreement")}


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
