"""Claim: two workers walk islands at .9 or more of twice the rate of one, and the trace is that of one process.

    python -m benchmarks islands [--islands 4] [--workers 2]

Annealed HMC on ``digits`` given a class, a network on one thread. A worker of Ray walks so many islands, and so many
workers at once walk as many each; the rounds are interleaved, and the fastest one of each is compared. A worker
compiles once in each round, which is among its time, and a single one has a single core, also for what compilers and
JAX do in several threads. The ratio is that of islands per second, over the number of workers; it is of use on a
machine that has a core for each of them and does nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import Record, say
from benchmarks.speed.stopwatch import fastest
from bridges.blackjax import HMC
from bridges.ray import Workers
from ppl_diffusion import Ladder, SamplingWarning, Trace, anneal, load

QUICK = {"islands": 1, "rounds": 1, "chains": 2, "rungs": 2}
STEPS, LEAPFROGS = 5, 3
CORES = sorted(os.sched_getaffinity(0)) if Path("/proc/self/task").is_dir() else []


def on_cores(count: int, function: Callable[[Any], Any], item: Any) -> Any:
    """Return ``function(item)``, for which the threads of this process share so many cores, on Linux."""
    for thread in os.listdir("/proc/self/task") if CORES else []:
        os.sched_setaffinity(int(thread), CORES[:count])
    return function(item)


def sharing(workers: Workers, cores: int) -> Callable[..., Any]:
    """Return the ``map`` of workers that share so many cores."""
    return lambda function, items: workers.map(partial(on_cores, cores, function), items)


def figures(content: Mapping[str, Any]) -> str:
    """Return what was measured in words."""
    seconds = content["seconds"]
    return (
        f"{content['workers']} workers: {content['rate']:.3f} of {content['workers']} times the rate of one "
        f"({seconds['one']:.3g} s for {content['islands']} islands, {seconds['all']:.3g} s for "
        f"{content['workers']} times as many); traces are the same: {content['same']}"
    )


def main(
    record: Record,
    islands: Annotated[int, typer.Option(min=1, help="Islands of a worker.")] = 4,
    workers: Annotated[int, typer.Option(min=2, help="Workers that are compared with one.")] = 2,
    chains: Annotated[int, typer.Option(min=1, help="Chains of an island.")] = 32,
    rungs: Annotated[int, typer.Option(min=2, help="Rungs of the ladder.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the fastest counts.")] = 3,
) -> None:
    """Time one worker and several, compare their trace with that of this process; print and write the ratio."""
    target = load("digits").given(3)
    ladder, before = Ladder.spaced(target.schedule, rungs=rungs, steps=STEPS), torch.get_num_threads()

    def walked(count: int, spread: Callable[..., Any] | None) -> Trace:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            kernel = HMC(leapfrogs=LEAPFROGS)
            return anneal(
                target, kernel, ladder=ladder, chains=count * chains, islands=count, spread=spread, draws=1, seed=0
            )

    torch.set_num_threads(1)
    try:
        with Workers(workers) as all_of_them, Workers(1) as one:
            seconds = fastest(
                rounds,
                {
                    "one": lambda: walked(islands, sharing(one, 1)),
                    "all": lambda: walked(workers * islands, sharing(all_of_them, workers)),
                },
            )
            there = walked(workers * islands, all_of_them.map)
        here = walked(workers * islands, None)
    finally:
        torch.set_num_threads(before)
    content = {
        "islands": islands,
        "workers": workers,
        "chains": chains,
        "rungs": rungs,
        "seconds": seconds,
        "rate": seconds["one"] / seconds["all"],
        "same": bool(np.array_equal(here.positions, there.positions) and here.stats.identical(there.stats)),
    }
    record.write("islands", content)
    say(figures(content))
