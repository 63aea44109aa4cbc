"""What is recorded of the rounds of a replica exchange, and the statistics of a trace that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .bennett import bennett
from .kernel import State
from .walk import joined


@dataclass
class Swap:
    """What was found of all proposed swaps of a pair, in each round ``(chains,)``.

    Attributes:
        down, up: works from the noisier level to the cleaner one, and from the cleaner one to the noisier.
        taken: whether the swap was accepted.
    """

    down: list[np.ndarray] = field(default_factory=list)
    up: list[np.ndarray] = field(default_factory=list)
    taken: list[np.ndarray] = field(default_factory=list)


class ExchangeRecord:
    """What is recorded of an exchange.

    Attributes:
        moved: of each rung and round, the statistics of its kernel steps, each ``(chains, steps)``, with ``jump``, how
            far they took each chain, and ``final``, the energy behind them, both ``(chains,)``.
        swaps: of each pair of neighbours.
        positions, energies: of each round, at the last rung: ``(chains, *event_shape)`` and ``(chains,)``.
        calls: evaluations at each rung so far, shape ``(rungs,)``.
    """

    def __init__(self, rungs: int) -> None:
        self.moved: list[list[Mapping[str, np.ndarray]]] = [[] for _ in range(rungs)]
        self.swaps = [Swap() for _ in range(rungs - 1)]
        self.positions: list[np.ndarray] = []
        self.energies: list[np.ndarray] = []
        self.calls = np.zeros(rungs)

    def drawn(self) -> tuple[np.ndarray, xr.Dataset]:
        """Return all recorded draws ``(chains, draws, *event_shape)`` and their statistics."""
        kept = [{k: v[:, -1:] for k, v in found.items() if np.ndim(v) == 2} for found in self.moved[-1]]
        energies = {"lp": -np.stack(self.energies, axis=1)}
        columns = joined([{**found, "gradient_calls": np.array(0)} for found in kept]) if kept else {}
        columns.pop("gradient_calls", None)
        variables = {name: (("chain", "draw"), value) for name, value in (columns | energies).items()}
        return np.stack(self.positions, axis=1), xr.Dataset(variables, attrs={"gradient_calls": 0})

    def statistics(self, states: Sequence[State]) -> tuple[xr.Dataset, float]:
        """Return statistics by rung and chain of the recorded rounds, which ended in ``states``, and the standard error
        of the sum of ``log_normaliser``, whose first value is missing."""
        rows = [self._row(rung, state) for rung, state in enumerate(states)]
        columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        stats = xr.Dataset({name: (("rung", "chain")[: v.ndim], v) for name, v in columns.items()})
        ratios, error = bennett([(np.array(swap.down), np.array(swap.up)) for swap in self.swaps])
        stats["log_normaliser"] = ("rung", np.array([np.nan, *ratios]))
        rates = [np.nan, *(float(np.mean(swap.taken)) if swap.taken else np.nan for swap in self.swaps)]
        stats["swap_rate"] = ("rung", np.array(rates))
        return stats, error

    def _row(self, rung: int, state: State) -> dict[str, Any]:
        """Return the statistics of one rung, under the names of a trace."""
        found, chains = self.moved[rung], len(state.energy)
        missing = np.full(chains, np.nan)

        def mean(name: str) -> np.ndarray:
            rows = [one[name] for one in found if name in one]
            return np.mean([row.mean(1) if row.ndim == 2 else row for row in rows], axis=0) if rows else missing

        def total(name: str) -> np.ndarray:
            rows = [one[name] for one in found if name in one]
            return np.sum([row.sum(1) for row in rows], axis=0) if rows else missing

        energies = [one["final"] for one in found] or [np.asarray(state.energy)]
        return {
            "acceptance_rate": mean("acceptance_rate"),
            "step_size": np.full(chains, np.exp(float(state.step.log_step))),
            "diverging": total("diverging"),
            "nonfinite": total("nonfinite"),
            "jump_distance": mean("jump"),
            "energy_arrival": energies[0],
            "energy_midway": energies[len(energies) // 2],
            "energy": energies[-1],
            "log_weight": missing,
            "ancestor": np.arange(chains),
            "ess": np.nan,
            "resampled": False,
            "gradient_calls": self.calls[rung],
        }
