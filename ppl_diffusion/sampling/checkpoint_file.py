"""The file from which an interrupted run goes on, and how it is told from the file of another run.

One safetensors file, without pickles: arrays, and a header with what the run depends on and how far it is.
"""

from __future__ import annotations

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from ..arrays import digest
from ..files import replacing
from ..potentials.target import Target
from .kernel import State, Walker
from .state_arrays import from_arrays, known_by, structure_of, unstorable

EVERY = 60.0
"""Longest time between two saves, in seconds, unless a single rung takes longer."""


TOLERANCE = 1e-6
"""Relative change of an energy from which on it is another potential's. Another number of threads changes 1e-8."""


REMEDY = "give another checkpoint, or remove it to start anew"


class CheckpointFile(ABC):
    """The file of a run: saved to after the first rung, then every minute, at an interruption and at the end.

    As a context, it saves on leaving, also by an exception. Without a path it does nothing. A subclass says what is
    stored of its kind of run.

    Attributes:
        kind: what the run is, as messages say it.
        format: what the header says of the file.
        lost: what to say if the last save failed, or None.

    Args:
        path: the file, or None.
        run: what the run depends on beside the values of its potential, by name; stored as JSON, of the ``schedule``
            a digest.
        start: starting positions, shape ``(chains, *event_shape)``.
        asked: the path that the caller gave, if ``path`` is a file in it.

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError, PermissionError: the folder of ``path`` does not exist, or cannot be written.
    """

    kind: ClassVar[str]
    format: ClassVar[str]

    def __init__(
        self, path: str | Path | None, run: Mapping[str, Any], start: np.ndarray, *, asked: Path | None = None
    ) -> None:
        if not isinstance(path, (str, os.PathLike, NoneType)):
            raise TypeError(f"checkpoint is a file, got {path!r}: try checkpoint='walk.safetensors'")
        self.path = None if path is None else Path(path).resolve()
        self.asked = asked or self.path
        self.saved, self.begun = -float("inf"), time.monotonic()
        self.marked: Any = None
        self.lost: str | None = None
        self.of_this_run = False
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._save()
        if error is not None and self.of_this_run:
            told = f"The same call with checkpoint='{self.asked}' goes on from where the {self.kind} was."
            error.add_note(self.lost or told)

    def complaints(self) -> list[str]:
        """Return a warning if the last save failed."""
        return [] if self.lost is None else [self.lost]

    @abstractmethod
    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return what was marked as arrays, and as what JSON can hold."""

    def _keep(self, marked: Any) -> None:
        """Note the state of the run between two calls of its walker, to be saved now or later."""
        self.of_this_run, self.marked = True, marked
        if time.monotonic() - self.saved >= EVERY:
            self._save()

    def _check_structure(self, state: State) -> None:
        if structure_of(state) != self.structure:
            raise TypeError(
                "this kernel's state has another structure after move() than after arrive(), and could not be "
                "restored: let arrive() return all of its fields, or leave checkpoint= out"
            )

    def _find(self, walker: Walker, target: Target, level: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return what is stored of this run, as JSON and as arrays; None if there is no file.

        The potential is evaluated at the start, at ``level``: its values are those by which it is known.

        Raises:
            ValueError: the file is of another run or another potential, or it is no such checkpoint, or damaged.
            TypeError: the kernel's state holds what cannot be stored.
        """
        made = walker.arrive(self.start, level, None, seed=0)
        self.structure, self.probe = structure_of(made), known_by(made.energy, made.gradient, target.has_energy)
        strange = unstorable(made)
        if strange is not None:
            raise TypeError(f"this kernel's state holds {strange}, which cannot be stored: leave checkpoint= out")
        assert self.path is not None
        if not self.path.exists():
            return None
        header, arrays = self._read(self.path)
        run = json.loads(header["run"])
        for name in {**self.run, **run}:
            there, here = run.get(name), self.run.get(name)
            if there != here:
                raise ValueError(f"{self.path} is of another run ({name} is {there!r} there, {here!r} here): {REMEDY}")
        self._compare(self.probe, arrays["probe"])
        return json.loads(header["progress"]), arrays

    def _state(self, arrays: Mapping[str, np.ndarray], walker: Walker, target: Target, *, name: str = "state") -> State:
        """Return a stored state, in the structure of one that ``walker`` makes at the same positions."""
        made = walker.arrive(arrays[f"{name}.positions.0"], int(arrays[f"{name}.level.0"]), None, seed=0)
        there = known_by(arrays[f"{name}.energy.0"], arrays[f"{name}.gradient.0"], target.has_energy)
        self._compare(known_by(made.energy, made.gradient, target.has_energy), there)
        try:
            return from_arrays(arrays, made, name=name)
        except ValueError as error:
            raise ValueError(f"{self.path} is of another kernel or version ({error}): {REMEDY}") from error

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
            content = self._bytes()
            with replacing(self.path) as partial:
                partial.write_bytes(content)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.lost = f"the checkpoint {self.path} could not be written ({reason}): make room, or give another one"
            return
        self.known, self.marked, self.lost = self._signature(), None, None

    def _bytes(self) -> bytes:
        arrays, progress = self._content()
        arrays = {key: np.require(value, requirements="C") for key, value in (arrays | {"probe": self.probe}).items()}
        header = {"format": self.format, "run": json.dumps(self.run), "progress": json.dumps(progress)}
        return to_bytes(arrays, header | {"digest": _digest(header, arrays)})

    def _read(self, path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Return the header and the arrays of a file, which is not kept open.

        Raises:
            ValueError: it is not the checkpoint of such a run, or it is damaged.
        """
        wrong = f"{path} is not the checkpoint of {'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"
        try:
            with safe_open(path, framework="np") as stored:
                header = stored.metadata() or {}
                arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{wrong}, or it is damaged: give another checkpoint") from error
        if header.get("format") != self.format:
            raise ValueError(f"{wrong}: give another checkpoint")
        if header.get("digest") != _digest(header, arrays):
            raise ValueError(f"{wrong} any more, it is damaged: {REMEDY}")
        return header, arrays


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    texts = [np.frombuffer(header.get(key, "").encode(), dtype=np.uint8) for key in ("run", "progress")]
    return digest(texts + [arrays[key] for key in sorted(arrays)])
