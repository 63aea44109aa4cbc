"""References in files inside the package: one safetensors file a target, with its levels and how they were made.

Coordinates are stored in float64 if there are few of them. Of pictures, values are float32, and errors, variances and
draws float16, whose rounding is far below the errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from ..arrays import on_cpu
from ..files import write as write_tensors
from .reference import Expectation, Modes, Reference

FORMAT = "ppl-diffusion references 1"
PICTURE = 500
"""Number of coordinates from which a point counts as a picture."""


def path_of(name: str, folder: Path | None = None) -> Any:
    """Return where the references of a target are, by default inside the package."""
    return (folder or files("ppl_diffusion") / "targets" / "references") / f"{name}.safetensors"


def write(
    name: str, references: Mapping[int, Reference], header: Mapping[str, str], folder: Path | None = None
) -> Path:
    """Write the references of a target, with further entries of its header; return the path."""
    tensors: dict[str, torch.Tensor] = {}
    levels: dict[str, dict[str, Any]] = {}
    for level, reference in references.items():
        tensors |= {f"{level}/{key}": torch.tensor(value) for key, value in _arrays(reference).items()}
        levels[str(level)] = {
            "log_p": _numbers(reference.log_p),
            "log_p_squared": _numbers(reference.log_p_squared),
            "made": reference.made,
            "effective_draws": reference.effective_draws if np.isfinite(reference.effective_draws) else None,
            "condition_number": reference.condition_number,
        }
    return write_tensors(
        tensors, {**header, "format": FORMAT, "levels": json.dumps(levels)}, Path(path_of(name, folder))
    )


def read(name: str, folder: Path | None = None) -> tuple[dict[int, Reference], dict[str, str]]:
    """Return the references of a target by level, and the header of their file.

    Raises:
        ValueError: there is no such file, or it is not one of references.
    """
    path = path_of(name, folder)
    if not path.is_file():
        raise ValueError(f"there are no references of {name} in {path}: make them, python -m benchmarks references")
    with on_cpu(), safe_open(path, framework="pt") as stored:
        header = stored.metadata() or {}
        arrays = {key: stored.get_tensor(key).numpy() for key in stored.keys()}  # noqa: SIM118
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold references: install the package again")
    levels = json.loads(header.pop("levels"))
    found = {int(level): _reference(entry, arrays, f"{level}/") for level, entry in levels.items()}
    return found, header


def _arrays(reference: Reference) -> dict[str, np.ndarray]:
    size = int(np.prod(np.shape(reference.x.value)))
    fine, coarse = (np.float32, np.float16) if size >= PICTURE else (np.float64, np.float64)
    found: dict[str, np.ndarray] = {}
    for name, one in (("x", reference.x), ("x_squared", reference.x_squared)):
        parts = {"value": (one.value, fine), "error": (one.error, coarse), "variance": (one.variance, coarse)}
        found |= {f"{name}.{part}": np.asarray(value, dtype=kind) for part, (value, kind) in parts.items()}
    if reference.modes is not None:
        found |= {f"modes.{part}": value for part, value in vars(reference.modes).items()}
    if reference.draws is not None:
        found["draws"] = reference.draws.astype(np.float16 if size >= PICTURE else np.float32)
    return found


def _reference(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Reference:
    def expectation(name: str) -> Expectation:
        parts = (arrays[f"{prefix}{name}.{part}"].astype(np.float64) for part in ("value", "error", "variance"))
        return Expectation(*parts)

    modes = None
    if f"{prefix}modes.weights" in arrays:
        modes = Modes(*(arrays[f"{prefix}modes.{part}"] for part in ("locations", "weights", "errors")))
    return Reference(
        expectation("x"),
        expectation("x_squared"),
        Expectation(*entry["log_p"]),
        Expectation(*entry["log_p_squared"]),
        modes,
        entry["made"],
        float("inf") if entry["effective_draws"] is None else float(entry["effective_draws"]),
        float(entry["condition_number"]),
        arrays.get(f"{prefix}draws"),
    )


def _numbers(expectation: Expectation) -> list[float]:
    return [float(part) for part in (expectation.value, expectation.error, expectation.variance)]
