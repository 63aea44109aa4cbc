"""A check that quotients are normalisable.

A negative exponent divides by a density. Such a quotient may not be normalisable, at some levels or at
all; even if it is, its mass may lie outside the support of the numerator's training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..arrays import as_numpy
from .algebra import Product
from .target import Target

TAIL_DISTANCES = (1.0, 2.0, 4.0, 8.0)
"""Distances from the origin at which tails are probed, in units of three times the root-mean-square radius of noised
unit-variance data. The energy must grow from each distance to the next (a learned energy may dip in between)."""

MAX_PREDICTED_NOISE = 6.0
"""Mean squared predicted noise per coordinate above which a chain counts as outside a factor's support (a standard
normal draw in two dimensions exceeds it with probability 0.0025)."""

MAX_SHARE_OUTSIDE = 0.05
"""Share of chains that may be outside a factor's support without a note."""


def check_quotient(
    potential: Target, *, levels: Sequence[int], positions: Any = None, level: int | None = None
) -> list[str]:
    """Check that quotients in ``potential`` are normalisable and that chains stay in the support of numerators.

    *Tails*: along random directions the energy must grow with every doubling of a large distance, at each of
    ``levels``; otherwise the quotient is not normalisable there. *Support*: the noise ``sigma grad U`` that a
    numerator predicts is the conditional mean ``E[z | x]`` of unit noise, hence has a mean square of at most about
    one per coordinate for draws of the numerator itself. If it is far larger for more than 5% of the chains of the
    composed density, they lie outside the support of the numerator's training data.

    Args:
        potential: any potential. A product that contains a quotient is checked as a whole; other products pass, and
            of any other potential each part is checked.
        levels: levels at which tails are checked, by evaluating 128 points each, or 16 if an event has at least 100
            coordinates.
        positions: chains, shape ``(chains, *event_shape)``, whose support is checked; by default none.
        level: the level of ``positions``, required with them.

    Returns:
        One sentence per problem found, empty if there is none.
    """
    if positions is not None and level is None:
        raise ValueError("positions are of one level: give level= too")
    if not isinstance(potential, Product) or (len(potential.factors) == 1 and potential.exponents[0] > 0):
        each = (
            check_quotient(part, levels=levels, positions=x, level=level) for part, x in potential.parts_at(positions)
        )
        return list(dict.fromkeys(note for notes in each for note in notes))
    if not _contains_quotient(potential):
        return []
    rng = np.random.default_rng(0)
    notes: list[str] = []
    rank, size = len(potential.event_shape), int(np.prod(potential.event_shape))
    count = 32 if size < 100 else 4  # in many dimensions directions differ little, and evaluations are expensive
    rays = rng.standard_normal((count, *potential.event_shape))
    rays *= np.sqrt(size) / np.linalg.norm(rays.reshape(count, -1), axis=1).reshape(-1, *[1] * rank)
    failed_levels = []
    for tail_level in levels:
        radius = 3 * np.hypot(potential.schedule.alpha(tail_level), potential.schedule.sigma(tail_level))
        x = np.concatenate([rays * radius * distance for distance in TAIL_DISTANCES])
        with jax.enable_x64(True):
            energy = as_numpy(potential.value_and_grad(x, level=tail_level)[0]).reshape(len(TAIL_DISTANCES), -1)
        if not np.all(np.diff(energy, axis=0) > 0):
            failed_levels.append(tail_level)
    if failed_levels:
        notes.append(
            f"{potential} is not normalisable at level{'s' * (len(failed_levels) > 1)} "
            f"{', '.join(map(str, sorted(failed_levels)))}: far out its energy falls, chains will leave; "
            "lower the exponent of the denominator (or the guidance scale)"
        )
    if positions is not None and any(a < 0 for a in potential.exponents):
        notes += _check_support(potential, np.asarray(positions), level)
    return notes


def _contains_quotient(potential: Target) -> bool:
    """Whether ``potential`` is a quotient or is composed of one."""
    is_quotient = isinstance(potential, Product) and any(a < 0 for a in potential.exponents)
    return is_quotient or any(map(_contains_quotient, potential.parts()))


def _check_support(potential: Product, x: np.ndarray, level: Any) -> list[str]:
    """Check that chains ``x (chains, *event_shape)`` of a quotient lie in the support of each of its numerators."""
    try:
        total = float(np.min(potential.exponent))
    except ValueError:  # components of a mixture have different sums of exponents: allow for no extra width
        total = 1.0
    bound = MAX_PREDICTED_NOISE * max(1.0, 1 / total) if total > 0 else MAX_PREDICTED_NOISE
    notes = []
    for factor, a in zip(potential.factors, potential.exponents, strict=True):
        if a <= 0:
            continue
        gradient = as_numpy(factor.value_and_grad(x, level=level)[1])
        noise = potential.schedule.sigma(level) * gradient.reshape(len(x), -1)
        strength = np.mean(noise**2, axis=1)
        outside = float(np.mean(~(strength <= bound)))
        if outside > MAX_SHARE_OUTSIDE:
            notes.append(
                f"{outside:.0%} of the chains of {potential} have left the support of {factor}: the noise that it "
                f"predicts for them at level {level} has a mean square of {np.median(strength):.3g} per coordinate "
                "(median), where its own draws have about 1 at most; lower the exponent of the denominator "
                "(or the guidance scale)"
            )
    return notes
