"""Claim: which kernel is best depends on the target and its noise level, and one protocol tells which for any seed.

    python -m benchmarks leaderboard [--kernels hmc nuts ...] [--targets mixture_16 ...] [--gradients 2000] [--seeds 3]

Every kernel of ``bridges.bench`` has the same budget of gradients per chain, counted at the density, on every target of
``ppl_diffusion.targets``, at its noise levels, from draws of the level and from draws of the next noisier one. Reported
are effective sample sizes for 1,000 gradients, the share of cells in which the bias squared stays under .01, errors of
the weights of modes, and whether the ranking changes with the seed. Targets of 500 coordinates or more have an eighth
of the budget. Parts are kept: several processes may each make some kernels or targets in the same ``--runs``, and the
full command collects them. ``--collect`` makes nothing and takes the kernels whose parts are there for every target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from benchmarks.harness import Record, check_choice, say
from bridges.bench import Plan, contenders, leaderboard, load_targets, stability, sweep
from bridges.bench.parts import part
from bridges.bench.pictures import plot_bias, plot_levels, plot_map
from bridges.bench.results import read, write
from bridges.bench.summary import Figure, common_cells
from bridges.ray.workers import shared
from ppl_diffusion import targets as catalogue

QUICK = {
    "kernels": ["mala", "hmc"],
    "targets": ["mixture_2", "ring_bar"],
    "gradients": 400,
    "seeds": 1,
    "levels": 1,
    "chains": 16,
}
SHOWN = ("hmc", "hmc-10", "mala", "nuts", "mclmc-tuner", "ghmc-meads", "barker", "ula")
"""Kernels of the pictures of lines, where they were run."""
PANELS = ("mixture_2", "mixture_16", "inpainting", "ring_bar", "ill_conditioned_64", "mixture_64")
"""Targets of the pictures of lines, where they were run."""


def main(
    record: Record,
    kernels: Annotated[list[str] | None, typer.Option(help="All of them by default.")] = None,
    targets: Annotated[list[str] | None, typer.Option(help="All of them by default.")] = None,
    gradients: Annotated[int, typer.Option(help="Budget per chain.")] = 2000,
    seeds: int = 3,
    levels: Annotated[int, typer.Option(help="Number of noise levels of each target.")] = 3,
    chains: int = 32,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work, by Ray.")] = 1,
    collect: Annotated[bool, typer.Option("--collect", help="Take what is there.")] = False,
) -> None:
    """Run the sweep and write the leaderboard."""
    known = contenders()
    names, places = kernels or list(known), targets or list(catalogue.names())
    check_choice("--kernels", names, known)
    check_choice("--targets", places, catalogue.names())
    plan = Plan(gradients=gradients, seeds=seeds, levels=levels, chains=chains)
    folder = record.runs / "leaderboard"
    if collect:
        made = [name for name in names if all(part(folder, place, name).is_file() for place in places)]
        if not made:
            raise ValueError(f"{folder} has no kernel with parts of all targets: name fewer --targets")
        data = read([part(folder, place, name) for place in places for name in made])
    else:
        with shared(workers) as spread:
            chosen = [known[name] for name in names]
            data = sweep(chosen, load_targets(places), plan, folder, tell=say, spread=spread)
    write(data, record.results / "leaderboard.nc")
    content = summarised(data, {name: known[name].words for name in data.contender.values.tolist()})
    record.write("leaderboard", content)
    for name, figure in pictures(data).items():
        record.draw(f"leaderboard_{name}", figure, dpi=120)
    say(leaderboard(data).to_string())


def pictures(data: xr.Dataset) -> dict[str, Any]:
    """Return the pictures by name."""
    lines, panels = _among(SHOWN, data.contender.values), _among(PANELS, data.target.values)
    return {
        "bias": plot_bias(data, contenders=lines, targets=panels),
        "levels": plot_levels(data, contenders=lines, targets=panels),
        "map": plot_map(data),
    }


def _among(wished: Sequence[str], there: Any) -> list[str]:
    found = [name for name in wished if name in there]
    return found or [str(name) for name in there[:6]]


def summarised(data: xr.Dataset, words: dict[str, str]) -> dict[str, Any]:
    """Return the figures of a sweep as JSON data: rows of the leaderboard, the best kernel of each target, the
    stability of the ranking, and what was run."""
    table = leaderboard(data)
    rows = {
        str(name): {column: _figure(table.loc[name, column]) for column in table.columns} | {"words": words[str(name)]}
        for name in table.index
    }
    common = common_cells(data.value).any(("start", "seed"))
    complete = int((~data.value.sel(score="gradients").isnull()).sum())
    cells = int(np.prod([data.sizes[d] for d in ("target", "contender", "difficulty", "start", "seed")]))
    return {
        "rows": rows,
        "targets": {str(name): _best(data.sel(target=[name])) for name in data.target.values},
        "stability": stability(data)._asdict(),
        "gradients": int(data.budget.max()),
        "seeds": data.sizes["seed"],
        "levels": data.sizes["difficulty"],
        "cells": {"there": complete, "all": cells},
        "compared": {"there": int(common.sum()), "all": int(common.size)},
        "minutes": data.attrs["seconds"] / 60,
    }


def _best(data: xr.Dataset) -> dict[str, Any]:
    """Return the two best kernels of one target by ESS, and the one of the least bias from a cold start, of those that
    have all its cells."""
    whole = data.value.sel(score="gradients").notnull().all(["target", "difficulty", "start", "seed"])
    there = leaderboard(data.isel(contender=np.flatnonzero(whole.values)) if bool(whole.any()) else data)
    bias = sorted(there.index, key=lambda name: there.loc[name, "bias, cold"].value)
    return {
        "best": str(there.index[0]),
        "ESS": _figure(there.iloc[0]["ESS"]),
        "second": str(there.index[min(1, len(there) - 1)]),
        "second ESS": _figure(there.iloc[min(1, len(there) - 1)]["ESS"]),
        "least bias": str(bias[0]),
        "bias": _figure(there.loc[bias[0], "bias, cold"]),
        "modes": _figure(there.loc[bias[0], "modes, cold"]),
        "kernels": len(there),
        "levels": [int(level) for level in data.level.values[0]],
    }


def _figure(figure: Figure) -> dict[str, float | None]:
    """Return a figure as JSON has it: None for what is not a finite number."""
    return {
        "mean": figure.value if np.isfinite(figure.value) else None,
        "se": figure.error if np.isfinite(figure.error) else None,
    }
