"""Ladders: the levels that a walk visits, and the number of kernel steps at each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import as_numpy
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Ladder:
    """The levels that annealed sampling visits, noisiest first, and the number of kernel steps at each.

    Args:
        levels: strictly decreasing levels of a schedule, one per rung; draws are recorded at the last one.
        steps: number of kernel steps: one for all rungs, or a tuple with one per rung.

    Raises:
        ValueError: there are no levels, they do not strictly decrease, a number of steps is negative, or
            the length of ``steps`` differs from the number of rungs.
    """

    levels: tuple[int, ...]
    steps: int | tuple[int, ...] = 10

    def __post_init__(self) -> None:
        levels = _as_integers("levels", self.levels)
        object.__setattr__(self, "levels", levels)
        if not levels or levels[-1] < 0 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError(f"levels must decrease from noisy to clean, got {levels}: try Ladder(levels=(40, 20, 0))")
        steps = _as_integers("steps", np.atleast_1d(np.asarray(self.steps)))
        object.__setattr__(self, "steps", steps[0] if np.ndim(self.steps) == 0 else steps)
        if len(self.steps_per_rung) != len(levels) or min(self.steps_per_rung) < 0:
            raise ValueError(f"steps must be a number >= 0, or one for each of {len(levels)} rungs, got {self.steps}")

    @classmethod
    def full(cls, schedule: NoiseSchedule, *, steps: int | tuple[int, ...] = 10) -> Ladder:
        """Return the ladder that visits every level of ``schedule``."""
        _check_schedule(schedule)
        return cls(levels=tuple(reversed(range(len(schedule)))), steps=steps)

    @classmethod
    def spaced(cls, schedule: NoiseSchedule, *, rungs: int = 50, steps: int | tuple[int, ...] = 10) -> Ladder:
        """Return the ladder of ``rungs`` evenly spaced levels from the noisiest to level 0, both included.

        >>> Ladder.spaced(NoiseSchedule.cosine(100), rungs=4, steps=2)
        Ladder(levels=(99, 66, 33, 0), steps=2)

        Raises:
            ValueError: fewer than two rungs (one, if the schedule has one level), or more rungs than levels.
            TypeError: ``schedule`` is none.
        """
        _check_schedule(schedule)
        least = min(2, len(schedule))
        if not isinstance(rungs, (int, np.integer)) or not least <= rungs <= len(schedule):
            raise ValueError(f"rungs must be {least} to {len(schedule)} (the levels of this schedule), got {rungs}")
        levels = np.rint(np.linspace(len(schedule) - 1, 0, rungs)).astype(int)
        return cls(levels=tuple(levels), steps=steps)

    @classmethod
    def spread(cls, potential: Any, *, nats: float = 1.0, steps: int = 10, chains: int = 64, seed: int = 0) -> Ladder:
        """Return a ladder on whose rungs log-weights spread by about ``nats``, from the noisiest level to level 0.

        A population goes down all levels by reverse diffusion. From each rung the next one is the farthest level at
        which the log-weights ``U_s(x) - U_t(x)`` of the population have a standard deviation of at most ``nats``; the
        next level where even that one has more. For a composition the population is only near its densities.

        >>> from ppl_diffusion import GaussianMixture
        >>> p = GaussianMixture([[0.0] * 20], [0.5], schedule=NoiseSchedule.cosine(100), backend="torch")
        >>> len(Ladder.spread(p, nats=1.0)) < len(Ladder.spread(p, nats=0.5))
        True

        Args:
            potential: the potential to be sampled.
            nats: standard deviation of the log-weights of a rung.
            steps: kernel steps of every rung.
            chains: size of the population, evaluated together some ``2 * len(schedule)`` times.
            seed: seed of the population.

        Raises:
            TypeError: only the gradient of ``potential`` is known.
            ValueError: ``nats`` is not positive, or there are fewer than 8 chains.
        """
        if not potential.has_energy:
            raise TypeError(
                f"log-weights need differences of energies, and of {potential} only the gradient is known: take "
                "Ladder.spaced(schedule, rungs=50)"
            )
        if not (np.isfinite(nats) and nats > 0) or chains < 8:
            raise ValueError(f"nats is a positive number and chains at least 8, got {nats} and {chains}: try nats=1.0")
        schedule, rng = potential.schedule, np.random.default_rng(seed)
        level = len(schedule) - 1
        x, _ = potential.start(level, chains=chains, rng=rng)
        energy, gradient = _value_and_grad(potential, x, level)
        levels = [level]
        while level > 0:

            def too_far(other: int, x: np.ndarray = x, energy: np.ndarray = energy) -> bool:
                with np.errstate(invalid="ignore"):
                    change = energy - as_numpy(potential.energy(x, level=other))
                change = change[np.isfinite(change)]
                return not (len(change) > 1 and np.std(change) <= nats)

            near, far = level - 1, -1  # near is taken in any case, far is too far
            while near - far > 1:
                middle = (near + far) // 2
                near, far = (near, middle) if too_far(middle) else (middle, far)
            for below in range(level - 1, near - 1, -1):
                mean, spread = schedule.reverse(x, gradient, below + 1, below)
                moved = mean + spread * rng.standard_normal(x.shape)
                x = np.where(np.broadcast_to(potential.diffused, potential.event_shape), moved, x)
                energy, gradient = _value_and_grad(potential, x, below)
            level = near
            levels.append(level)
        return cls(levels=tuple(levels), steps=steps)

    @property
    def steps_per_rung(self) -> tuple[int, ...]:
        """Number of kernel steps of every rung, noisiest first."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,) * len(self.levels)

    def __len__(self) -> int:
        return len(self.levels)


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"a ladder is of a noise schedule, got {schedule!r}: give that of the potential, p.schedule")


def _as_integers(name: str, values: Any) -> tuple[int, ...]:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{name} must be whole numbers, got {values.tolist()!r}: try Ladder((40, 20, 0), steps=10)")
    return tuple(int(value) for value in values)


def _value_and_grad(potential: Any, x: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return energies ``(chains,)`` and gradients ``(chains, *event_shape)`` as float64 of NumPy."""
    energy, gradient = potential.value_and_grad(x, level=level)
    return as_numpy(energy).astype(np.float64), as_numpy(gradient).astype(np.float64)
