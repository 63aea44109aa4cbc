"""The way of one population down its ladder, as a function that can be called in another process.

A run is one population, or several that are islands (:mod:`ppl_diffusion.sampling.islands`). What all of them share is
a :class:`Descent`; what is an island's own is an :class:`~ppl_diffusion.sampling.islands.Island`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import jax
import numpy as np
import torch

from ..files import versions
from ..ladder import Ladder
from ..potentials.circulation import circulation
from ..potentials.target import Target
from .advice import Advice
from .checkpoint import Checkpoint
from .islands import Island
from .kernel import Kernel
from .progress import Progress, Reporter
from .snapshots import Snapshots, spread_over
from .still import Still
from .trace import Trace
from .transitions import Reverse
from .walk import Walk


class Surroundings(NamedTuple):
    """Settings of the libraries on which the rounding of a walk depends.

    Attributes:
        threads: number of torch's threads.
        dtype: torch's default dtype.
        torch_precision: torch's precision of products of float32 matrices.
        jax_precision: JAX's precision of products of matrices, or None.
    """

    threads: int
    dtype: torch.dtype
    torch_precision: str
    jax_precision: Any

    @classmethod
    def here(cls) -> Surroundings:
        """Return the settings of this process."""
        settings: Any = jax.config
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            settings.jax_default_matmul_precision,
        )

    def apply(self) -> None:
        """Make these the settings of this process."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.torch_precision)
        jax.config.update("jax_default_matmul_precision", self.jax_precision)


@contextmanager
def within(wanted: Surroundings) -> Iterator[None]:
    """Context with these settings, which changes nothing where they are the present ones."""
    before = Surroundings.here()
    if before == wanted:
        yield
        return
    wanted.apply()
    try:
        yield
    finally:
        before.apply()


@dataclass(frozen=True)
class Descent:
    """What all islands of a run share; called with an island, it takes its chains down the ladder.

    It can be pickled, with its potential, and gives the same trace in another process on such a device, since it
    takes the settings of the libraries along on which rounding depends. However often it arrives in a process, it is
    one object there, so that what it compiles for an island serves the next ones.

    Attributes:
        potential, kernel, ladder, draws, resample, reverse_step: as in :func:`ppl_diffusion.anneal`, checked.
        islands: number of islands.
        snapshots: number of rungs at which positions of a few chains are kept.
        surroundings: settings under which to walk, by default those of this process.
        key: name of this object in all processes.
    """

    potential: Target
    kernel: Kernel
    ladder: Ladder
    draws: int
    resample: float | None
    reverse_step: Reverse
    islands: int = 1
    snapshots: int = 0
    surroundings: Surroundings = field(default_factory=Surroundings.here)
    key: str = field(default_factory=lambda: uuid4().hex, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.key, dict(self.__dict__))

    def __call__(self, island: Island, progress: Callable[[Progress], None] | None = None) -> Trace:
        """Return the trace of an island. Warnings are among its attributes and are not issued."""
        begun = time.perf_counter()
        with within(self.surroundings):
            return self._trace(*self._walk(island, progress), begun)

    def _walk(self, island: Island, progress: Callable[[Progress], None] | None) -> tuple[Walk, Checkpoint, Advice]:
        ladder, last, init = self.ladder, len(self.ladder) - 1, island.init
        walk = Walk(
            self.potential, self.kernel, ladder.levels[0], chains=island.chains, init=init, seed=int(island.seed)
        )
        sizes = {"chains": int(island.chains), "draws": int(self.draws), "schedule": self.potential.schedule}
        run = self._settings(island.seed) | sizes | self._shown
        advice = Advice(
            ladder,
            started_at_init=init is not None,
            weighted=self.resample is not None,
            reverse_step=self.reverse_step,
            still=isinstance(self.kernel, Still),
        )
        reporter = Reporter(progress, rungs=len(ladder), draws=self.draws, island=island.number, islands=self.islands)
        with Checkpoint(island.checkpoint, run, walk.start, asked=island.asked) as kept:
            walk.listeners = (advice, Snapshots(self._shown.get("snapshot_rungs", [])), kept, reporter)
            kept.restore(walk, walk.walker, ladder.levels[-1])
            if walk.state is None:
                walk.begin()
            for rung in range(len(walk.rungs), len(ladder)):
                walk.arrive(ladder.levels[rung], reverse=self.reverse_step, resample=self.resample, last=rung == last)
                walk.move(ladder.steps_per_rung[rung])
            walk.draw(self.draws)
        return walk, kept, advice

    @property
    def _shown(self) -> dict[str, list[int]]:
        """The rungs of snapshots, as the trace's attributes record them; nothing without any, as in checkpoints of
        before there were some."""
        return {"snapshot_rungs": spread_over(len(self.ladder), int(self.snapshots))} if self.snapshots else {}

    def _settings(self, seed: int) -> dict[str, Any]:
        return {
            "potential": str(self.potential),
            "kernel": str(self.kernel),
            "adjusted": self.kernel.adjusted,
            "seed": int(seed),
            "levels": list(self.ladder.levels),
            "steps": list(self.ladder.steps_per_rung),
            "resample": None if self.resample is None else float(self.resample),
            "reverse_step": "wide" if self.reverse_step == "wide" else bool(self.reverse_step),
        }

    def _trace(self, walk: Walk, kept: Checkpoint, advice: Advice, begun: float) -> Trace:
        positions, sample_stats = walk.drawn()
        walk.note(kept.complaints(), about="nothing")
        advice.on_draws(walk, positions, sample_stats)
        found = {
            "still": advice.still,
            "init": advice.started_at_init,
            "has_energy": self.potential.has_energy,
            "circulation": _measured_circulation(walk, positions),
            "versions": versions(),
            "warnings": list(dict.fromkeys(walk.notes)),
            "seconds": round(walk.seconds + time.perf_counter() - begun, 3),
        }
        rungs = walk.visited().assign_coords(level=("rung", np.array(self.ladder.levels)))
        seen = {"x": np.stack(walk.snapshots)} if walk.snapshots else {}
        attributes = self._settings(walk.seed) | self._shown | walk.facts | found
        return Trace(positions, rungs, sample_stats, attributes, snapshots=seen)


_latest: Descent | None = None
"""The last one that has arrived in this process."""


def _arrived(key: str, state: dict[str, Any]) -> Descent:
    global _latest
    if _latest is None or _latest.key != key:
        _latest = object.__new__(Descent)
        _latest.__dict__.update(state)
    return _latest


def _measured_circulation(walk: Walk, draws: np.ndarray) -> dict[str, float] | None:
    """Return the circulation at the last of ``draws (chains, draws, *event_shape)`` as a dictionary; None for a density
    with an energy, and for a kernel without a step."""
    state = walk.state
    if walk.target.has_energy or state is None or not np.isfinite(state.step.log_step):
        return None
    step = float(np.exp(state.step.log_step))
    return circulation(walk.target, draws[:, -1], level=state.level, step=step)._asdict()
