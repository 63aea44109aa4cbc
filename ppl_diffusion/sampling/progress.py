"""Progress of a walk, told to a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .walk import Listener, Walk


class Progress(NamedTuple):
    """The argument of a progress callback, called after every rung and after every block of recorded draws.

    Attributes:
        rung: number of rungs completed.
        rungs: total number of rungs.
        level: noise level of this rung.
        draw: number of draws recorded.
        draws: total number of draws.
        acceptance_rate: mean over chains and steps; NaN for unadjusted kernels.
        ess: effective sample size of the weights on arrival, as a share of the chains; NaN for recorded draws.
        island: number of islands before this one.
        islands: total number of islands. Of islands that are spread, only the end of each is told.
    """

    rung: int
    rungs: int
    level: int
    draw: int
    draws: int
    acceptance_rate: float
    ess: float
    island: int = 0
    islands: int = 1


class Reporter(Listener):
    """Calls ``progress`` with a :class:`Progress` after every rung and every block of draws; None for nobody.

    Args:
        progress: the callback, or None.
        rungs, draws: how many there will be.
        island, islands: which island it is, and how many there are.
    """

    def __init__(
        self,
        progress: Callable[[Progress], None] | None,
        *,
        rungs: int,
        draws: int,
        island: int = 0,
        islands: int = 1,
    ) -> None:
        self.progress, self.rungs, self.draws = progress, rungs, draws
        self.place = island, islands

    def moved(self, walk: Walk) -> None:
        if self.progress is not None and walk.state is not None:
            record = walk.rungs[-1]
            rate, ess = float(np.mean(record["acceptance_rate"])), record["ess"] / len(walk.start)
            self.progress(
                Progress(len(walk.rungs), self.rungs, walk.state.level, 0, self.draws, rate, ess, *self.place)
            )

    def drawn(self, walk: Walk) -> None:
        if self.progress is not None and walk.state is not None:
            rate = float(np.mean(walk.statistics[-1].get("acceptance_rate", np.nan)))
            self.progress(
                Progress(self.rungs, self.rungs, walk.state.level, walk.draws, self.draws, rate, np.nan, *self.place)
            )
