"""Loading and saving of models: ``load("ring")``. Weights are safetensors files that describe their own model.

A weight file holds the parameters of the network. Its header holds the noise schedule, the kind of network, the form of
the energy, and provenance: configuration, loss, versions, and the command that reproduces it. Nothing is unpickled.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..arrays import on_cpu, outside_inference_mode
from ..files import write
from ..schedule import NoiseSchedule
from .conditions import KINDS, Conditions, Kinds, dump, parse
from .energy import EnergyModel
from .networks import build_network

FORMAT = "ppl-diffusion weights 1"


class ModelCard(NamedTuple):
    """Description of a shipped model, from the header of its weight file."""

    name: str
    description: str
    event_shape: tuple[int, ...]
    conditions: str
    command: str


def names() -> list[str]:
    """Return the names of the shipped models, sorted."""
    return sorted(p.name[: -len(".safetensors")] for p in _folder().iterdir() if p.name.endswith(".safetensors"))


def cards() -> list[ModelCard]:
    """Return a :class:`ModelCard` for every shipped model, without reading its weights."""
    listed: list[ModelCard] = []
    for name in names():
        header = _read(_folder() / f"{name}.safetensors", tensors=False)[0]
        shape = tuple(json.loads(header["event_shape"]))
        listed.append(ModelCard(name, header["description"], shape, str(_conditions(header)), header["command"]))
    return listed


@outside_inference_mode()
def load(name: str | Path, *, kinds: Kinds = KINDS) -> EnergyModel:
    """Load an energy model by name, or from a weight file.

    Args:
        name: a shipped model, see :func:`names`, or the path of a ``.safetensors`` file.
        kinds: the kinds of conditions that the file may have, ``(*KINDS, Mine)`` for one of your own.

    Returns:
        The model on the CPU; if it is conditional, ``.given(3)`` or ``.given(x=0.3, y=0.6)`` conditions it.

    Raises:
        ValueError: there is no such model, or the file is damaged or not a weight file of this library.

    >>> digits = load("digits")
    >>> digits.event_shape, digits.given(3)
    ((28, 28), digits[3])
    """
    path: Any = Path(name) if str(name).endswith(".safetensors") else _folder() / f"{name}.safetensors"
    if not path.is_file():
        if str(name).endswith(".safetensors"):
            raise ValueError(f"there is no file {str(name)!r}, seen from {Path.cwd()}: give the path of a weight file")
        raise ValueError(f"there is no model {str(name)!r}: use one of {', '.join(names())}, or a .safetensors file")
    header, tensors = _read(path)
    try:
        network = build_network(**json.loads(header["network"]))
        network.to(torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32)
        network.load_state_dict(tensors)
        return EnergyModel(
            network,
            form=header["form"],  # type: ignore[arg-type]
            schedule=NoiseSchedule(**json.loads(header["schedule"])),
            event_shape=json.loads(header["event_shape"]),
            conditions=_conditions(header, kinds),
            reference=json.loads(header.get("reference", "[0.0, 1.0]")),
            name=header["name"],
            info=header,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if "vmap" in str(error):
            raise ValueError(f"load({str(name)!r}) in a model runs at every evaluation: load it outside") from error
        raise ValueError(f"{path} does not describe its model ({_first_line(error)}): get the file again") from error


def save_weights(model: EnergyModel, path: str | Path) -> Path:
    """Write a model to a safetensors file with its schedule, network and provenance in the header.

    Raises:
        ValueError: the model's ``info`` does not describe how to build its network, or the model is conditioned.
    """
    if model.token != model.conditions.anything:
        raise ValueError(f"{model} is conditioned: save the model that it was made of, and condition that when loaded")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} is to be a weight file: save_weights(model, '{Path(path).name}.safetensors')")
    if "network" not in model.info:
        raise ValueError(
            f"{model} does not say how its network is built: give EnergyModel info={{'network': json.dumps(options)}} "
            "with the options of ppl_diffusion.models.networks.build_network"
        )
    header = {
        "name": model.name,
        "format": FORMAT,
        "form": model.form,
        "schedule": json.dumps({"alphas": model.schedule.alphas, "sigmas": model.schedule.sigmas}),
        "event_shape": json.dumps(model.event_shape),
        "conditions": dump(model.conditions),
        "reference": json.dumps([np.asarray(value).tolist() for value in model.reference]),
    }
    header = {key: str(value) for key, value in model.info.items() if key not in header} | header
    return write(model.network.state_dict(), header, Path(path))


def _conditions(header: dict[str, str], kinds: Kinds = KINDS) -> Conditions:
    return parse(header.get("conditions") or json.dumps({"classes": int(header["classes"])}), kinds)


def _folder() -> Any:
    return files("ppl_diffusion") / "weights"


def _read(path: Any, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        with on_cpu(), safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            values = {key: stored.get_tensor(key) for key in stored.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = _first_line(error)
        raise ValueError(f"{path} is not a weight file, or it is damaged ({reason}): get it again") from error
    if header.get("format") == FORMAT and "step" in header and "schedule" not in header:
        config = json.loads(header["config"])
        ended = int(header["step"]) >= int(config["steps"])
        data = ", data='FILE.npz'" if config["data"] == "npz" else ""
        raise ValueError(
            f"{path} is the checkpoint of a training that has {'ended' if ended else 'not ended'}, not its weights: "
            f"run the same training {'again, which takes no step' if ended else 'to its end'}, and save what it "
            f"returns, save_weights(train(config, checkpoint='{path}'{data}), '{config['name']}.safetensors')"
        )
    if header.get("format") != FORMAT or "schedule" not in header:
        raise ValueError(f"{path} was not written by ppl-diffusion: use a file written by save_weights(model, path)")
    return header, values


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
