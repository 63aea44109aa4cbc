"""Checkpoints of training: the complete state of a run in one safetensors file, without pickles."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..devices.cuda_graphs import Recorder
from ..files import write
from ..models.library import FORMAT
from .config import Config
from .data import Data
from .objective import Levels


@dataclass
class Run:
    """The mutable state of a training run."""

    network: nn.Module
    average: dict[str, Tensor]
    levels: Levels | None
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    loss: Tensor
    noise: torch.Generator  # of levels and noise, on the device of the network; on a CPU it is ``generator``
    launch: Recorder
    step: int = 0


def save(run: Run, path: Path, config: Config, source: Data) -> None:
    """Write the state of a run, which replaces a file at ``path`` when it is complete.

    Raises:
        ValueError: a loss that is not finite; a file at ``path`` stays as it is.
        OSError: a file that cannot be written.
    """
    if not math.isfinite(float(run.loss)):
        raise ValueError(
            f"after {run.step} steps the loss of {config.name} is {float(run.loss)}, and {path} is left as it was: "
            "lower learning_rate and go on from there with allow_changes=True, or look for values in the data that are "
            "not finite"
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
    """Return the shape of a point and a digest of the data, by which other data are recognised."""
    return f"{tuple(source.event_shape)} {source.digest}"


MAY_CHANGE = ("steps", "batch", "learning_rate", "warm_up", "ema", "label_dropout", "data", "images", "description")
"""What of a configuration may be another one where training goes on with ``allow_changes``."""


def resume(run: Run, path: Path, config: Config, source: Data, *, allow_changes: bool = False) -> None:
    """Bring a new run to the state that :func:`save` wrote.

    Raises:
        ValueError: a checkpoint of another configuration or of other data, or a file that is none or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if "schedule" in header:
            raise ValueError(f"{path} is a weight file, not a checkpoint: give another --checkpoint")
        there, here = asdict(Config(**json.loads(header["config"]))), asdict(config)
        changed = [name for name in here if there[name] != here[name]]
        changed = [name for name in changed if not (allow_changes and name in MAY_CHANGE)]
        if changed:
            remedy = ", or allow_changes=True to go on from it" if changed[0] in MAY_CHANGE else ""
            raise ValueError(
                f"{path} belongs to another configuration ({changed[0]} is {there[changed[0]]!r} there, "
                f"{here[changed[0]]!r} here): give another checkpoint, or remove it{remedy}"
            )
        if not allow_changes and header.get("data", _fingerprint(source)) != _fingerprint(source):
            raise ValueError(
                f"{path} was trained on other data: give those, another checkpoint, or allow_changes=True to go on "
                "from it"
            )
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
