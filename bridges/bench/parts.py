"""The grid of contenders, targets, levels, starts and seeds: made part by part, gone on from, and read as one dataset.

A part is one contender on one target. It is a file of its own that appears when it is complete, so that several
processes may make the parts of one folder, and an interrupted sweep goes on. A compiled contender serves all targets of
one size.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_diffusion import targets as catalogue
from ppl_diffusion.files import versions
from ppl_diffusion.targets import BenchmarkTarget

from .contenders import Contender
from .counting import Counted
from .protocol import BudgetError, Walk, block_size, walk
from .results import opened, read, write
from .runners import JaxRunner, Runner, WalkerRunner
from .samplers import Sampler
from .scores import BIASES, REPLICATES, Scores, score

STARTS = ("warm", "cold")
"""From draws of the level; from draws of the next noisier level of the target."""

GRID = 64
"""Number of counts at which curves of the bias are read, evenly in their logarithm from a fiftieth of the budget."""

LARGE = 500
"""Number of coordinates from which on a target has an eighth of the budget: its evaluations take so much longer."""


@dataclass(frozen=True)
class Plan:
    """What is compared, and with what effort.

    Attributes:
        gradients: budget per chain, adaptation included; an eighth of it for targets of ``LARGE`` coordinates.
        seeds: number of seeds.
        chains: number of chains of a run.
        levels: number of noise levels of each target: the noisiest, the cleanest, and those between; 1 for the middle.

    Raises:
        ValueError: a number is too small.
    """

    gradients: int = 2000
    seeds: int = 3
    chains: int = 32
    levels: int = 3

    def __post_init__(self) -> None:
        for name, least in {"gradients": 1, "seeds": 1, "chains": 4, "levels": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}: give --{name} {least}")

    def budget(self, target: BenchmarkTarget) -> int:
        """Gradients per chain on a target."""
        return self.gradients // (8 if size_of(target) >= LARGE else 1)

    def levels_of(self, target: BenchmarkTarget) -> tuple[int, ...]:
        """Levels of a target, noisiest first; the middle one if there is one."""
        known = target.levels
        if self.levels == 1:
            return known[len(known) // 2 :][:1]
        return tuple(known[i] for i in np.unique(np.linspace(0, len(known) - 1, self.levels).round().astype(int)))

    def grid(self, budget: int) -> np.ndarray:
        """Gradients at which the bias is read."""
        return np.geomspace(max(budget / 50, 1), budget, GRID)


def size_of(target: BenchmarkTarget) -> int:
    """Number of coordinates of a point."""
    return math.prod(target.potential.event_shape)


def sweep(
    contenders: Sequence[Contender],
    targets: Sequence[BenchmarkTarget],
    plan: Plan,
    folder: Path,
    *,
    tell: Callable[[str], None] = lambda line: None,
    spread: Callable[..., Iterable[Any]] = map,
) -> xr.Dataset:
    """Make the parts that are not in the folder yet, and return all of them as one dataset.

    Args:
        contenders: what competes.
        targets: on what.
        plan: with what effort.
        folder: of the parts; made if it is not there.
        tell: is given a line for every part.
        spread: what makes the parts: called as ``map`` with a function and groups of parts. The ``map`` of
            ``bridges.ray.Workers`` shares them among machines that have ``folder`` in common.

    Returns:
        As :func:`read`.

    Raises:
        ValueError: a part was made with other settings or is half-written; a contender or target does not fit.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(t, c) for t in targets for c in contenders if not _is_made(part(folder, t.name, c.name), t, c, plan)]
    todo.sort(key=lambda pair: (size_of(pair[0]), pair[1].name))
    groups = [list(group) for _, group in groupby(todo, lambda pair: (size_of(pair[0]), pair[1].name))]
    for lines in spread(partial(_make, plan=plan, folder=folder, tell=tell if spread is map else None), groups):
        if spread is not map:
            for line in lines:
                tell(line)
    return read([part(folder, t.name, c.name) for t in targets for c in contenders])


def _make(
    group: Sequence[tuple[BenchmarkTarget, Contender]],
    *,
    plan: Plan,
    folder: Path,
    tell: Callable[[str], None] | None,
) -> list[str]:
    """Make the parts of one contender on targets of one size, for which it is compiled once; return a line for each."""
    target, contender = group[0]
    place, lines = Counted(target.potential), []
    runner = bound(contender, place, plan.budget(target))
    for target, contender in group:
        found = _run(runner, place, contender, target, plan)
        found.attrs["settings"] = json.dumps(_settings(target, contender, plan))
        write(found, part(folder, target.name, contender.name))
        lines.append(f"{target.name}, {contender.name}: {float(found.seconds_spent):.0f} s")
        if tell is not None:
            tell(lines[-1])
    return lines


