"""The checkpoint from which an interrupted walk goes on.

It holds the arrays of the walker's state, the generators of random numbers, the weights, and what was recorded, so that
a resumed walk gives the trace of an uninterrupted one.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np

from .checkpoint_file import CheckpointFile
from .kernel import Walker
from .state_arrays import to_arrays
from .walk import Listener, Walk, joined, stacked


def progress_of(walk: Walk, *, begun: float) -> dict[str, Any]:
    """Return how far a walk is, as JSON can hold it: its random numbers, warnings, and the time since ``begun``."""
    return {
        "spawned": walk.streams.n_children_spawned,
        "rng": walk.rng.bit_generator.state,
        "notes": list(walk.notes),
        "facts": dict(walk.facts),
        "seconds": walk.seconds + time.monotonic() - begun,
    }


def bring_to(walk: Walk, progress: dict[str, Any]) -> None:
    """Bring a new walk to what :func:`progress_of` has returned."""
    walk.rng.bit_generator.state = progress["rng"]
    walk.streams = np.random.SeedSequence(walk.seed, n_children_spawned=progress["spawned"])
    walk.notes, walk.facts, walk.seconds = progress["notes"], progress["facts"], progress["seconds"]


class Checkpoint(CheckpointFile, Listener):
    """The file of a walk, saved to after the first rung, then every minute, at an interruption and at the end."""

    kind: ClassVar[str] = "walk"
    format: ClassVar[str] = "ppl-diffusion walk 1"

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
        self._check_structure(walk.state)
        blocks = list(zip(walk.positions, walk.statistics, strict=True))
        found = {"state": walk.state, "weights": walk.weights.log, "rungs": list(walk.rungs), "blocks": blocks}
        found["snapshots"] = list(walk.snapshots)
        self._keep((progress_of(walk, begun=self.begun), found))

    def restore(self, walk: Walk, walker: Walker, level: int) -> None:
        """Bring a new walk to the state that is stored, if a file is there.

        The potential is evaluated at the start, at ``level``, the last one of the ladder, and at the stored positions:
        its values are those by which it is known.

        Raises:
            ValueError: the file is of another run or another potential, or it is no checkpoint of a walk, or damaged.
            TypeError: the kernel's state holds what cannot be stored.
        """
        stored = None if self.path is None else self._find(walker, walk.target, level)
        if stored is None:
            return
        progress, arrays = stored
        walk.state = self._state(arrays, walker, walk.target)
        walk.weights.log = arrays["weights"]
        rungs = {name: arrays[f"rungs.{name}"] for name in progress["rungs"]}
        walk.rungs = [dict(zip(rungs, values, strict=True)) for values in zip(*rungs.values(), strict=True)]
        if "draws.positions" in arrays:
            walk.positions = [arrays["draws.positions"]]
            walk.statistics = [{name: arrays[f"draws.{name}"] for name in progress["draws"]}]
        walk.snapshots = list(arrays.get("snapshots", ()))
        bring_to(walk, progress)
        self.of_this_run = True

    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        progress, found = self.marked
        arrays = {"weights": found["weights"], **to_arrays(found["state"])}
        rungs, drawn = stacked(found["rungs"]), {}
        arrays |= {f"rungs.{name}": values for name, values in rungs.items()}
        if found["blocks"]:
            blocks, statistics = zip(*found["blocks"], strict=True)
            drawn = joined(statistics)
            arrays["draws.positions"] = np.concatenate(blocks, axis=1)
            arrays |= {f"draws.{name}": values for name, values in drawn.items()}
        if found["snapshots"]:
            arrays["snapshots"] = np.stack(found["snapshots"])
        return arrays, {**progress, "rungs": list(rungs), "draws": list(drawn)}
