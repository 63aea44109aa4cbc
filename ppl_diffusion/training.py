"""Training of energy models by denoising: resumable, reproducible, without pickles.

The optimiser is AdamW with warm-up and cosine decay, and what is kept is an exponential moving average of the
parameters.
A checkpoint is one safetensors file with everything, generator included: a run that was interrupted
goes on as if it had not been, on another device too. What is minimised is in ``ppl_diffusion.objective``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .arrays import check_device, on_cpu
from .condition import Conditions
from .config import Config, load_config
from .data import Data, image_data, planar_data
from .energy import EnergyModel
from .networks import build_network
from .objective import Levels, denoising_loss
from .recording import RECORDED, Recorder
from .schedule import NoiseSchedule
from .trace import versions
from .zoo import FORMAT, load, write

__all__ = ["Config", "TrainingProgress", "load_config", "train"]

CONSTANTS_RATE = 0.05
"""Peak of AdamW's rate for the constants of levels, in nats a step."""


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
    levels: Levels | None
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    loss: Tensor
    noise: torch.Generator  # what levels and noise come from: on the device of the network, of ``generator`` there
    launch: Recorder
    step: int = 0


@on_cpu()
def train(
    config: Config,
    *,
    checkpoint: str | Path,
    data: str | Path | None = None,
    every: int = 200,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> EnergyModel:
    """Train a model, or go on with one.

    The generator stays on the CPU whatever the device, and seeds those of other devices: a checkpoint is of none.

    Args:
        config: what to train.
        checkpoint: a safetensors file, written every ``every`` steps and at the end; if it exists,
            training goes on from there.
        data: file of images, for ``config.data == "npz"``.
        every: steps between checkpoints.
        device: where the network is trained.
        progress: called every ten steps.

    Returns:
        The model, on the CPU, with its averaged parameters.

    Raises:
        FileNotFoundError: ``data`` is needed and is not there, or the checkpoint's folder does not exist.
        ValueError: data of the wrong shape, a checkpoint of another configuration, of other data or damaged, initial
            weights of another network, a device that this machine lacks, or a loss that is not finite, whose
            checkpoint is not written.
    """
    path, device = Path(checkpoint), check_device(device)
    if every < 1:
        raise ValueError(f"every must be a number of steps >= 1, got {every}: try every=200")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: mkdir -p {path.parent}")
    source = _data(config, data)
    _check_shape(config, source)
    schedule = NoiseSchedule.cosine(config.levels)
    run = _begin(config, source, schedule, device)
    if path.exists():
        _resume(run, path, config, source)
    else:
        _start(run, config, source)
    try:
        while run.step < config.steps:
            _step(run, config, source, schedule)
            if progress is not None and run.step % 10 == 0:
                progress(TrainingProgress(run.step, config.steps, float(run.loss)))
            if run.step % every == 0 or run.step == config.steps:
                _save(run, path, config, source)
    finally:
        run.launch.clear()
    return _model(config, run, schedule, source)


def _check_shape(config: Config, source: Data) -> None:
    network = config.network
    shape = tuple(network.get("shape") or ((network["size"],) if "size" in network else source.event_shape))
    if tuple(source.event_shape) not in (shape, shape[1:] if shape[0] == 1 else shape):
        raise ValueError(
            f"the data have points of shape {tuple(source.event_shape)}, the network of {config.name} of {shape}: "
            "give other data, or change [network]"
        )


def _model(config: Config, run: _Run, schedule: NoiseSchedule, source: Data) -> EnergyModel:
    network = _network(config, source.conditions)
    network.load_state_dict(run.average)
    info = {
        "name": config.name,
        "description": config.description,
        "network": json.dumps(_network_options(config, source.conditions)),
        "command": f"ppl-diffusion train {config.name}" + (" --data FILE.npz" if config.data == "npz" else ""),
        "steps": str(run.step),
        "loss": f"{float(run.loss):.5f}",
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


def _begin(config: Config, source: Data, schedule: NoiseSchedule, device: torch.device) -> _Run:
    network = _network(config, source.conditions).to(device)
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4, fused=fused)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    levels = None
    if config.which_level:
        levels = Levels.of(schedule, size=math.prod(source.event_shape), device=device)
        optimiser.add_param_group({"params": [levels.steps], "lr": CONSTANTS_RATE, "weight_decay": 0.0})
    unknown = torch.tensor(math.nan, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(config.seed)
    noise = generator if device.type == "cpu" else torch.Generator(device)
    launch = Recorder(network, [noise], most=RECORDED)
    return _Run(network, average, levels, optimiser, generator, unknown, noise, launch)


def _start(run: _Run, config: Config, source: Data) -> None:
    """What a fresh run begins with: given weights, and constants that suit them."""
    if config.init:
        try:
            run.network.load_state_dict(load(config.init).network.state_dict())
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            raise ValueError(
                f"init = {config.init!r} cannot be started from ({reason}): give a model or weights of this network"
            ) from error
        run.average.update({name: value.detach().clone() for name, value in run.network.state_dict().items()})
    if run.levels is not None:
        run.levels.measure(run.network, config.form, source.draw, reference=source.reference, seed=config.seed)


def _step(run: _Run, config: Config, source: Data, schedule: NoiseSchedule) -> None:
    rate = _rate(run.step, config)
    for group, peak in zip(run.optimiser.param_groups, (config.learning_rate, CONSTANTS_RATE), strict=False):
        group["lr"] = peak * rate
    device = run.loss.device
    drawn = [_send(part, device) for part in source.draw(run.generator) if part is not None]
    if run.noise is not run.generator:
        run.noise.manual_seed(int(torch.randint(2**62, (), generator=run.generator)))
    parameters = [parameter for group in run.optimiser.param_groups for parameter in group["params"]]

    def losses(clean: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {"condition": condition, "reference": source.reference, "generator": run.noise}
        if run.levels is None:
            loss = error = denoising_loss(run.network, config.form, schedule, clean, **given)
        else:
            error, surprise = run.levels.losses(run.network, config.form, clean, **given)
            loss = error + config.which_level * surprise
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return error.detach(), *map(_laid_out, gradients, parameters)

    error, *gradients = run.launch(losses, *drawn, kind=config.which_level > 0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    run.optimiser.step()
    run.step += 1
    _average(run, min(config.ema, (run.step + 1) / (run.step + 10)), error.double())


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """``gradient`` with the strides of its parameter, as optimisers want it."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def _average(run: _Run, decay: float, loss: Tensor) -> None:
    values = run.network.state_dict()
    get_ema_multi_avg_fn(decay)([run.average[name] for name in values], list(values.values()), None)
    run.loss = torch.where(run.loss.isnan(), loss, 0.99 * run.loss + 0.01 * loss)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To a device; from pinned memory, so that an accelerator need not wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _rate(step: int, config: Config) -> float:
    warm_up = min(1.0, (step + 1) / config.warm_up)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _save(run: _Run, path: Path, config: Config, source: Data) -> None:
    if not math.isfinite(float(run.loss)):
        raise ValueError(
            f"after {run.step} steps the loss of {config.name} is {float(run.loss)}, and {path} is left as it was: "
            "lower learning_rate, or look for values in the data that are not finite"
        )
    tensors = {f"network.{k}": v for k, v in run.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in run.average.items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    tensors["generator"] = run.generator.get_state()
    if run.levels is not None:
        tensors["levels"] = run.levels.steps.detach()
    header = {"format": FORMAT, "step": str(run.step), "loss": repr(float(run.loss))}
    header |= {"config": json.dumps(asdict(config)), "data": _fingerprint(source)}
    write(tensors, header, path)


def _fingerprint(source: Data) -> str:
    """What tells data from others: shape, mean and variance."""
    moments = (f"{float(np.mean(value)):.6g}" for value in source.reference)
    return " ".join([str(tuple(source.event_shape)), *moments])


def _resume(run: _Run, path: Path, config: Config, source: Data) -> None:
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if Config(**json.loads(header["config"])) != config:
            raise ValueError(f"{path} belongs to another configuration: give another checkpoint, or remove it")
        if header.get("data", _fingerprint(source)) != _fingerprint(source):
            raise ValueError(f"{path} was trained on other data: give those, or another checkpoint")
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for key, value in tensors.items():
            group, _, name = key.partition(".")
            if name:
                groups[group][name] = value
        run.network.load_state_dict(groups["network"])
        run.average.update({name: value.to(run.loss.device) for name, value in groups["average"].items()})
        run.generator.set_state(tensors["generator"])
        if run.levels is not None:
            run.levels.steps.data.copy_(tensors["levels"])
        run.step, run.loss = int(header["step"]), torch.full_like(run.loss, float(header["loss"]))
    except (SafetensorError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or it is damaged ({error}): remove it to start anew") from error
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimiser"].items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    described = run.optimiser.state_dict()
    run.optimiser.load_state_dict({"state": states, "param_groups": described["param_groups"]})
