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

ASK = "allow_changes=True to go on from it (--allow-changes)"
"""How to ask for going on with another configuration or other data."""


@dataclass
class Run:
    """The mutable state of a training run."""

    network: nn.Module
    average: dict[str, Tensor]
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
        remedy = "lower learning_rate"
        if path.exists():
            remedy = f"{path} is left as it was, lower learning_rate, with {ASK}"
        raise ValueError(
            f"after {run.step} steps the loss of {config.name} is {float(run.loss)}: {remedy}, or look for values in "
            "the data that are not finite"
        )
    tensors = {f"network.{k}": v for k, v in run.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in run.average.items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    tensors["generator"] = run.generator.get_state()
    header = {"format": FORMAT, "step": str(run.step), "loss": repr(float(run.loss))}
    header |= {"config": json.dumps(config.plain()), "data": _fingerprint(source)}
    write(tensors, header, path)


def _fingerprint(source: Data) -> str:
    """Return the shape of a point and a digest of the data, by which other data are recognised."""
    return f"{tuple(source.event_shape)} {source.digest}"


MUST_STAY = ("network", "form", "levels")
"""What of a configuration stays where training goes on with ``allow_changes``: what has made the numbers stored."""


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
        refused = [name for name in changed if name in MUST_STAY or not allow_changes]
        if refused:
            remedy = "" if set(refused) & set(MUST_STAY) else f", or {ASK}"
            name = next((name for name in refused if name in MUST_STAY), refused[0])
            raise ValueError(
                f"{path} belongs to another configuration ({name} is {there[name]!r} there, {here[name]!r} here): give "
                f"another checkpoint, or remove it{remedy}"
            )
        if not allow_changes and header.get("data", _fingerprint(source)) != _fingerprint(source):
            raise ValueError(
                f"{path} was trained on other data, or by another teacher: give those, another checkpoint, or {ASK}"
            )
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for key, value in tensors.items():
            group, _, name = key.partition(".")
            if name:
                groups[group][name] = value
        sizes = {name: value.shape for name, value in run.network.state_dict().items()}
        if allow_changes and sizes != {name: value.shape for name, value in groups["network"].items()}:
            raise ValueError(
                f"the data have as conditions {str(source.conditions)!r}, for which the network of {path} is not made: "
                "give data with its conditions, or another checkpoint"
            )
        run.network.load_state_dict(groups["network"])
        run.average.update({name: value.to(run.loss.device) for name, value in groups["average"].items()})
        if "seed" not in changed:
            run.generator.set_state(tensors["generator"])
        run.step, run.loss = int(header["step"]), torch.full_like(run.loss, float(header["loss"]))
    except (SafetensorError, KeyError, TypeError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint, or it is damaged ({reason}): remove it to start anew") from error
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimiser"].items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    described = run.optimiser.state_dict()
    run.optimiser.load_state_dict({"state": states, "param_groups": described["param_groups"]})
