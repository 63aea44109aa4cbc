"""The checkpoint from which an interrupted walk goes on.

One safetensors file, without pickles. It holds the arrays of the walker's state, the generators of random numbers, the
weights, and what was recorded, so that a resumed walk gives the trace of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from ..arrays import digest
from ..files import replacing
from .kernel import State, Walker
from .walk import Listener, Walk, joined, stacked

FORMAT = "ppl-diffusion walk 1"


EVERY = 60.0
"""Longest time between two saves, in seconds, unless a single rung takes longer."""


TOLERANCE = 1e-6
"""Relative change of an energy from which on it is another potential's. Another number of threads changes 1e-8."""


REMEDY = "give another checkpoint, or remove it to start anew"


class Checkpoint(Listener):
    """The file of a walk: saved to after the first rung, then every minute, at an interruption and at the end.

    As a context, it saves on leaving, also by an exception. Without a path it does nothing.

    Attributes:
        lost: what to say if the last save failed, or None.

    Args:
        path: the file, or None.
        run: what the walk depends on beside the values of its potential, by name; stored as JSON, of the ``schedule``
            a digest.
        start: starting positions, shape ``(chains, *event_shape)``.
        asked: the path that the caller gave, if ``path`` is a file in it.

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError, PermissionError: the folder of ``path`` does not exist, or cannot be written.
    """

    def __init__(
        self, path: str | Path | None, run: Mapping[str, Any], start: np.ndarray, *, asked: Path | None = None
    ) -> None:
        if not isinstance(path, (str, os.PathLike, NoneType)):
            raise TypeError(f"checkpoint is a file, got {path!r}: try checkpoint='walk.safetensors'")
        self.path = None if path is None else Path(path).resolve()
        self.asked = asked or self.path
        self.saved, self.begun = -float("inf"), time.monotonic()
        self.marked: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.lost: str | None = None
        self.of_this_walk = False
        if self.path is None:
            return
        self.start = start
        folder = self.path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} of the checkpoint does not exist: mkdir -p {folder}")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"the folder {folder} cannot be written: give another checkpoint")
        levels = [np.array(values) for values in (run["schedule"].alphas, run["schedule"].sigmas)]
        digests = {"schedule": digest(levels)[:16], "start": digest([np.asarray(start, dtype=np.float64)])[:16]}
        text = json.dumps({**run, **digests})
        self.run = json.loads(re.sub(" at 0x[0-9a-f]+", "", text))  # addresses differ from process to process
        self.known = self._signature()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._save()
        if error is not None and self.of_this_walk:
            told = f"The same call with checkpoint='{self.asked}' goes on from where the walk was."
            error.add_note(self.lost or told)

    def complaints(self) -> list[str]:
        """Return a warning if the last save failed."""
        return [] if self.lost is None else [self.lost]

    def moved(self, walk: Walk) -> None:
        self.mark(walk)

    def drawn(self, walk: Walk) -> None:
        self.mark(walk)

    def mark(self, walk: Walk) -> None:
        """Note the state of a walk between two calls of its walker, to be saved now or later.

        Raises:
            TypeError: the state has another structure than on arrival, so that it could not be restored.
        """
        if self.path is None or walk.state is None:
            return
        if str(jax.tree.structure(walk.state)) != self.structure:
            raise TypeError(
                "this kernel's state has another structure after move() than after arrive(), and could not be "
                "restored: let arrive() return all of its fields, or leave checkpoint= out"
            )
        self.of_this_walk = True
        progress = {
            "spawned": walk.streams.n_children_spawned,
            "rng": walk.rng.bit_generator.state,
            "notes": list(walk.notes),
            "facts": dict(walk.facts),
            "seconds": walk.seconds + time.monotonic() - self.begun,
        }
        blocks = list(zip(walk.positions, walk.statistics, strict=True))
        found = {"state": walk.state, "weights": walk.weights.log, "rungs": list(walk.rungs), "blocks": blocks}
        found["snapshots"] = list(walk.snapshots)
        self.marked = progress, found
        if time.monotonic() - self.saved >= EVERY:
            self._save()

    def restore(self, walk: Walk, walker: Walker, level: int) -> None:
        """Bring a new walk to the state that is stored, if a file is there.

        The potential is evaluated at the start, at ``level``, the last one of the ladder, and at the stored positions:
        its values are those by which it is known.

        Raises:
            ValueError: the file is of another run or another potential, or it is no checkpoint of a walk, or damaged.
            TypeError: the kernel's state holds what cannot be stored.
        """
        if self.path is None:
            return
        made = walker.arrive(self.start, level, None, seed=0)
        self.structure, self.probe = (
            str(jax.tree.structure(made)),
            _known_by(made.energy, made.gradient, walk.target.has_energy),
        )
        kinds = {str(_stored(leaf).dtype): _stored(leaf).dtype.kind for leaf in jax.tree.leaves(made)}
        strange = [dtype for dtype, kind in kinds.items() if kind not in "biuf"]
        if strange:
            raise TypeError(f"this kernel's state holds {strange[0]}, which cannot be stored: leave checkpoint= out")
        if not self.path.exists():
            return
        header, arrays = _read(self.path)
        run, progress = json.loads(header["run"]), json.loads(header["progress"])
        for name in {**self.run, **run}:
            there, here = run.get(name), self.run.get(name)
            if there != here:
                raise ValueError(f"{self.path} is of another run ({name} is {there!r} there, {here!r} here): {REMEDY}")
        self._compare(self.probe, arrays["probe"])
        walk.state = self._state(arrays, walker, has_energy=walk.target.has_energy)
        walk.weights.log = arrays["weights"]
        rungs = {name: arrays[f"rungs.{name}"] for name in progress["rungs"]}
        walk.rungs = [dict(zip(rungs, values, strict=True)) for values in zip(*rungs.values(), strict=True)]
        if "draws.positions" in arrays:
            walk.positions = [arrays["draws.positions"]]
            walk.statistics = [{name: arrays[f"draws.{name}"] for name in progress["draws"]}]
        walk.snapshots = list(arrays.get("snapshots", ()))
        walk.rng.bit_generator.state = progress["rng"]
        walk.streams = np.random.SeedSequence(walk.seed, n_children_spawned=progress["spawned"])
        walk.notes, walk.facts, walk.seconds = progress["notes"], progress["facts"], progress["seconds"]
        self.of_this_walk = True

    def _state(self, arrays: Mapping[str, np.ndarray], walker: Walker, *, has_energy: bool) -> State:
        """Return the stored state, in the structure of one that ``walker`` makes at the same positions."""
        made = walker.arrive(arrays["state.positions.0"], int(arrays["state.level.0"]), None, seed=0)
        there = _known_by(arrays["state.energy.0"], arrays["state.gradient.0"], has_energy)
        self._compare(_known_by(made.energy, made.gradient, has_energy), there)
        fields = {}
        for name, value in made._asdict().items():
            leaves, structure = jax.tree.flatten(value)
            try:
                stored = [_like(leaf, arrays[f"state.{name}.{i}"]) for i, leaf in enumerate(leaves)]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is of another kernel or version ({name}: {error}): {REMEDY}") from error
            fields[name] = jax.tree.unflatten(structure, stored)
        return State(**fields)

    def _compare(self, here: np.ndarray, there: np.ndarray) -> None:
        """Raise ``ValueError`` unless energies ``(chains,)`` at the same points are equal but for rounding."""
        finite = np.isfinite(there)
        off = np.abs(here[finite] - there[finite]) > TOLERANCE * (1 + np.abs(there[finite]))
        if not np.array_equal(finite, np.isfinite(here)) or off.any():
            raise ValueError(
                f"{self.path} is of another potential, other data or another device, as energies at the same points "
                f"differ: {REMEDY}"
            )

    def _signature(self) -> tuple[int, int, int] | None:
        """What tells the file from one that somebody else has written."""
        if self.path is None or not self.path.exists():
            return None
        stat = self.path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _save(self) -> None:
        """Write what was marked, unless it is written; note in ``lost`` what to say if it cannot be."""
        if self.path is None or self.marked is None:
            return
        self.saved = time.monotonic()
        if self._signature() not in (None, self.known):
            self.lost = f"{self.path} was written by somebody else and is left alone: give another checkpoint"
            return
        try:
            content = to_bytes(*self._content())
            with replacing(self.path) as partial:
                partial.write_bytes(content)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.lost = f"the checkpoint {self.path} could not be written ({reason}): make room, or give another one"
            return
        self.known, self.marked, self.lost = self._signature(), None, None

    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return what was marked as the arrays and the header of a file."""
        assert self.marked is not None
        progress, found = self.marked
        arrays = {"weights": found["weights"], "probe": self.probe}
        for name, value in found["state"]._asdict().items():
            arrays |= {f"state.{name}.{i}": _stored(leaf) for i, leaf in enumerate(jax.tree.leaves(value))}
        rungs, drawn = stacked(found["rungs"]), {}
        arrays |= {f"rungs.{name}": values for name, values in rungs.items()}
        if found["blocks"]:
            blocks, statistics = zip(*found["blocks"], strict=True)
            drawn = joined(statistics)
            arrays["draws.positions"] = np.concatenate(blocks, axis=1)
            arrays |= {f"draws.{name}": values for name, values in drawn.items()}
        if found["snapshots"]:
            arrays["snapshots"] = np.stack(found["snapshots"])
        arrays = {key: np.require(values, requirements="C") for key, values in arrays.items()}
        progress = {**progress, "rungs": list(rungs), "draws": list(drawn)}
        header = {"format": FORMAT, "run": json.dumps(self.run), "progress": json.dumps(progress)}
        return arrays, header | {"digest": _digest(header, arrays)}


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file, which is not kept open.

    Raises:
        ValueError: it is not the checkpoint of a walk, or it is damaged.
    """
    try:
        with safe_open(path, framework="np") as stored:
            header = stored.metadata() or {}
            arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not the checkpoint of a walk, or it is damaged: give another checkpoint"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not the checkpoint of a walk: give another checkpoint")
    if header.get("digest") != _digest(header, arrays):
        raise ValueError(f"{path} is not the checkpoint of a walk any more, it is damaged: {REMEDY}")
    return header, arrays


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    texts = [np.frombuffer(header.get(key, "").encode(), dtype=np.uint8) for key in ("run", "progress")]
    return digest(texts + [arrays[key] for key in sorted(arrays)])


def _known_by(energy: Any, gradient: Any, has_energy: bool) -> np.ndarray:
    """Return the values ``(chains,)`` by which a target is known at given points: energies, or norms of gradients."""
    if has_energy:
        return np.asarray(energy)
    return np.linalg.norm(np.asarray(gradient, dtype=np.float64).reshape(len(gradient), -1), axis=1)


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
        return jax.device_put(value, leaf.sharding)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
