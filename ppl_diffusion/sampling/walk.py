"""A walk: chains on their way down a ladder, and the events by which others follow it.

    start     draw or take starting positions                                     started
    arrive    move to a level, weigh the chains, resample them if it is due       arrived
    move      kernel steps that leave the density of the level invariant          moved
    draw      recorded steps at the last level                                    drawn

:class:`Listener` hears of these events; advice, checkpoints and progress reports are listeners. A walk decides nothing
itself: :func:`ppl_diffusion.anneal` calls it in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..potentials.target import Target
from . import arrival
from .arrival import Arrival
from .importance import Weights
from .kernel import Kernel, State
from .transitions import Reverse

BLOCK = 25
"""Maximum number of draws recorded by one call of the walker."""


Concern = Literal["result", "weights", "length", "nothing"]
"""What a warning is about: the result; only its weights; that the walk is short; or nothing that is to be doubted, as
numbers of the trace tell the same, or as it is about something beside the draws."""


class Listener:
    """Hears what happens to a walk; a subclass overrides the events that it listens to."""

    def started(self, walk: Walk) -> None:
        """The walk begins, and does not go on from a checkpoint."""

    def arrived(self, walk: Walk, arrival: Arrival) -> None:
        """All chains are at a new level and have been weighed; ``walk.rungs[-1]`` holds its statistics so far."""

    def moved(self, walk: Walk) -> None:
        """The kernel steps of a rung have been taken, and its statistics are complete."""

    def drawn(self, walk: Walk) -> None:
        """A block of draws has been recorded."""


class Walk:
    """The chains of a walk, their weights and random numbers, and what has been recorded.

    Attributes:
        target: the density that is walked on.
        walker: the kernel bound to it.
        seed: seed of all random numbers.
        weights: log-weights of the chains.
        state: state of the walker; None before the first rung.
        rungs: statistics of each rung so far.
        positions: recorded draws so far, blocks of shape ``(chains, draws, *event_shape)``.
        statistics: statistics of each block.
        snapshots: positions of a few chains at some rungs, each ``(chains, *event_shape)``.
        notes: warnings to be given at the end.
        facts: what listeners found out, as the trace's attributes record it.
        seconds: time that the walk had taken when it was last interrupted.
        listeners: who hears of its events, in this order.
        start_log_density: log-density of the starting positions ``(chains,)``; None where the caller gave them.

    Args:
        target: the density.
        kernel: an MCMC kernel.
        level: the first level.
        chains: number of chains.
        init: starting positions ``(chains, *event_shape)``, whose log-weights are zero; drawn by default.
        seed: seed of all random numbers.
    """

    def __init__(self, target: Target, kernel: Kernel, level: int, *, chains: int, init: Any, seed: int) -> None:
        self.target, self.seed, self.weights = target, seed, Weights(chains)
        self.streams = np.random.SeedSequence(seed)
        self.rng = np.random.default_rng(self.streams.spawn(1)[0])
        self.state: State | None = None
        self.rungs: list[dict[str, Any]] = []
        self.positions: list[np.ndarray] = []
        self.statistics: list[Mapping[str, np.ndarray]] = []
        self.snapshots: list[np.ndarray] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        self.seconds = 0.0
        self.listeners: Sequence[Listener] = ()
        self.start, start_log_density = arrival.start(target, level, chains=chains, init=init, rng=self.rng)
        self.start_log_density = None if init is not None else start_log_density
        self.walker = kernel.bind(target)

    def note(self, sentences: Iterable[str], *, about: Concern = "result") -> None:
        """Keep warnings to be given at the end, and as a fact what they are about."""
        told = list(sentences)
        self.notes += told
        if told and about != "result":
            self.facts.setdefault("concerns", {}).setdefault(about, []).extend(told)

    @property
    def draws(self) -> int:
        """Number of draws recorded so far."""
        return sum(block.shape[1] for block in self.positions)

    def next_seed(self) -> int:
        """Return the seed of the next call of the walker."""
        return int(self.streams.spawn(1)[0].generate_state(1, np.uint32)[0])

    def begin(self) -> None:
        """Tell that the walk begins."""
        for listener in self.listeners:
            listener.started(self)

    def arrive(self, level: int, *, reverse: Reverse, resample: float | None, last: bool) -> None:
        """Take all chains to ``level``, weigh them, and resample them if it is due (:meth:`Weights.resample`).

        Args:
            level: the new level.
            reverse: whether chains take a reverse-diffusion step on the way; "wide" for a wide one.
            resample: effective sample size, as a share, below which chains are resampled; None for never.
            last: whether this is the last rung.
        """
        positions = self.start if self.state is None else self.state.positions
        found = arrival.arrive(
            self.walker, self.target, positions, level, self.state, reverse, self.rng, self.next_seed()
        )
        record = self._weigh(found) | {"throw": found.throw}
        if reverse == "wide":
            record["widening"] = found.widened
        self.rungs.append(record)
        for listener in self.listeners:
            listener.arrived(self, found)
        self.state, chains = found.state, len(found.energy)
        ancestors = self.weights.resample(resample, last=last, rng=self.rng)
        if ancestors is not None:
            self.state = self.walker.select(self.state, ancestors)
        record["ancestor"] = np.arange(chains) if ancestors is None else ancestors
        record["resampled"] = ancestors is not None
        record["energy_arrival"] = np.asarray(self.state.energy)
        record["nonfinite"] = ~np.isfinite(found.energy)

    def _weigh(self, found: Arrival) -> dict[str, Any]:
        """Add the increments of an arrival to the log-weights, and return what is recorded of them."""
        if not self.target.has_energy:
            return {"log_normaliser": np.nan, "log_weight": np.full(len(found.energy), np.nan), "ess": np.nan}
        if self.state is not None:
            return self.weights.move(found.increments)
        if self.start_log_density is None:
            return self.weights.move(np.where(np.isfinite(found.energy), 0.0, -np.inf))
        return self.weights.move(-found.energy - self.start_log_density)

    def move(self, steps: int) -> None:
        """Take ``steps`` kernel steps at the present level, which adapt the step size."""
        assert self.state is not None
        record = self.rungs[-1]
        failed = record.pop("nonfinite")
        self.state, moved = self.walker.move(self.state, steps, seed=self.next_seed())
        record |= moved
        record["nonfinite"] = np.where(failed, np.nan_to_num(moved["nonfinite"]) + 1, moved["nonfinite"])
        record["gradient_calls"] = 1 + moved["gradient_calls"]
        record["energy"] = np.asarray(self.state.energy)
        for listener in self.listeners:
            listener.moved(self)

    def draw(self, draws: int) -> None:
        """Record kernel steps until there are ``draws``, in blocks of one size if possible: each size compiles."""
        assert self.state is not None
        block = max(n for n in range(1, min(draws, BLOCK) + 1) if draws % n == 0)
        if block < BLOCK / 2 < draws:
            block = BLOCK
        if not self.positions:
            self.state = self.walker.freeze(self.state)
        while self.draws < draws:
            count = min(block, draws - self.draws)
            self.state, x, statistics = self.walker.record(self.state, count, seed=self.next_seed())
            if "lp" not in statistics:
                name = type(self.walker).__name__
                raise TypeError(f"record() of {name} returns no lp, the log-density of each draw: add it")
            self.positions.append(x)
            self.statistics.append(statistics)
            for listener in self.listeners:
                listener.drawn(self)

    def drawn(self) -> tuple[np.ndarray, xr.Dataset]:
        """Return all recorded draws, ``(chains, draws, *event_shape)``, and their statistics."""
        statistics = joined(self.statistics)
        calls = statistics.pop("gradient_calls").item()
        variables = {name: (("chain", "draw"), values) for name, values in statistics.items()}
        return np.concatenate(self.positions, axis=1), xr.Dataset(variables, attrs={"gradient_calls": calls})

    def visited(self) -> xr.Dataset:
        """Return the statistics of all rungs, dimensions ``rung`` and ``chain``."""
        columns = stacked(self.rungs)
        return xr.Dataset({name: (("rung", "chain")[: values.ndim], values) for name, values in columns.items()})


def stacked(rungs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack statistics of rungs, each ``(chains,)`` or a number, to ``(rungs, chains)`` or ``(rungs,)``."""
    return {name: np.stack([np.asarray(row[name]) for row in rungs]) for name in rungs[0]}


def joined(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join statistics ``(chains, draws)`` of consecutive blocks of draws, and add up their ``gradient_calls``."""
    names = [name for name in blocks[0] if name != "gradient_calls"]
    statistics = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in names}
    return statistics | {"gradient_calls": np.sum([block["gradient_calls"] for block in blocks])}
