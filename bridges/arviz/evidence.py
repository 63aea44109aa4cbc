"""Single questions about a run, each answered from what its trace recorded. They make warnings and verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_diffusion.sampling.importance import effective_sample_size
from ppl_diffusion.sampling.trace import Trace

LOW_ESS = 0.1
"""ESS of one rung's log-weight increments, as a share of the chains, below which resampling is not recommended."""

LARGE_SPREAD = 3.0
"""Spread of a rung's log-weight increments, in nats, above which weights mean nothing if they are uneven too."""

LARGE_ERROR = 0.5
"""Error of the log-normaliser, in nats, above which the shares that weights give are not called right."""

FEWEST_DRAWS = 20
"""Fewest recorded draws for which R-hat and ESS are reported: short stationary chains give false alarms."""

LOW_ACCEPTANCE = 0.2
"""Acceptance rate under which a kernel does not work."""

RUNAWAY = 5.0
"""Standard deviation of chains in one direction, relative to the median of the others, of chains that run away."""


def is_still(trace: Trace) -> bool:
    """Whether the kernel leaves chains where they are; traces of before this was recorded have rungs without steps."""
    steps, moves = trace.attributes["steps"], trace.stats.jump_distance
    return bool(trace.attributes.get("still", not any(steps) and not moves.notnull().any()))


def started_at_init(trace: Trace) -> bool:
    """Whether positions to start from were given; in traces of before this was recorded, by log-weights of zero."""
    start = trace.stats.log_weight[0].to_numpy()
    return bool(trace.attributes.get("init", not np.any(start[np.isfinite(start)])))


def widest_directions(trace: Trace) -> tuple[float, float] | None:
    """Standard deviation of the last draws along their widest direction, and the median of those along the others.

    None unless the last density has no tails in some direction and chains are on their way there.
    """
    levels = trace.attributes.get("not_normalisable", [])
    if trace.attributes["levels"][-1] not in levels:
        return None
    x = trace.positions[:, -1].reshape(len(trace.positions), -1)
    x = x[np.isfinite(x).all(1)]
    if min(x.shape) < 2:
        return None
    spreads = np.linalg.svd(x - x.mean(0), compute_uv=False) / np.sqrt(len(x) - 1)
    typical = float(np.median(spreads[1:]))  # of the others: in two dimensions the median would be half of the largest
    return (float(spreads[0]), typical) if spreads[0] > RUNAWAY * typical else None


def count_stuck(trace: Trace) -> int:
    """Count the chains that did not move in the recorded draws, nor, if these are few, in the steps before them."""
    x = trace.positions.reshape(*trace.positions.shape[:2], -1)
    still = np.all(x == x[:, :1], axis=(1, 2))
    if trace.attributes["steps"][-1] > 0 and x.shape[1] < FEWEST_DRAWS:
        still &= trace.stats.jump_distance[-1].to_numpy() == 0
    return int(np.sum(still)) if trace.attributes["steps"][-1] > 0 or x.shape[1] > 1 else 0


def refused_by_chance(trace: Trace) -> float:
    """Return the number of chains that would not have moved by chance, as :func:`count_stuck` counts them, at their
    mean acceptance rate, or at that of a kernel that works."""
    chains, draws = trace.positions.shape[:2]
    rates = [trace.stats.acceptance_rate[-1].to_numpy()]
    if "acceptance_rate" in trace.sample_stats:
        rates.append(trace.sample_stats.acceptance_rate.to_numpy().ravel())
    known = np.concatenate(rates)
    known = known[np.isfinite(known)]
    steps = draws - 1 + (trace.attributes["steps"][-1] if draws < FEWEST_DRAWS else 0)
    return float(chains * (1 - max(known.mean(), LOW_ACCEPTANCE)) ** steps) if known.size else 0.0


class WeightsFound(NamedTuple):
    """What the recorded log-weights of a run are like.

    Attributes:
        typical, worst: spread of a rung's increments, median and largest, in nats; NaN without any.
        worst_level: level of the largest one.
        start: effective sample size of the weights at the first rung, in chains.
        least: smallest effective sample size of the increments of one later rung, in chains.
        few: effective sample size below which resampling leaves few ancestors, in chains.
    """

    typical: float
    worst: float
    worst_level: int
    start: float
    least: float
    few: float

    @property
    def uneven(self) -> bool:
        """Whether the weights of one rung would leave few ancestors."""
        return self.least < self.few

    @property
    def meaningless(self) -> bool:
        """Whether energies do not agree between levels, or levels lie too far apart."""
        return self.worst > LARGE_SPREAD and self.uneven


def find_weights(trace: Trace, rungs: xr.Dataset) -> WeightsFound | None:
    """Return what the log-weights of a trace are like; None of a single chain or rung, or if there are none.

    ``rungs`` is the dataset of a :class:`~bridges.arviz.Diagnosis`.
    """
    spreads = rungs.spread.to_numpy()[1:]
    chains = trace.positions.shape[0]
    if chains < 2 or not len(spreads) or not np.any(np.isfinite(spreads)):
        return None
    start, *others = (effective_sample_size(row) for row in trace.stats.log_weight.to_numpy())
    level = int(rungs.level[1 + int(np.nanargmax(spreads))])
    typical, worst = float(np.nanmedian(spreads)), float(np.nanmax(spreads))
    return WeightsFound(typical, worst, level, start, min(others), max(LOW_ESS * chains, 2))


def is_coarse(rungs: xr.Dataset) -> bool:
    """Whether the ladder leaves levels out between its first and its last one."""
    levels = rungs.level.to_numpy()
    return len(levels) < levels[0] - levels[-1] + 1


def diverged(trace: Trace) -> np.ndarray:
    """Return which recorded trajectories diverged, ``(chains, draws)``, where the energy was finite: one that ends at a
    hard wall is refused as it should be."""
    recorded = trace.sample_stats
    if "diverging" not in recorded:
        return np.zeros(trace.positions.shape[:2], dtype=bool)
    found = np.nan_to_num(recorded["diverging"].to_numpy()) > 0
    return found & ~(np.nan_to_num(recorded["nonfinite"].to_numpy()) > 0) if "nonfinite" in recorded else found
