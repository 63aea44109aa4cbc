"""Training of energy models by denoising, and of classifiers: resumable, reproducible, without pickles.

The optimiser is AdamW with warm-up and cosine decay; the trained model has an exponential moving average of the
parameters. A checkpoint is one safetensors file with the complete state, the generator included: a resumed run gives
what an uninterrupted one gives, and may resume on another device. The losses are in
``ppl_diffusion.training.objective`` and ``ppl_diffusion.training.agreement``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..arrays import check_device, on_cpu, outside_inference_mode
from ..devices.cuda_graphs import RECORDED, Recorder
from ..files import versions
from ..models.conditions import KINDS, Conditions, Kinds
from ..models.energy import EnergyModel
from ..models.library import load
from ..models.networks import build_network
from ..models.noise import ScorePotential
from ..schedule import NoiseSchedule
from .checkpoint import Run, resume, save
from .config import Config, load_config
from .data import Data, image_data, planar_data
from .start import start_from
from .step import take_step
from .teacher import Teacher

__all__ = ["Config", "TrainingProgress", "load_config", "train"]

CHECKPOINT_SECONDS = 60.0
"""Longest time between checkpoints, in seconds."""


class TrainingProgress(NamedTuple):
    """Argument of a progress callback: steps done, steps in total, and a running mean of the loss."""

    step: int
    steps: int
    loss: float


@outside_inference_mode()
@torch.enable_grad()
@on_cpu()
def train(
    config: Config,
    *,
    checkpoint: str | Path,
    data: str | Path | None = None,
    teacher: ScorePotential | EnergyModel | None = None,
    every: int = 200,
    allow_changes: bool = False,
    kinds: Kinds = KINDS,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> EnergyModel:
    """Train a model, or resume its training from a checkpoint.

    Checkpoints do not depend on the device: their generator is on the CPU, and at every step seeds that of a GPU.

    Args:
        config: the configuration of the model and its training.
        checkpoint: a safetensors file, written every ``every`` steps, every minute and at the end; resumed from if it
            exists.
        data: .npz file of the training data, for ``config.data == "npz"``.
        teacher: a model whose estimate of the noise is learned in place of the noise itself, at its own levels, such as
            what ``bridges.diffusers.from_diffusers`` returns. If the configuration has the teacher's network, training
            starts from its weights, unless ``config.init`` names others. The returned model's ``info`` has under
            "circulation" how much of the teacher's field is no gradient, see ``ppl_diffusion.training.teacher``.
        every: number of steps between checkpoints.
        allow_changes: whether to go on from a checkpoint of another learning rate, number of steps, batch or other
            data, such as after a loss that was not finite. By default only the same run goes on. A new number of steps
            is that of the whole, over which the learning rate decays; another seed draws anew from there on.
        kinds: the kinds of conditions that the configuration may name, ``(*KINDS, Mine)`` for one of your own.
        device: device on which the network is trained.
        progress: called every ten steps.

    Returns:
        The model, on the CPU, with its averaged parameters.

    Raises:
        FileNotFoundError: ``data`` is needed and does not exist, or the folder of ``checkpoint`` does not exist.
        PermissionError: that folder cannot be written.
        ValueError: the data have a wrong shape; the checkpoint is damaged, or of another configuration or other data;
            the initial weights are of another network; the device cannot be used; or the loss is not finite when a
            checkpoint is due, which is then not written.
    """
    path, device = Path(checkpoint), check_device(device)
    if every < 1:
        raise ValueError(f"every must be a number of steps >= 1, got {every}: try every=200")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written: give another checkpoint")
    source = _data(config, data, kinds)
    _check_shape(config, source)
    schedule, taught = NoiseSchedule.cosine(config.levels), None
    if teacher is not None:
        if "classifier" in (config.form, getattr(teacher, "form", "")):
            raise ValueError("a classifier learns labels, and knows no noise: leave the teacher out, or give another")
        if config.agreement:
            raise ValueError("a teacher knows no levels between its own: set agreement = 0, and train on without it")
        taught = Teacher(teacher, source, label_dropout=config.label_dropout)
        source = source._replace(digest=f"{source.digest} {taught.digest}")
        taught.to(device)
        schedule = teacher.schedule
    run = _new_run(config, source, schedule, device, taught)
    if path.exists():
        resume(run, path, config, source, allow_changes=allow_changes)
    else:
        _initialise(run, config, source)
    saved = time.monotonic()
    try:
        while run.step < config.steps:
            with torch.autocast(device.type, enabled=False):
                take_step(run, config, source, schedule, taught)
            if progress is not None and run.step % 10 == 0:
                progress(TrainingProgress(run.step, config.steps, float(run.loss)))
            if run.step % every == 0 or run.step == config.steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(run, path, config, source)
                saved = time.monotonic()
    finally:
        run.launch.clear()
    info = {} if taught is None else {"teacher": str(teacher), "circulation": taught.turning(source, seed=config.seed)}
    return _model(config, run, schedule, source, info)


def _check_shape(config: Config, source: Data) -> None:
    network = config.network
    shape = tuple(network.get("shape") or ((network["size"],) if "size" in network else source.event_shape))
    if tuple(source.event_shape) not in (shape, shape[1:] if shape[0] == 1 else shape):
        raise ValueError(
            f"the data have points of shape {tuple(source.event_shape)}, the network of {config.name} of {shape}: "
            "give other data, or change [network]"
        )


def _model(config: Config, run: Run, schedule: NoiseSchedule, source: Data, further: dict[str, str]) -> EnergyModel:
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
        "config": json.dumps(config.plain()),
    } | further
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


def _data(config: Config, source: str | Path | None, kinds: Kinds) -> Data:
    if config.data != "npz":
        if source is not None:
            raise ValueError(f"{config.name} draws its data, {config.data!r}: leave {source} out, or set data = 'npz'")
        return planar_data(config.data, batch=config.batch, seed=config.seed)
    return image_data(
        source,
        images=config.images,
        labels=config.labels,
        positions=config.positions,
        batch=config.batch,
        label_dropout=0.0 if config.form == "classifier" else config.label_dropout,
        conditions=config.conditions,
        kinds=kinds,
    )


def _network_options(config: Config, conditions: Conditions) -> dict[str, Any]:
    for option, needed in conditions.options.items():
        if config.network.get(option, needed) != needed:
            raise ValueError(f"the data give {option} = {needed!r}, not {config.network[option]!r}: leave it out")
    return {**config.network, **conditions.options}


def _network(config: Config, conditions: Conditions) -> nn.Module:
    return build_network(seed=config.seed, **_network_options(config, conditions))


def _new_run(
    config: Config, source: Data, schedule: NoiseSchedule, device: torch.device, teacher: Teacher | None
) -> Run:
    network = _network(config, source.conditions)
    if teacher is not None and not config.init:
        teacher.hand_over(network)
    network.to(device)
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4, fused=fused)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    unknown = torch.tensor(math.nan, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(config.seed)
    noise = generator if device.type == "cpu" else torch.Generator(device)
    launch = Recorder(network, [noise], most=RECORDED if teacher is None else 0)  # not all teachers can be recorded
    return Run(network, average, optimiser, generator, unknown, noise, launch)


def _initialise(run: Run, config: Config, source: Data) -> None:
    """Initialise a new run: load the weights of ``config.init``."""
    if not np.any(np.asarray(source.reference[1]) > 0):
        raise ValueError("the data do not vary: give points that differ")
    if config.init:
        _begin_from(config.init, run.network, source)
        run.average.update({name: value.detach().clone() for name, value in run.network.state_dict().items()})


def _begin_from(init: str, network: nn.Module, source: Data) -> None:
    """Copy the weights of a shipped model or of a weight file into a network like it; conditions may differ."""
    remedy = "give a model or weights of this network"
    try:
        begin = load(init)
    except ValueError as error:
        raise ValueError(f"init = {init!r} cannot be started from ({error}): {remedy}") from error
    mine, theirs = network.state_dict(), begin.network.state_dict()
    try:
        start_from(network, theirs)
    except RuntimeError as error:
        for name in mine | theirs:
            sizes = [str(list(part[name].shape)) if name in part else "none" for part in (theirs, mine)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"init = {init!r} cannot be started from: {name} has the size {sizes[0]} there, {sizes[1]} here, "
                    f"with {begin.conditions} there and {source.conditions} here as conditions: {remedy}"
                ) from error
        raise
