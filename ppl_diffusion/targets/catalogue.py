"""The benchmark targets by name."""

from __future__ import annotations

from difflib import get_close_matches

from . import stored
from .analytic import ANALYTIC, LEVELS
from .benchmark import BenchmarkTarget

LICENCE = "Apache-2.0"


def names() -> tuple[str, ...]:
    """Return the names of the benchmark targets.

    >>> len(names()) >= 11, "mixture_64" in names()
    (True, True)
    """
    return tuple(ANALYTIC)


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
    build, description = ANALYTIC[name]
    potential, law = build()
    return BenchmarkTarget(name, potential, LEVELS, references, law.sample, description, LICENCE)
