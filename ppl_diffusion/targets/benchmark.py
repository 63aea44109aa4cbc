"""A benchmark target: a potential, the levels at which kernels are compared, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..potentials.target import Target
from .reference import Reference


@dataclass(frozen=True)
class BenchmarkTarget:
    """A density whose answers are known, at several noise levels: the noise level is the difficulty.

    Args:
        name: name in tables.
        potential: the density, of the backend "torch" if evaluations are to be counted at it.
        levels: levels at which kernels are compared, noisiest first.
        references: what is known of each level.
        sample: ``sample(count, level=, seed=)`` returns exact independent draws ``(count, *event_shape)``; None if
            there is no such sampler.
        description: what it is, a sentence.
        licence: licence of the potential and its references.

    Raises:
        ValueError: levels are not decreasing levels of the schedule, a level has no reference, or the shape of a
            reference is not that of a point.
    """

    name: str
    potential: Target
    levels: tuple[int, ...]
    references: Mapping[int, Reference] = field(repr=False)
    sample: Callable[..., np.ndarray] | None = field(default=None, repr=False)
    description: str = ""
    licence: str = "not stated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        for level in self.levels:
            self.potential.schedule.check_level(level)
        if not self.levels or any(a <= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"levels go from noisy to clean, each once, got {self.levels}: try (60, 20, 0)")
        for level in self.levels:
            shape = np.shape(self.reference(level).x.value)
            if shape != self.potential.event_shape:
                raise ValueError(
                    f"points of {self.potential} have shape {self.potential.event_shape}, and the reference of level "
                    f"{level} has {shape}"
                )

    def reference(self, level: int) -> Reference:
        """Return what is known of a level.

        Raises:
            ValueError: there is no reference for it; the message says which levels have one.
        """
        if level not in self.references:
            known = ", ".join(str(one) for one in sorted(self.references, reverse=True)) or "none"
            raise ValueError(f"{self.name} has no reference at level {level!r}: the levels that have one are {known}")
        return self.references[level]

    def draws(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return draws of a level, shape ``(count, *event_shape)``, float64.

        They are exact and independent where there is a sampler. Otherwise they are chosen, without repetition as long
        as there are enough, from those that are stored with the reference.

        Raises:
            ValueError: there are neither a sampler nor stored draws.
        """
        stored = self.reference(level).draws
        if self.sample is not None:
            return np.asarray(self.sample(count, level=level, seed=seed), dtype=np.float64)
        if stored is None:
            raise ValueError(
                f"{self.name} has no draws of level {level}: give BenchmarkTarget sample=, or the reference draws="
            )
        rng = np.random.default_rng(seed)
        order = [rng.permutation(len(stored)) for _ in range(-(-count // len(stored)))]
        return np.asarray(stored[np.concatenate(order)[:count]], dtype=np.float64)

    def cold(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return the starting points of a cold start, shape ``(count, *event_shape)``.

        They are draws of the next noisier one of :attr:`levels`, and at the noisiest of these, of the density from
        which annealed chains start.

        Raises:
            ValueError: ``level`` is not one of :attr:`levels`.
        """
        if level not in self.levels:
            raise ValueError(f"{self.name} is benchmarked at levels {self.levels}, not at {level!r}")
        place = self.levels.index(level)
        if place:
            return self.draws(count, level=self.levels[place - 1], seed=seed)
        noisiest = len(self.potential.schedule) - 1
        return self.potential.start(noisiest, chains=count, rng=np.random.default_rng(seed))[0]

    def mode_of(self, x: Any, level: int) -> np.ndarray | None:
        """Return the nearest mode of each point ``x (n, *event_shape)``, integers ``(n,)``; None without modes."""
        modes = self.reference(level).modes
        return None if modes is None else modes.nearest(np.asarray(x))

    def card(self, level: int) -> Card:
        """Return what is to be known before it is used; ``str()`` of it is a table for people."""
        reference = self.reference(level)
        return Card(
            name=self.name,
            description=self.description,
            licence=self.licence,
            expression=str(self.potential),
            dimension=int(np.prod(self.potential.event_shape)),
            levels=self.levels,
            level=level,
            condition_number=reference.condition_number,
            modes=1 if reference.modes is None else len(reference.modes.weights),
            exact_draws=self.sample is not None,
            made=reference.made,
            effective_draws=reference.effective_draws,
            reference=reference,
        )


@dataclass(frozen=True)
class Card:
    """What is to be known of a target at one level; attributes as in :class:`Reference` and :class:`BenchmarkTarget`.

    Attributes:
        expression: the potential, as an expression.
        dimension: number of coordinates of a point.
        modes: number of modes; 1 where they are not known.
        exact_draws: whether there is a sampler of exact, independent draws.
    """

    name: str
    description: str
    licence: str
    expression: str
    dimension: int
    levels: tuple[int, ...]
    level: int
    condition_number: float
    modes: int
    exact_draws: bool
    made: str
    effective_draws: float
    reference: Reference = field(repr=False)

    def __str__(self) -> str:
        lines = {
            "potential": self.expression,
            "dimension": str(self.dimension),
            "levels": ", ".join(str(one) for one in self.levels),
            "condition": f"{self.condition_number:.3g}",
            "modes": str(self.modes),
            "log p": _with_error(self.reference.log_p),
            "reference": self.made,
            "effective": "exact" if np.isinf(self.effective_draws) else f"{self.effective_draws:.0f} draws",
            "draws": "exact and independent" if self.exact_draws else "stored",
            "licence": self.licence,
        }
        head = f"{self.name}, level {self.level}: {self.description}"
        return "\n".join([head, *(f"  {name:<11}{text}" for name, text in lines.items())])


def _with_error(expectation: Any) -> str:
    spread = np.sqrt(expectation.variance)
    return f"{expectation.value:.6g} (error {expectation.error:.1g}), standard deviation {spread:.3g} nats"