def bound(contender: Contender, place: Counted, budget: int) -> Runner:
    """Return a contender bound to a place for targets, for a budget of gradients per chain."""
    made = contender.make(place.event_shape[0], budget)
    kind: Any = JaxRunner if isinstance(made, Sampler) else WalkerRunner
    return kind(made, place, block=block_size(budget))


def part(folder: Path, target: str, contender: str) -> Path:
    """File of a part."""
    return folder / f"{target}--{re.sub(r'[^a-zA-Z0-9-]+', '-', contender)}.nc"


def _settings(target: BenchmarkTarget, contender: Contender, plan: Plan) -> dict[str, Any]:
    return {**asdict(plan), "target": target.name, "contender": contender.words, "versions": versions()}


def _is_made(file: Path, target: BenchmarkTarget, contender: Contender, plan: Plan) -> bool:
    """Whether a part is there, made with the settings of this sweep."""
    if not file.is_file():
        return False
    stored, asked = json.loads(opened(file).attrs["settings"]), _settings(target, contender, plan)
    if stored != asked:
        changed = ", ".join(sorted(key for key in asked if asked[key] != stored.get(key)))
        raise ValueError(
            f"{file}, of an earlier run, was made with other {changed}: remove {file.parent}, or give another folder"
        )
    return True


def _run(runner: Runner, place: Counted, contender: Contender, target: BenchmarkTarget, plan: Plan) -> xr.Dataset:
    """Return all cells of a part."""
    begun, budget, levels = time.perf_counter(), plan.budget(target), plan.levels_of(target)
    place.seat(target.potential)
    grid, cells = plan.grid(budget), {}
    for d, level in enumerate(levels):
        groups = [(start, seed) for start in STARTS for seed in range(plan.seeds)]
        for where, walked in _walks(runner, place, contender, target, plan, level, groups):
            if walked is not None:
                cells[(d, *where)] = score(walked, target, level, grid=grid, seed=where[1])
    found = _dataset(cells, len(levels), plan).expand_dims(target=[target.name], contender=[contender.name])
    return found.assign(
        grid=(("target", "point"), grid[None]),
        level=(("target", "difficulty"), np.array(levels)[None]),
        budget=("target", [budget]),
        seconds_spent=time.perf_counter() - begun,
    )


def _walks(
    runner: Runner,
    place: Counted,
    contender: Contender,
    target: BenchmarkTarget,
    plan: Plan,
    level: int,
    groups: list[tuple[str, int]],
) -> Iterator[tuple[tuple[int, int], Walk | None]]:
    """Yield the walk of each group, by the indices of its start and seed; None if its budget is too small.

    Groups move in lockstep where the contender can.
    """
    chains = contender.chains or plan.chains
    draw = {"warm": target.draws, "cold": target.cold}
    starts = np.stack([draw[start](chains, level=level, seed=1000 + seed) for start, seed in groups])
    batches = [range(len(groups))] if isinstance(runner, JaxRunner) else [range(i, i + 1) for i in range(len(groups))]
    for batch in batches:
        try:
            budget = plan.budget(target)
            walks: Sequence[Walk | None] = walk(
                runner, place, starts[list(batch)], level=level, gradients=budget, seed=batch[0], name=contender.name
            )
        except BudgetError:
            if contender.own:
                raise
            walks = [None] * len(batch)
        for i, walked in zip(batch, walks, strict=True):
            yield (STARTS.index(groups[i][0]), groups[i][1]), walked


def _dataset(cells: dict[tuple[int, int, int], Scores], levels: int, plan: Plan) -> xr.Dataset:
    """Return the scores of the cells of a part; NaN for cells without."""
    shape = levels, len(STARTS), plan.seeds
    names = sorted({name for each in cells.values() for name in each.values}) or ["gradients"]
    values, again = np.full((*shape, len(names)), np.nan), np.full((*shape, len(names), REPLICATES), np.nan)
    curves = np.full((2, *shape, len(BIASES), GRID), np.nan)
    for where, found in cells.items():
        values[where] = [found.values[name] for name in names]
        again[where] = [found.replicates[name] for name in names]
        curves[(0, *where)], curves[(1, *where)] = found.curves, found.curve_errors
    dims = ("difficulty", "start", "seed")
    return xr.Dataset(
        {
            "value": ((*dims, "score"), values),
            "replicates": ((*dims, "score", "replicate"), again.astype(np.float32)),
            "curve": ((*dims, "bias", "point"), curves[0].astype(np.float32)),
            "curve_error": ((*dims, "bias", "point"), curves[1].astype(np.float32)),
        },
        coords={
            "difficulty": np.arange(levels),
            "start": list(STARTS),
            "seed": np.arange(plan.seeds),
            "score": names,
            "bias": list(BIASES),
        },
    )


def load_targets(names: Sequence[str]) -> list[BenchmarkTarget]:
    """Return targets by name.

    Raises:
        ValueError: there is no target of a name.
    """
    return [catalogue.load(name) for name in names]
