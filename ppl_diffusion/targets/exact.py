"""Expectations of the log-density from exact draws, where there is no closed form for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..potentials.target import Target
from .reference import Expectation, Modes, Reference, stratified

DRAWS = 1_000_000
"""Number of exact draws behind the expectations of ``log p`` and the weights of modes."""

BLOCK = 2_000_000
"""Number of coordinates that are drawn at a time."""


class Law(Protocol):
    """How a target is known exactly: draws and references at any level."""

    def sample(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return exact independent draws, shape ``(count, *event_shape)``."""

    def reference(self, potential: Target, level: int) -> Reference:
        """Return what is known of a level, ``log p`` being that of ``potential``."""


class Stratum(NamedTuple):
    """A component of a mixture: its weight, and ``draw(count, rng)``, which returns ``(count, *event_shape)``."""

    weight: float
    draw: Callable[[int, np.random.Generator], np.ndarray]


class Simulated(NamedTuple):
    """What :func:`simulated` found, in the order of the fields of :class:`Reference`."""

    log_p: Expectation
    log_p_squared: Expectation
    modes: Modes | None
    made: str


def simulated(
    potential: Target, level: int, strata: Sequence[Stratum], *, locations: np.ndarray | None = None, draws: int = DRAWS
) -> Simulated:
    """Return the expectations of ``log p`` and the weights of modes from exact draws.

    Each component is drawn in proportion to its weight, which is known, so that it adds nothing to the errors.

    Args:
        locations: of the modes, shape ``(k, *event_shape)``; None if there is one mode.
    """
    rng = np.random.default_rng(level)
    weights = np.array([stratum.weight for stratum in strata])
    log_p: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    centres = None if locations is None else Modes(locations, *[np.full(len(locations), 1 / len(locations))] * 2)
    for stratum in strata:
        found = [_block(potential, level, stratum, n, centres, rng) for n in _blocks(potential, stratum.weight * draws)]
        log_p.append(np.concatenate([energies for energies, _ in found]))
        shares.append(np.concatenate([mode for _, mode in found]))
    modes = None
    if locations is not None:
        share = stratified([mode[:, None] == np.arange(len(locations)) for mode in shares], weights)
        modes = Modes(locations, share.value, share.error)
    made = f"moments of x in closed form; of log p{'' if modes is None else ' and modes'} from {draws} exact draws"
    return Simulated(stratified(log_p, weights), stratified([v**2 for v in log_p], weights), modes, made)


def _blocks(potential: Target, draws: float) -> list[int]:
    """Return numbers of draws that sum to ``draws``, or a thousand if these are more."""
    size = max(1, BLOCK // int(np.prod(potential.event_shape)))
    whole, rest = divmod(max(round(draws), 1_000), size)
    return [size] * whole + [rest] * (rest > 0)


def _block(
    potential: Target, level: int, stratum: Stratum, count: int, modes: Modes | None, rng: np.random.Generator
) -> tuple[np.ndarray, Any]:
    x = stratum.draw(count, rng)
    log_p = -np.asarray(potential.energy(x, level=level), dtype=np.float64)
    return log_p, np.zeros(count, dtype=int) if modes is None else modes.nearest(x)
