"""The checkpoint from which an interrupted replica exchange goes on.

It is noted behind every rung of the first walk down and behind every round. What is recorded only grows, so that a note
of it is how long it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .checkpoint import bring_to, progress_of
from .checkpoint_file import CheckpointFile
from .exchange_record import Swap
from .replicas import Replicas
from .state_arrays import to_arrays

WORKS = ("down", "up", "taken")
"""What is stored of the swaps of a pair."""


class ExchangeCheckpoint(CheckpointFile):
    """The file of a replica exchange."""

    kind: ClassVar[str] = "exchange"
    format: ClassVar[str] = "ppl-diffusion exchange 1"

    def mark(self, run: Replicas) -> None:
        """Note the states of all replicas between two rounds, or two rungs, to be saved now or later.

        Raises:
            TypeError: a state has another structure than on arrival, so that it could not be restored.
        """
        if self.path is None:
            return
        for state in run.states:
            self._check_structure(state)
        record, travels = run.record, run.travels
        progress = progress_of(run.walk, begun=self.begun) | {
            "rounds": run.rounds,
            "told": [list(shares) for shares in run.told],
            "frozen": run.frozen,
            "rungs": len(run.states),
            "moved": [len(found) for found in record.moved],
            "swapped": [len(swap.taken) for swap in record.swaps],
            "recorded": len(record.positions),
        }
        kept = {"calls": record.calls, "names": travels.names, "heading": travels.heading, "trips": travels.trips}
        down = None if len(run.states) == len(run.ladder) else run.walk.state
        self._keep((progress, list(run.states), down, {name: array.copy() for name, array in kept.items()}, record))

    def restore(self, run: Replicas) -> None:
        """Bring new replicas to the state that is stored, if a file is there.

        The potential is evaluated at the start, at the last level, and at the stored positions of every level: its
        values are those by which it is known.

        Raises:
            ValueError: the file is of another run or another potential, or no checkpoint of an exchange, or damaged.
            TypeError: the kernel's state holds what cannot be stored.
        """
        walker, target, record = run.walker, run.potential, run.record
        stored = None if self.path is None else self._find(walker, target, run.ladder.levels[-1])
        if stored is None:
            return
        progress, arrays = stored
        run.states = [self._state(arrays, walker, target, name=f"rung.{i}") for i in range(progress["rungs"])]
        if progress["rungs"] < len(run.ladder):
            run.walk.state = self._state(arrays, walker, target, name="down")
        record.moved = [_rows(arrays, f"moved.{rung}", count) for rung, count in enumerate(progress["moved"])]
        for pair, count in enumerate(progress["swapped"]):
            record.swaps[pair] = Swap(*(list(arrays[f"swaps.{pair}.{name}"]) if count else [] for name in WORKS))
        if progress["recorded"]:
            record.positions, record.energies = list(arrays["draws.positions"]), list(arrays["draws.energies"])
        record.calls, run.travels.names = arrays["calls"], arrays["names"]
        run.travels.heading, run.travels.trips = arrays["heading"], arrays["trips"]
        run.rounds, run.frozen, run.told = progress["rounds"], progress["frozen"], progress["told"]
        bring_to(run.walk, progress)
        self.of_this_run = True

    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        progress, states, down, arrays, record = self.marked
        for rung, state in enumerate(states):
            arrays = arrays | to_arrays(state, name=f"rung.{rung}")
        if down is not None:
            arrays |= to_arrays(down, name="down")
        for rung, count in enumerate(progress["moved"]):
            arrays |= _columns(record.moved[rung][:count], f"moved.{rung}")
        for pair, count in enumerate(progress["swapped"]):
            found = {f"swaps.{pair}.{name}": vars(record.swaps[pair])[name][:count] for name in WORKS}
            arrays |= {name: np.stack(works) for name, works in found.items() if count}
        if progress["recorded"]:
            arrays["draws.positions"] = np.stack(record.positions[: progress["recorded"]])
            arrays["draws.energies"] = np.stack(record.energies[: progress["recorded"]])
        return arrays, progress


def _columns(rows: Sequence[Mapping[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
    """Return rows of arrays of the same names as one array for each, by names that begin with ``name``."""
    return {f"{name}.{key}": np.stack([np.asarray(row[key]) for row in rows]) for key in (rows[0] if rows else ())}


def _rows(arrays: Mapping[str, np.ndarray], name: str, count: int) -> list[Mapping[str, np.ndarray]]:
    """Return the ``count`` rows that :func:`_columns` has stored."""
    columns = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
    return [{key: column[i] for key, column in columns.items()} for i in range(count)]
