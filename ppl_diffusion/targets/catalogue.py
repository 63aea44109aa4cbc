"""The benchmark targets by name."""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np

from . import stored
from .analytic import ANALYTIC, LEVELS
from .benchmark import BenchmarkTarget
from .learned import LEARNED

LICENCE = "Apache-2.0"


def names() -> tuple[str, ...]:
    """Return the names of the benchmark targets: those in closed form, then those of the shipped models.

    A target is one when its references are stored: ``python -m benchmarks references`` makes them.

    >>> len(names()) >= 16, "mixture_64" in names()
    (True, True)
    """
    return tuple(name for name in (*ANALYTIC, *LEARNED) if stored.path_of(name).is_file())


def load(name: str) -> BenchmarkTarget:
    """Return a benchmark target by name.

    Its potential is of the backend "torch", so that evaluations can be counted on the host.

    Raises:
        ValueError: there is no such target; the message has the closest name.

    >>> target = load("mixture_64")
    >>> target.levels, target.draws(3, level=20, seed=0).shape
    ((60, 20, 0), (3, 64))
    >>> target.reference(20).x.value.shape
    (64,)
    """
    if name not in names():
        closest = get_close_matches(str(name), names(), n=1, cutoff=0.0)[0]
        raise ValueError(f"there is no target {name!r}: the closest is {closest!r}, of {', '.join(names())}")
    references, _ = stored.read(name)
    if name in ANALYTIC:
        build, description = ANALYTIC[name]
        potential, law = build()
        return BenchmarkTarget(name, potential, LEVELS, references, law.sample, description, LICENCE)
    learned = LEARNED[name]
    return BenchmarkTarget(
        name, learned.build(), learned.levels, references, None, learned.description, LICENCE + learned.data
    )


def overview() -> str:
    """Return a table of all targets in Markdown, a row for each."""
    lines = ["| target | what it is | dimensions | levels | modes | condition | reference |", "|---" * 7 + "|"]
    for name in names():
        target = load(name)
        cards = [target.card(level) for level in target.levels]
        conditions = [f"{card.condition_number:.2g}" for card in cards]
        least = min(card.effective_draws for card in cards)
        made = cards[-1].made if np.isinf(least) else f"{cards[-1].made}: {least:.0f} effective draws or more"
        levels = ", ".join(map(str, target.levels))
        row = (
            f"`{name}`",
            target.description,
            cards[0].dimension,
            levels,
            cards[-1].modes,
            ", ".join(conditions),
            made,
        )
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)
