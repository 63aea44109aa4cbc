"""Who travels: which replica of a ladder is at which rung, and how often each chain's replicas went down and back."""

from __future__ import annotations

import numpy as np


class Travels:
    """The names of the replicas at every rung, and their round trips.

    Attributes:
        names: name of the replica at each rung, shape ``(rungs, chains)``.
        heading: by name, 1 on the way to the last rung, -1 on the way back, 0 before the noisiest level was seen, shape
            ``(rungs, chains)``.
        trips: round trips of all replicas of a chain, shape ``(chains,)``.
    """

    def __init__(self, rungs: int, chains: int) -> None:
        self.names = np.tile(np.arange(rungs)[:, None], (1, chains))
        self.heading = np.zeros((rungs, chains), dtype=int)
        self.trips = np.zeros(chains)

    def begin(self) -> None:
        """Count round trips from now on."""
        self.trips[:], self.heading[:] = 0, 0

    def swap(self, pair: int, taken: np.ndarray) -> None:
        """Swap the names of rung ``pair`` and the next one where ``taken (chains,)``."""
        names = self.names[[pair + 1, pair]]
        self.names[[pair, pair + 1]] = np.where(taken, names, self.names[[pair, pair + 1]])

    def follow(self) -> None:
        """Follow who has been to the noisiest level last (heading for the clean end), and who has come back."""
        columns = np.arange(self.names.shape[1])
        first, last = self.names[0], self.names[-1]
        self.trips += self.heading[first, columns] == -1
        self.heading[first, columns] = 1
        arrived = self.heading[last, columns] == 1
        self.heading[last[arrived], columns[arrived]] = -1
