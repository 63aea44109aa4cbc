"""A check that quotients are normalisable.

A negative exponent divides by a density. Such a quotient may not be normalisable, at some levels or at
all; even if it is, its mass may lie outside the support of the numerator's training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import as_numpy
from .algebra import Product
from .tails import grows
from .target import Target

MAX_PREDICTED_NOISE = 6.0
"""Mean squared predicted noise per coordinate above which a chain counts as outside a factor's support (a standard
normal draw in two dimensions exceeds it with probability 0.0025)."""

MAX_SHARE_OUTSIDE = 0.05
"""Share of chains that may be outside a factor's support without a note."""


def check_quotient(
    potential: Target, *, levels: Sequence[int], positions: Any = None, level: int | None = None
) -> list[str]:
    """Check that quotients in ``potential`` are normalisable and that chains stay in the support of numerators.

    *Tails*: in the direction of least curvature the energy must grow from a large distance to its double, at each
    of ``levels``; otherwise the quotient is not normalisable there (:mod:`ppl_diffusion.potentials.tails`).
    *Support*: the noise ``sigma grad U`` that a numerator predicts is the conditional mean ``E[z | x]`` of unit noise,
    hence has a mean square of at most about one per coordinate for draws of the numerator itself. If it is far larger
    for more than 5% of the chains of the composed density, they lie outside the support of the numerator's training
    data.

    Args:
        potential: any potential. A product that contains a quotient is checked as a whole; other products pass, and
            of any other potential each part is checked.
        levels: levels at which tails are checked, by evaluating a few hundred points each, or 32 if an event has more
            than 256 coordinates.
        positions: chains, shape ``(chains, *event_shape)``, whose support is checked; by default none.
        level: the level of ``positions``, required with them.

    Returns:
        One sentence per problem found, empty if there is none.
    """
    if positions is not None and level is None:
        raise ValueError("positions are of one level: give level= too")
    improper = not_normalisable(potential, levels=levels)
    notes = [tell_not_normalisable(name, failed) for name, failed in improper.items()]
    return notes + ([] if positions is None else _outside(potential, np.asarray(positions), level))


def not_normalisable(potential: Target, *, levels: Sequence[int]) -> dict[str, list[int]]:
    """Return the levels, of those given, at which a quotient in ``potential`` is not normalisable, by its name."""
    if not _is_whole(potential):
        parts = [not_normalisable(part, levels=levels) for part in potential.parts()]
        return {name: failed for found in parts for name, failed in found.items()}
    if not _contains_quotient(potential) or not potential.has_energy:
        return {}  # far out a network that was trained to denoise knows no score either
    failed = [level for level in levels if not grows(potential, level)]
    return {str(potential): failed} if failed else {}


def tell_not_normalisable(name: str, failed: Sequence[int]) -> str:
    """Return a sentence on the ``failed`` levels of a quotient called ``name``."""
    return (
        f"{name} is not normalisable at level{'s' * (len(failed) > 1)} {', '.join(map(str, sorted(failed)))}: far out "
        "its energy falls, chains will leave; lower the exponent of the denominator (or the guidance scale)"
    )


def _outside(potential: Target, positions: np.ndarray, level: Any) -> list[str]:
    """Return notes on chains ``(chains, *event_shape)`` outside of the support of numerators."""
    if _is_whole(potential):
        quotient = isinstance(potential, Product) and any(a < 0 for a in potential.exponents)
        return _check_support(potential, positions, level) if quotient else []  # type: ignore[arg-type]
    pairs = [(part, x) for part, x in potential.parts_at(positions) if x is not None]
    return list(dict.fromkeys(note for part, x in pairs for note in _outside(part, np.asarray(x), level)))


def _is_whole(potential: Target) -> bool:
    """Whether tails are those of ``potential`` as a whole: of a product, but not of one with a single factor."""
    return isinstance(potential, Product) and (len(potential.factors) > 1 or potential.exponents[0] <= 0)


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
