"""Training of energy models by denoising: resumable, reproducible, without pickles.

The loss is the mean squared error of the estimated noise at a uniformly drawn level, the optimiser AdamW
with warm-up and cosine decay, and what is kept is an exponential moving average of the parameters.
A checkpoint is one safetensors file with everything, generator included: a run that was interrupted
goes on as if it had not been.

Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .condition import Conditions, dump
from .data import Data, image_data, planar_data
from .energy import EnergyModel, Form, denoising_loss
from .networks import build_network
from .schedule import NoiseSchedule
from .trace import replacing, versions

FORMAT = "ppl-diffusion weights 1"


@dataclass(frozen=True)
class Config:
    """How a model is trained; the content of a TOML file.

    Attributes:
        name: of the model, and of its weight file.
        data: a planar density by name, or "npz", images in a file that is given at the command.
        images: key of the pictures in that file, uint8 ``(n, ..., height, width)``.
        labels: key of class labels, integers ``(n,)``; not read where there are positions.
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

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"unknown form {self.form!r} in the configuration: use one of {', '.join(get_args(Form))}")
        for name in ("levels", "batch", "steps", "warm_up"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} in the configuration must be a whole number >= 1, got {value!r}")


class TrainingProgress(NamedTuple):
    """What a progress callback is told: steps done, steps in all, and a running mean of the loss."""

    step: int
    steps: int
    loss: float


@dataclass
class _Run:
    """Everything that changes while training."""

    network: nn.Module
    average: dict[str, Tensor]
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    loss: float = field(default=math.nan)


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


def train(
    config: Config,
    *,
    checkpoint: str | Path,
    data: str | Path | None = None,
    every: int = 200,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> EnergyModel:
    """Train a model, or go on with one.

    Args:
        config: what to train.
        checkpoint: a safetensors file, written every ``every`` steps and at the end; if it exists,
            training goes on from there.
        data: file of images, for ``config.data == "npz"``.
        every: steps between checkpoints.
        progress: called every ten steps.

    Returns:
        The model, with its averaged parameters.

    Raises:
        FileNotFoundError: ``data`` is needed and is not there, or the checkpoint's folder does not exist.
        ValueError: data of the wrong shape, or a checkpoint of another configuration or damaged.
    """
    path = Path(checkpoint)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: mkdir -p {path.parent}")
    source = _data(config, data)
    schedule = NoiseSchedule.cosine(config.levels)
    run = _begin(config, source.conditions)
    if path.exists():
        _resume(run, path, config)
    while run.step < config.steps:
        for group in run.optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(run.step, config)
        clean, condition = source.draw(run.generator)
        loss = denoising_loss(
            run.network,
            config.form,
            schedule,
            clean,
            condition=condition,
            reference=source.reference,
            generator=run.generator,
        )
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        run.step += 1
        decay = min(config.ema, (run.step + 1) / (run.step + 10))
        with torch.no_grad():
            for name, value in run.network.state_dict().items():
                run.average[name].lerp_(value, 1 - decay)
        value = float(loss.detach())
        run.loss = value if math.isnan(run.loss) else 0.99 * run.loss + 0.01 * value
        if progress is not None and run.step % 10 == 0:
            progress(TrainingProgress(run.step, config.steps, run.loss))
        if run.step % every == 0 or run.step == config.steps:
            _save(run, path, config)
    return _model(config, run, schedule, source)


def save_weights(model: EnergyModel, path: str | Path) -> Path:
    """Write a model to a safetensors file with its schedule, network and provenance in the header.

    The file appears only when it is complete.
    """
    header = {
        "format": FORMAT,
        "form": model.form,
        "schedule": json.dumps({"alphas": model.schedule.alphas, "sigmas": model.schedule.sigmas}),
        "event_shape": json.dumps(model.event_shape),
        "conditions": dump(model.conditions),
        "reference": json.dumps(model.reference),
    }
    header |= {key: value for key, value in model.info.items() if key not in header}
    return _write(model.network.state_dict(), header, Path(path))


def _model(config: Config, run: _Run, schedule: NoiseSchedule, source: Data) -> EnergyModel:
    network = _network(config, source.conditions)
    network.load_state_dict(run.average)
    info = {
        "name": config.name,
        "description": config.description,
        "network": json.dumps(_network_options(config, source.conditions)),
        "command": f"ppl-diffusion train {config.name}" + (" --data FILE.npz" if config.data == "npz" else ""),
        "steps": str(run.step),
        "loss": f"{run.loss:.5f}",
        "versions": json.dumps(versions()),
        "config": json.dumps(asdict(config)),
    }
    return EnergyModel(
        network,
        form=config.form,
        schedule=schedule,
        event_shape=source.event_shape,
        conditions=source.conditions,
        reference=source.reference,
        name=config.name,
        info=info,
    )


def _data(config: Config, source: str | Path | None) -> Data:
    if config.data != "npz":
        return planar_data(config.data, batch=config.batch, seed=config.seed)
    return image_data(
        source,
        images=config.images,
        labels=config.labels,
        positions=config.positions,
        batch=config.batch,
        label_dropout=config.label_dropout,
    )


def _network_options(config: Config, conditions: Conditions) -> dict[str, Any]:
    return {**config.network, **conditions.options}


def _network(config: Config, conditions: Conditions) -> nn.Module:
    return build_network(seed=config.seed, **_network_options(config, conditions))


def _begin(config: Config, conditions: Conditions) -> _Run:
    network = _network(config, conditions)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return _Run(network, average, optimiser, torch.Generator().manual_seed(config.seed))


def _rate(step: int, config: Config) -> float:
    warm_up = min(1.0, (step + 1) / config.warm_up)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _save(run: _Run, path: Path, config: Config) -> None:
    tensors = {f"network.{k}": v for k, v in run.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in run.average.items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    tensors["generator"] = run.generator.get_state()
    header = {"format": FORMAT, "step": str(run.step), "loss": repr(run.loss), "config": json.dumps(asdict(config))}
    _write(tensors, header, path)


def _resume(run: _Run, path: Path, config: Config) -> None:
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if json.loads(header["config"]) != json.loads(json.dumps(asdict(config))):
            raise ValueError(f"{path} belongs to another configuration: give another checkpoint, or remove it")
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for key, value in tensors.items():
            group, _, name = key.partition(".")
            if name:
                groups[group][name] = value
        run.network.load_state_dict(groups["network"])
        run.average.update(groups["average"])
        run.generator.set_state(tensors["generator"])
    except (SafetensorError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or it is damaged ({error}): remove it to start anew") from error
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimiser"].items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    described = run.optimiser.state_dict()
    run.optimiser.load_state_dict({"state": states, "param_groups": described["param_groups"]})
    run.step, run.loss = int(header["step"]), float(header["loss"])


def _write(tensors: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> Path:
    with replacing(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata=dict(header))
    return path
