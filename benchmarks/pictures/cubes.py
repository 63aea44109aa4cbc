"""Claim: with the same network, annealed HMC puts cubes at every position that was asked for more often than reverse
diffusion does, and without a number tuned by hand.

    python -m benchmarks cubes [--counts 1 3 5] [--settings equal] [--samplers reverse MALA HMC "weighted HMC"]

The target is a conjunction of the conditions ``load("cubes").given(x=, y=)`` at one to five positions, or their plain
product. The positions are those of held-out rendered scenes. A detector (``benchmarks.cube_factory.detector``) decides
whether every position has a cube within a distance of .06 of the picture's side. Three settings:

    equal   every level, one HMC step of three leapfrogs, or three Langevin steps: 400 evaluations
    long    every level, three times as many steps: 1,000 evaluations
    paper   the noisier half of the levels, 10 HMC steps of three leapfrogs, or 20 Langevin steps

On arrival at a level every MCMC walk first takes the reverse-diffusion proposal. Step sizes are adapted. Reverse
diffusion alone costs one evaluation per level. Weighted HMC resamples from level 97 (noisier betas of the schedule are
clipped) to 20, where this network's energies agree between levels, and not below. Walks of a product, whose exponents
do not sum to one, start at level 90, since noisier levels would throw them far out. Pictures are kept, so a run can be
resumed; results whose pictures are missing are left as they are. Standard errors are over layouts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product as product_of
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure

from benchmarks.cube_factory.detector import Detector, load_detector, located, matched, matched_exactly
from benchmarks.harness import Record, check_choice, say, write_arrays
from benchmarks.pictures.grid import draw_grid
from bridges.blackjax import HMC, MALA, UHMC, ULA
from ppl_diffusion import (
    EnergyModel,
    Kernel,
    Ladder,
    Potential,
    Trace,
    anneal,
    conjunction,
    load,
    product,
    reverse_diffusion,
)

CUBES = load("cubes")
LAYOUTS = (
    ((0.53, 0.13), (0.70, 0.46), (0.74, 0.32), (0.18, 0.72), (0.36, 0.51)),
    ((0.64, 0.18), (0.31, 0.86), (0.14, 0.60), (0.32, 0.32), (0.77, 0.42)),
    ((0.63, 0.17), (0.41, 0.52), (0.18, 0.41), (0.82, 0.69), (0.61, 0.79)),
    ((0.54, 0.79), (0.29, 0.44), (0.39, 0.17), (0.88, 0.19), (0.83, 0.46)),
    ((0.26, 0.28), (0.44, 0.44), (0.83, 0.68), (0.75, 0.38), (0.23, 0.87)),
    ((0.67, 0.55), (0.75, 0.18), (0.50, 0.27), (0.31, 0.30), (0.25, 0.67)),
    ((0.73, 0.33), (0.13, 0.65), (0.37, 0.82), (0.80, 0.48), (0.40, 0.53)),
    ((0.20, 0.67), (0.16, 0.26), (0.67, 0.80), (0.47, 0.68), (0.85, 0.19)),
)
"""Positions in the first eight held-out scenes of five cubes; a target of n cubes uses the first n of a layout."""
LEVELS = len(CUBES.schedule)
HALF = LEVELS // 2
LADDERS = {
    "equal": {1: Ladder.full(CUBES.schedule, steps=3), 3: Ladder.full(CUBES.schedule, steps=1)},
    "long": {1: Ladder.full(CUBES.schedule, steps=9), 3: Ladder.full(CUBES.schedule, steps=3)},
    "paper": {
        1: Ladder.full(CUBES.schedule, steps=(20,) * HALF + (0,) * (LEVELS - HALF)),
        3: Ladder.full(CUBES.schedule, steps=(10,) * HALF + (0,) * (LEVELS - HALF)),
    },
}
"""Ladders by setting and number of leapfrogs per step."""
LATER = 10_000
"""Added to the seed of a second walk, which would otherwise reuse the random numbers of the first one."""
WEIGHED = (97, 20)
"""Noisiest and cleanest level of the walk that weighted HMC resamples."""
SOUND = 90
"""The noisiest level of walks of a product."""
KERNELS: dict[str, Any] = {"ULA": ULA(), "MALA": MALA(), "UHMC": UHMC(), "HMC": HMC(), "weighted HMC": HMC()}
SHOWN = ("reverse", "MALA", "HMC", "weighted HMC")
"""Samplers that run by default, and that the picture shows."""
TARGETS = ("conjunction", "product")
QUICK = {"counts": [1], "samplers": ["reverse"], "layouts": 1, "chains": 2}


def target(
    positions: Sequence[tuple[float, float]], kind: str = "conjunction", *, model: EnergyModel = CUBES
) -> Potential:
    """Return the density of pictures with cubes at all of the positions."""
    parts = [model.given(x=x, y=y) for x, y in positions]
    return conjunction(parts, model) if kind == "conjunction" else product(parts)


def sample(potential: Potential, sampler: str, setting: str, *, chains: int, seed: int) -> list[Trace]:
    """Draw pictures with one of the samplers, in one walk or in two consecutive ones; the last one has the pictures."""
    top = LEVELS - 1 if np.isclose(potential.exponent, 1) else SOUND
    if sampler == "reverse":
        levels = part(Ladder.full(CUBES.schedule), top, 0)
        return [reverse_diffusion(potential, ladder=levels, chains=chains, seed=seed)]
    kernel: Kernel = KERNELS[sampler]
    ladder = part(LADDERS[setting][kernel.leapfrogs], top, 0)  # type: ignore[attr-defined]
    if not sampler.startswith("weighted"):
        if ladder.steps_per_rung[-1]:
            return [anneal(potential, kernel, ladder=ladder, chains=chains, seed=seed, reverse_step=True)]
        # No kernel step at the clean levels, where the step size was not adapted: an unadjusted one ruins pictures.
        first = anneal(potential, kernel, ladder=part(ladder, top, HALF), chains=chains, seed=seed, reverse_step=True)
        begun, rest = first.positions[:, -1], part(ladder, HALF, 0)
        return [first, reverse_diffusion(potential, ladder=rest, chains=chains, seed=seed + LATER, init=begun)]
    upper, lower = part(ladder, *WEIGHED), part(ladder, WEIGHED[1], 0)  # the second begins where the first ended
    first = anneal(potential, kernel, ladder=upper, chains=chains, seed=seed, reverse_step=True, resample=0.5)
    begun = first.positions[:, -1]
    settings: dict[str, Any] = {"chains": chains, "seed": seed + LATER, "reverse_step": True, "init": begun}
    return [first, anneal(potential, kernel, ladder=lower, **settings)]


def part(ladder: Ladder, top: int, bottom: int) -> Ladder:
    """Return the rungs of a ladder from level ``top`` down to level ``bottom``, both included."""
    rungs = [
        (level, n) for level, n in zip(ladder.levels, ladder.steps_per_rung, strict=True) if bottom <= level <= top
    ]
    return Ladder(levels=tuple(level for level, _ in rungs), steps=tuple(n for _, n in rungs))


def record(traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """Return what is kept of a run: pictures ``(chains, 3, side, side)``, and statistics ``(rungs,)``."""
    stats = xr.concat([trace.stats for trace in traces], "rung")
    origin, ancestors = np.arange(stats.sizes["chain"]), []
    for row in stats.ancestor.to_numpy():
        origin = origin[row]
        ancestors.append(len(np.unique(origin)))
    return {
        "pictures": traces[-1].positions[:, -1].astype(np.float16),
        "level": stats.level.to_numpy(),
        "acceptance": stats.acceptance_rate.mean("chain").to_numpy(),
        "ess": stats.ess.to_numpy() / len(origin),
        "spread": stats.log_weight.std("chain").to_numpy(),
        "ancestors": np.array(ancestors),
        "evaluations": np.array(sum(trace.gradient_calls for trace in traces)),
    }


Cell = tuple[str, str, str, int]
"""Setting, target, sampler, number of cubes."""


def path(keep: Path, cell: Cell, layout: int) -> Path:
    """Return the file in which a run is kept."""
    setting, kind, sampler, count = cell
    setting = "any" if sampler == "reverse" else setting
    return keep / f"{setting}-{kind}-{sampler.replace(' ', '-')}-{count}-{layout}.npz"


def run(cells: Sequence[Cell], *, model: EnergyModel, keep: Path, layouts: int, chains: int) -> None:
    """Draw the missing pictures, layout by layout, so that at any time all cells have about as many layouts."""
    for layout in range(layouts):
        for cell in cells:
            setting, kind, sampler, count = cell
            file = path(keep, cell, layout)
            if file.is_file():
                with np.load(file) as stored:
                    there = len(stored["pictures"])
                if there != chains:
                    raise ValueError(f"{file} has {there} pictures, not {chains}: delete it, or give another --keep")
                continue
            potential = target(LAYOUTS[layout][:count], kind, model=model)
            kept = record(sample(potential, sampler, setting, chains=chains, seed=100 * count + layout))
            write_arrays(file, kept)
            say(f"layout {layout}: {setting}, {kind} of {count}, {sampler}")


def judge(cell: Cell, *, keep: Path, layouts: int, detector: Detector) -> dict[str, Any] | None:
    """Return accuracy and statistics of the walks over the layouts that were drawn; None if there are none."""
    exactly: list[float] = []
    accurate: list[float] = []
    walks = []
    for layout in range(layouts):
        file = path(keep, cell, layout)
        if not file.is_file():
            continue
        with np.load(file) as stored:
            kept = dict(stored)
        wanted = LAYOUTS[layout][: cell[3]]
        found = located(detector, kept["pictures"].astype(np.float32))
        accurate.append(float(np.mean([matched(centres, wanted) for centres in found])))
        exactly.append(float(np.mean([matched_exactly(centres, wanted) for centres in found])))
        walks.append(kept)
    if not walks:
        return None
    tested = cell[2] in KERNELS and KERNELS[cell[2]].adjusted
    return {
        "accuracy": _mean(accurate),
        "and no others": _mean(exactly),
        "pictures": sum(len(kept["pictures"]) for kept in walks),
        "evaluations": int(walks[0]["evaluations"]),
        "acceptance": float(np.nanmean([kept["acceptance"] for kept in walks])) if tested else None,
        "by level": _by_level(walks, ["acceptance"] if tested else []),
    }


def _by_level(walks: Sequence[Mapping[str, np.ndarray]], further: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return means over walks at some levels: spread of log-weights in nats, ESS share, distinct ancestors, ..."""
    keys = ["spread", "ess", "ancestors", *further]
    shown = [(i, level) for i, level in enumerate(walks[0]["level"]) if level % 10 == 0 or level > 96 or level < 6]
    # A second walk begins at the level where the first ended, without a change of level: the first one's row stays.
    shown = list({level: i for i, level in reversed(shown)}.items())[::-1]
    means = {str(level): {key: float(np.mean([walk[key][i] for walk in walks])) for key in keys} for level, i in shown}
    return {
        level: {key: round(mean, 3) for key, mean in row.items() if np.isfinite(mean)} for level, row in means.items()
    }


