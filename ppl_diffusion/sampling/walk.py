"""The state of a walk between two calls of its walker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .importance import Weights
from .kernel import State


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


def stacked(rungs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack statistics of rungs, each ``(chains,)`` or a number, to ``(rungs, chains)`` or ``(rungs,)``."""
    return {name: np.stack([np.asarray(row[name]) for row in rungs]) for name in rungs[0]}


def joined(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join statistics ``(chains, draws)`` of consecutive blocks of draws, and add up their ``gradient_calls``."""
    found = {name: np.concatenate([b[name] for b in blocks], axis=1) for name in blocks[0] if name != "gradient_calls"}
    return found | {"gradient_calls": np.sum([b["gradient_calls"] for b in blocks])}
