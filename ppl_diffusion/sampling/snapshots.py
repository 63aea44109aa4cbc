"""Snapshots: where a few chains were at a few rungs, to be shown.

Kept are the first chains, after the kernel steps of the rung: 8 of them or, of small events, as many as have
``NUMBERS`` coordinates together. Where chains are resampled, the place of a chain is not its history.
"""

from __future__ import annotations

import numpy as np

from .walk import Listener, Walk

CHAINS, NUMBERS, MOST_CHAINS = 8, 2048, 256
"""Chains that are kept in any case; coordinates up to which more are; and how many at most."""


def spread_over(rungs: int, count: int) -> list[int]:
    """Return the indices of ``count`` rungs, evenly spread, among them the first and the last.

    >>> spread_over(100, 4), spread_over(3, 8), spread_over(100, 0), spread_over(100, 1)
    ([0, 33, 66, 99], [0, 1, 2], [], [99])
    """
    if count == 1:
        return [rungs - 1]
    return np.unique(np.round(np.linspace(0, rungs - 1, min(count, rungs))).astype(int)).tolist() if count else []


def how_many(event_shape: tuple[int, ...]) -> int:
    """Return of how many chains positions are kept."""
    return max(CHAINS, min(MOST_CHAINS, NUMBERS // max(1, int(np.prod(event_shape)))))


def a_few(x: np.ndarray) -> np.ndarray:
    """Return as many chains of ``x (snapshots, chains, *event_shape)``, evenly spread over the islands they are of."""
    chosen = np.linspace(0, x.shape[1] - 1, min(x.shape[1], how_many(x.shape[2:]))).round().astype(int)
    return x[:, chosen]


class Snapshots(Listener):
    """Adds positions of chains to the snapshots of a walk.

    Args:
        at: indices of the rungs.
    """

    def __init__(self, at: list[int]) -> None:
        self.at = frozenset(at)

    def moved(self, walk: Walk) -> None:
        if walk.state is None or len(walk.rungs) - 1 not in self.at:
            return
        x = np.asarray(walk.state.positions, dtype=np.float64)
        walk.snapshots.append(x[: how_many(x.shape[1:])].copy())