def _mean(values: Sequence[float]) -> dict[str, float]:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"mean": float(np.mean(values)), "se": float(error)}


def grid(keep: Path, setting: str, each: int = 3) -> Figure | None:
    """Draw ``each`` layouts for every number of cubes whose pictures are complete, a row per sampler; or None."""
    files = {
        (sampler, count, layout): path(keep, (setting, "conjunction", sampler, count), layout)
        for sampler in SHOWN
        for count in range(1, 6)
        for layout in range(each)
    }
    missing = {count for (_, count, _), file in files.items() if not file.is_file()}
    rows: dict[str, list[Any]] = {sampler: [] for sampler in SHOWN}
    for (sampler, count, layout), file in files.items():
        if count not in missing:
            with np.load(file) as stored:
                rows[sampler].append((stored["pictures"][0], LAYOUTS[layout][:count]))
    return draw_grid(rows) if rows[SHOWN[0]] else None


def main(
    record: Record,
    counts: Annotated[list[int], typer.Option(min=1, max=5, help="Numbers of cubes.")] = [1, 3, 5],  # noqa: B006
    settings: Annotated[list[str], typer.Option(help=f"Of {', '.join(LADDERS)}.")] = ["equal"],  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help=f"Of reverse, {', '.join(KERNELS)}.")] = list(SHOWN),  # noqa: B006
    targets: Annotated[list[str], typer.Option(help=f"Of {', '.join(TARGETS)}.")] = ["conjunction"],  # noqa: B006
    layouts: Annotated[int, typer.Option(min=1, max=len(LAYOUTS), help="Layouts of each number.")] = len(LAYOUTS),
    chains: Annotated[int, typer.Option(min=1, help="Pictures of each layout.")] = 8,
    model: Annotated[str, typer.Option(help="Or a weight file, of 64x64 pictures for example.")] = "cubes",
    device: Annotated[str, typer.Option(help="Where its network is.")] = "cpu",
    name: Annotated[str, typer.Option(help="Of the results: another one for another model.")] = "cubes",
    keep: Annotated[Path | None, typer.Option(help="Folder of what was drawn; NAME in --runs by default.")] = None,
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Draw nothing, judge what is kept.")] = False,
) -> None:
    """Draw pictures, judge them, and write the results."""
    check_choice("--settings", settings, LADDERS)
    check_choice("--samplers", samplers, ("reverse", *KERNELS))
    check_choice("--targets", targets, TARGETS)
    if model != "cubes" and name == "cubes":
        raise ValueError("results of another model are not those of cubes: give them a --name")
    kept = keep or record.runs / name
    kept.mkdir(parents=True, exist_ok=True)
    if not judge_only:
        asked = list(product_of(settings, targets, samplers, counts))
        run(asked, model=load(model).to(device), keep=kept, layouts=layouts, chains=chains)
    detector, found = load_detector(), record.read(name)
    for cell in product_of(LADDERS, TARGETS, ("reverse", *KERNELS), range(1, 6)):
        row = judge(cell, keep=kept, layouts=len(LAYOUTS), detector=detector)
        if row is not None:
            setting, kind, sampler, count = cell
            found.setdefault(setting, {}).setdefault(kind, {}).setdefault(sampler, {})[str(count)] = row
            say(f"{setting} {kind} {sampler} {count} {json.dumps(row['accuracy'])}")
    record.write(name, found)
    picture = grid(kept, settings[0])
    if picture is not None:
        record.draw(name, picture)
