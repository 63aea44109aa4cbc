"""The state of a walk between two calls of its walker, and the checkpoint from which an interrupted walk goes on.

A checkpoint is one safetensors file, without pickles. It holds the arrays of the walker's state, the generators of
random numbers, the weights, and what was recorded, so that a resumed walk gives the trace of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from .kernel import State, Walker
from .trace import replacing
from .weights import Weights

FORMAT = "ppl-diffusion walk 1"
EVERY = 60.0
"""Longest time between two saves, in seconds, unless a single rung takes longer."""
TOLERANCE = 1e-4
"""Relative change of an energy from which on it is another potential's; rounding on a GPU changes less."""
REMEDY = "give another checkpoint, or remove it to start anew"


@dataclass
class Walk:
    """The mutable state of a walk.

    Attributes:
        seed: seed of all random numbers.
        weights: log-weights of the chains.
        state: state of the walker; None before the first rung.
        rungs: statistics of each rung so far.
        positions: recorded draws so far, blocks of shape ``(chains, draws, *event_shape)``.
        statistics: statistics of each block.
        notes: warnings to be given at the end.
        seconds: time that the walk had taken when it was last interrupted.
    """

    seed: int
    weights: Weights
    state: State | None = None
    rungs: list[dict[str, Any]] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    statistics: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.streams = np.random.SeedSequence(self.seed)
        self.rng = np.random.default_rng(self.streams.spawn(1)[0])

    @property
    def draws(self) -> int:
        """Number of draws recorded so far."""
        return sum(block.shape[1] for block in self.positions)

    def next_seed(self) -> int:
        """Return the seed of the next call of the walker."""
        return int(self.streams.spawn(1)[0].generate_state(1, np.uint32)[0])


