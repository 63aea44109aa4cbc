"""The protocol: one contender on one target at one level, from one start, with a budget of gradients.

Every contender has the same budget of gradients per chain, counted at the potential, and spends a part of it on
adaptation, as much as it takes; draws of the adaptation are not used. A gradient is a distinct point at which a chain
asks for its density (:mod:`bridges.bench.counting`).

The budget is spent in blocks of draws, after each of which the count is read; within a block it grows evenly from draw
to draw, which is exact for kernels of a fixed length. Draws beyond the budget are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .counting import Counted
from .runners import Runner
from .samplers import Drawn

SHARE = 0.25
"""Share of the budget that a contender is given for adaptation, where it can be given one."""

FEWEST = 8
"""Fewest draws from which something can be said."""


class BudgetError(ValueError):
    """The budget does not last for a few draws."""


@dataclass(frozen=True)
class Walk:
    """What a group of chains drew.

    Attributes:
        positions: shape ``(chains, draws, size)``, float32.
        log_density: shape ``(chains, draws)``; up to a constant of the level.
        gradients: gradients per chain that had been counted at each draw, adaptation included, shape ``(draws,)``.
        adaptation: gradients per chain that had been counted before the first draw was begun.
        acceptance_rate, diverging: as the kernel reports them, shape ``(chains, draws)``; NaN if it does not.
        reported: gradients per chain that the kernel says it took for its draws; NaN if it does not.
        evaluated: points evaluated for its draws, per chain, repetitions included.
        seconds: time of the draws, without that of compiling.
    """

    positions: np.ndarray
    log_density: np.ndarray
    gradients: np.ndarray
    adaptation: float
    acceptance_rate: np.ndarray
    diverging: np.ndarray
    reported: float
    evaluated: float
    seconds: float


@dataclass(frozen=True)
class Block:
    """Draws of all groups: the gradients that each group took for them, shape ``(groups,)``, the points evaluated per
    chain, and the seconds."""

    drawn: Drawn
    gradients: np.ndarray
    evaluated: float
    seconds: float


def walk(
    runner: Runner,
    place: Counted,
    starts: np.ndarray,
    *,
    level: int,
    gradients: int,
    seed: int,
    name: str = "this kernel",
    share: float = SHARE,
) -> list[Walk]:
    """Walk groups of chains on the target that has the place, until their budget is spent.

    Args:
        runner: the contender, bound to the place.
        place: where evaluations are counted.
        starts: shape ``(groups, chains, *event_shape)``.
        level: noise level.
        gradients: budget per chain.
        seed: of all random numbers.
        name: of the contender, for errors.
        share: of the budget for adaptation.

    Returns:
        A walk for each group.

    Raises:
        BudgetError: the budget does not last for a few draws.
        ValueError: the kernel never asks for the density.
    """
    groups, chains = starts.shape[:2]
    seeds = iter(np.random.default_rng(seed).integers(2**31, size=100_000).tolist())
    place.read(groups, chains)
    state = runner.begin(starts, level, seed=next(seeds))
    adaptation = place.read(groups, chains)[0]
    if runner.adapts:
        state, further = _adapt(runner, place, state, share * gradients - adaptation.mean(), (groups, chains), seeds)
        adaptation = adaptation + further
    state, blocks, spent = runner.freeze(state), [], adaptation
    while spent.min() < gradients:
        at = time.perf_counter()
        state, drawn = runner.record(state, seed=next(seeds))
        seconds = time.perf_counter() - at
        blocks.append(Block(drawn, *place.read(groups, chains), seconds))
        spent = spent + blocks[-1].gradients
        if not blocks[-1].evaluated:
            raise ValueError(f"{name} drew without asking for the density: its step is to call log_density")
    found = [_joined(blocks, g, float(adaptation[g]), gradients) for g in range(groups)] if blocks else []
    fewest = min((one.positions.shape[1] for one in found), default=0)
    if fewest < FEWEST:
        cost = max((float(block.gradients.max()) / runner.block for block in blocks), default=0.0)
        enough = int(1.5 * (adaptation.max() + FEWEST * cost) + 1)
        raise BudgetError(
            f"a budget of {gradients} gradients lasts for {fewest} draws of {name}, whose adaptation took "
            f"{adaptation.max():.0f} and whose step takes {cost:.3g}: give --gradients {max(enough, 2 * gradients)}"
        )
    return found


def block_size(gradients: int) -> int:
    """Number of draws between two readings of the count."""
    return int(np.clip(gradients // 250, 1, 8))


def _adapt(
    runner: Runner, place: Counted, state: Any, allowance: float, shape: tuple[int, int], seeds: Iterator[int]
) -> tuple[Any, np.ndarray]:
    """Adapt in stages, each half as long as what is left allows by the cost of the last one; return the state and the
    gradients per chain of each group."""
    spent, steps = np.zeros(shape[0]), 2
    while True:
        state = runner.adapt(state, steps, seed=next(seeds))
        taken = place.read(*shape)[0]
        spent = spent + taken
        left = (allowance - spent.mean()) / max(taken.mean() / steps, 1e-9)
        if left < 1:
            return state, spent
        steps = max(1, int(left / 2)) if left > 2 * runner.block else int(left)


def _joined(blocks: list[Block], group: int, adaptation: float, budget: int) -> Walk:
    """Return the walk of a group, of its draws within the budget."""
    size = blocks[0].drawn.log_density.shape[-1]
    taken = np.array([block.gradients[group] for block in blocks])
    counts = adaptation + (np.cumsum(taken) - taken)[:, None] + taken[:, None] * np.arange(1, size + 1) / size
    counts = counts.ravel()
    kept = int(np.searchsorted(counts, budget, side="right"))
    parts = zip(*(block.drawn for block in blocks), strict=True)
    drawn = Drawn(*(np.concatenate([part[group] for part in each], axis=1)[:, :kept] for each in parts))
    # The first block compiles: its time is left out.
    seconds = float(np.median([block.seconds for block in blocks[1:] or blocks]) / len(blocks[0].gradients))
    evaluated = float(np.mean([block.evaluated for block in blocks]))
    return Walk(
        drawn.position,
        drawn.log_density,
        counts[:kept],
        adaptation,
        drawn.acceptance_rate,
        drawn.diverging,
        float(drawn.leapfrogs.sum(1).mean()),
        evaluated * kept / size,
        seconds * kept / size,
    )