class Checkpoint:
    """The file of a walk: saved to after the first rung, then every minute, at an interruption and at the end.

    As a context, it saves on leaving, also by an exception. Without a path it does nothing.

    Args:
        path: the file, or None.
        run: what the walk depends on beside the potential's values and the start; stored as JSON.
        start: starting positions, of which a digest is stored.

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError, PermissionError: the folder of ``path`` does not exist, or cannot be written.
    """

    def __init__(self, path: str | Path | None, run: Mapping[str, Any], start: np.ndarray) -> None:
        if not isinstance(path, (str, os.PathLike, NoneType)):
            raise TypeError(f"checkpoint is a file, got {path!r}: try checkpoint='walk.safetensors'")
        self.path = None if path is None else Path(path)
        self.saved, self.begun = -float("inf"), time.monotonic()
        self.marked: tuple[dict[str, str], dict[str, Any]] | None = None
        self.of_this_walk = False
        if self.path is None:
            return
        folder = self.path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} of the checkpoint does not exist: mkdir -p {folder}")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"the folder {folder} cannot be written: give another checkpoint")
        self.run = json.loads(json.dumps({**run, "start": hashlib.sha256(start.tobytes()).hexdigest()[:16]}))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = self._save()
        if error is not None and self.of_this_walk:
            error.add_note(lost or f"The same call with checkpoint='{self.path}' goes on from where the walk was.")

    def mark(self, walk: Walk) -> None:
        """Note the state of a walk between two calls of its walker, to be saved now or later."""
        if self.path is None or walk.state is None:
            return
        progress = {
            "spawned": walk.streams.n_children_spawned,
            "rng": walk.rng.bit_generator.state,
            "notes": walk.notes,
            "seconds": walk.seconds + time.monotonic() - self.begun,
        }
        self.of_this_walk = True
        header = {"format": FORMAT, "run": json.dumps(self.run), "progress": json.dumps(progress)}
        self.marked = (
            header,
            {
                "state": walk.state,
                "weights": walk.weights.log,
                "rungs": list(walk.rungs),
                "blocks": list(zip(walk.positions, walk.statistics, strict=True)),
            },
        )
        if time.monotonic() - self.saved >= EVERY:
            lost = self._save()
            if lost is not None and lost not in walk.notes:
                walk.notes.append(lost)

    def restore(self, walk: Walk, walker: Walker) -> None:
        """Bring a new walk to the state that is stored, if a file is there.

        The potential is evaluated once, at the stored positions, to see whether it is the same.

        Raises:
            ValueError: the file is of another run or another potential, or it is no checkpoint of a walk, or damaged.
        """
        if self.path is None or not self.path.exists():
            return
        header, arrays = _read(self.path)
        run, progress = json.loads(header["run"]), json.loads(header["progress"])
        for name in {**self.run, **run}:
            there, here = run.get(name), self.run.get(name)
            if there != here:
                raise ValueError(f"{self.path} is of another run ({name} is {there!r} there, {here!r} here): {REMEDY}")
        walk.state = self._state(arrays, walker)
        walk.weights.log = arrays["weights"]
        rungs = {key.removeprefix("rungs."): value for key, value in arrays.items() if key.startswith("rungs.")}
        walk.rungs = [dict(zip(rungs, values, strict=True)) for values in zip(*rungs.values(), strict=True)]
        block = {key.removeprefix("draws."): value for key, value in arrays.items() if key.startswith("draws.")}
        if block:
            walk.positions, walk.statistics = [block.pop("positions")], [block]
        walk.rng.bit_generator.state = progress["rng"]
        walk.streams = np.random.SeedSequence(walk.seed, n_children_spawned=progress["spawned"])
        walk.notes, walk.seconds = progress["notes"], progress["seconds"]
        self.of_this_walk = True

    def _state(self, arrays: Mapping[str, np.ndarray], walker: Walker) -> State:
        """Return the stored state, in the structure of one that ``walker`` makes at the same positions."""
        level, energy = int(arrays["state.level.0"]), arrays["state.energy.0"]
        made = walker.arrive(arrays["state.positions.0"], level, None, seed=0)
        here, finite = np.asarray(made.energy), np.isfinite(energy)
        off = np.abs(here[finite] - energy[finite]) > TOLERANCE * (1 + np.abs(energy[finite]))
        if not np.array_equal(finite, np.isfinite(here)) or off.any():
            raise ValueError(f"{self.path} is of another potential, whose energies at the same points differ: {REMEDY}")
        fields = {}
        for name, value in made._asdict().items():
            leaves, structure = jax.tree.flatten(value)
            try:
                stored = [_like(leaf, arrays[f"state.{name}.{i}"]) for i, leaf in enumerate(leaves)]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is of another kernel or version ({name}: {error}): {REMEDY}") from error
            fields[name] = jax.tree.unflatten(structure, stored)
        return State(**fields)

    def _save(self) -> str | None:
        """Write what was marked, unless it is written; return what to say if it cannot be."""
        if self.path is None or self.marked is None:
            return None
        header, found = self.marked
        arrays = {"weights": found["weights"]}
        for name, value in found["state"]._asdict().items():
            arrays |= {f"state.{name}.{i}": _stored(leaf) for i, leaf in enumerate(jax.tree.leaves(value))}
        arrays |= {f"rungs.{name}": values for name, values in stacked(found["rungs"]).items()}
        if found["blocks"]:
            blocks, statistics = zip(*found["blocks"], strict=True)
            drawn = joined(statistics) | {"positions": np.concatenate(blocks, axis=1)}
            arrays |= {f"draws.{name}": values for name, values in drawn.items()}
        try:
            with replacing(self.path) as partial:
                partial.write_bytes(to_bytes({key: np.array(v, order="C") for key, v in arrays.items()}, header))
        except OSError as error:
            return f"the checkpoint {self.path} could not be written ({error.strerror or error}): make room for it"
        self.saved, self.marked = time.monotonic(), None
        return None


def stacked(rungs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack statistics of rungs along a new first axis."""
    return {name: np.stack([np.asarray(row[name]) for row in rungs]) for name in rungs[0]}


def joined(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join statistics ``(chains, draws)`` of consecutive blocks of draws, and add up their ``gradient_calls``."""
    found = {name: np.concatenate([b[name] for b in blocks], axis=1) for name in blocks[0] if name != "gradient_calls"}
    return found | {"gradient_calls": np.sum([b["gradient_calls"] for b in blocks])}


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file, which is not kept open.

    Raises:
        ValueError: it is not the checkpoint of a walk, or it is damaged.
    """
    try:
        with safe_open(path, framework="np") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise KeyError("it has another format")
            return header, {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not the checkpoint of a walk, or it is damaged ({error}): {REMEDY}") from error


def _stored(leaf: Any) -> np.ndarray:
    """Return a leaf of a state as numpy; keys of random numbers as their data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(leaf: Any, value: np.ndarray) -> Any:
    """Return a stored value as what ``leaf`` is: a number, or an array of numpy or JAX on its device.

    Raises:
        TypeError: it has another shape.
    """
    there = _stored(leaf)
    if there.shape != value.shape:
        raise TypeError(f"an array of shape {value.shape}, not {there.shape}")
    if not isinstance(leaf, jax.Array):
        return value if isinstance(leaf, np.ndarray) else type(leaf)(value)
    with jax.enable_x64(True):
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
