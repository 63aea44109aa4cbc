"""Claim: the walk costs what its network calls cost; kernels, weights, crossing and records add a few percent.

    python -m benchmarks overhead [--rounds 3]

Ratios of wall time within one run. The rounds of the runs are interleaved, and the fastest round of each is compared:

* annealed HMC with 64 chains on ``digits``, and with 16 on a product of five positions of ``cubes``, relative to a bare
  loop of the same torch gradient calls and to the evaluation pattern of the paper's released sampler (``L + 2``
  gradients a step, one accept decision for all chains); on ``digits`` also to plain Pyro HMC, one chain at a time;
* resident memory of 256 chains of 64x64 pictures along a hundred rungs (Linux);
* a gradient of that product by the number of chains, and in chunks relative to all chains at once;
* annealed HMC on the exact planar product in JAX, relative to a plain loop over jitted BlackJAX rungs on the same
  density in the same precision, and in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from benchmarks.harness import Record, check_choice, say
from benchmarks.speed.baselines import LEAPFROGS, paper_hmc, plain_blackjax, pyro_hmc
from benchmarks.speed.memory import memory
from benchmarks.speed.stopwatch import fastest, wait
from bridges.blackjax import HMC
from ppl_diffusion import EnergyModel, Ladder, Potential, SamplingWarning, anneal, load, product
from ppl_diffusion.potentials.planar import exact

PARTS = ("digits", "cubes", "memory", "oracle")
QUICK = {"only": ["oracle"], "rounds": 1, "chains": 100}
CHAINS, RUNGS, STEPS = 64, 2, 10  # the steps are the paper's for pictures


def walked(
    target: Potential,
    *,
    chains: int,
    rounds: int,
    device: str = "cpu",
    **others: Callable[[], Any],
) -> dict[str, Any]:
    """Return seconds of the walk on a torch potential and of the runs it is compared with, and their ratios."""
    ladder = Ladder.spaced(target.schedule, rungs=RUNGS, steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(chains, *target.event_shape, generator=generator, dtype=torch.float64).to(device)
    calls = len(ladder) * (1 + STEPS * LEAPFROGS) + LEAPFROGS  # and one recorded draw

    def walk() -> None:
        found = anneal(target, HMC(leapfrogs=LEAPFROGS), ladder=ladder, chains=chains, seed=0).gradient_calls
        assert found == calls, f"{found} calls where {calls} are due"

    def bare() -> None:
        for level in ladder.levels:
            for _ in range(1 + STEPS * LEAPFROGS + LEAPFROGS * (level == ladder.levels[-1])):
                target.value_and_grad(x, level=level)
        wait(device)

    def paper() -> None:
        for level in ladder.levels:
            paper_hmc(target, x, level, STEPS)
        wait(device)

    seconds = fastest(rounds, {"walk": walk, "bare": bare, "paper": paper, **others})
    steps = len(ladder) * STEPS
    return {
        "chains": chains,
        "gradient calls": calls,
        "seconds": seconds,
        "walk / bare gradient calls": seconds["walk"] / seconds["bare"],
        "paper's pattern / walk, per step": seconds["paper"] / steps / (seconds["walk"] / (steps + 1)),
    }


def digits(rounds: int) -> dict[str, Any]:
    """Time the walk on the digit model, compared with plain Pyro too."""
    target = load("digits").given(3)
    x = torch.randn(28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = walked(target, chains=CHAINS, rounds=rounds, pyro=lambda: pyro_hmc(target, x, 50, 4))
    each = found["seconds"]["walk"] / (CHAINS * (RUNGS * STEPS + 1))
    return found | {"plain Pyro / walk, per chain and step": found["seconds"]["pyro"] / 4 / each}


def five_cubes(model: EnergyModel) -> Potential:
    """Return a product of five positions (a conjunction would also pay, once, for the guard of its quotients)."""
    places = ((0.2, 0.35), (0.5, 0.5), (0.8, 0.35), (0.3, 0.75), (0.7, 0.75))
    return product([model.given(x=x, y=y) for x, y in places])


def cubes(rounds: int, *, model: EnergyModel, device: str = "cpu", chains: int = 16, most: int = 256) -> dict[str, Any]:
    """Time the walk with five conditions, and a gradient by the number of chains and by the chunk size."""
    target = five_cubes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        found = walked(target, chains=chains, rounds=rounds, device=device)
    by_batch = by_chains(target, most=most, device=device)
    by_chunk = model.tune(most)  # last, since it changes the chunk size of the model
    return found | {
        "milliseconds per chain": by_batch,
        "milliseconds per point, by chunk": {str(n): 1e3 * seconds / most for n, seconds in by_chunk.items()},
        "all at once / fastest chunk": max(by_chunk.items())[1] / min(by_chunk.values()),
    }


def by_chains(target: Potential, *, most: int, device: str = "cpu") -> dict[str, float]:
    """Return milliseconds per chain of a gradient of 1, 2, 4, ... up to ``most`` chains together."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(most, *target.event_shape, generator=generator, dtype=torch.float64).to(device)

    def gradient(count: int) -> Callable[[], Any]:
        def act() -> None:
            target.value_and_grad(x[:count], level=50)
            wait(device)

        return act

    seconds = fastest(3, {str(2**k): gradient(2**k) for k in range(most.bit_length())})
    return {count: 1e3 * least / int(count) for count, least in seconds.items()}


def oracle(rounds: int, chains: int = 2000) -> dict[str, Any]:
    """Return seconds of the walk on the exact planar product, and of plain loops over BlackJAX."""
    target = exact("ring", backend="jax") * exact("bar", backend="jax")
    ladder = Ladder.full(target.schedule, steps=10)
    kernel = HMC(step=0.03, leapfrogs=LEAPFROGS)
    runs = {
        "walk": lambda: anneal(target, kernel, ladder=ladder, chains=chains, seed=0),
        "plain loop": plain_blackjax(target, ladder, chains, precise=True),
        "plain loop, float32": plain_blackjax(target, ladder, chains, precise=False),
    }
    seconds = fastest(rounds, runs)
    return {
        "chains": chains,
        "gradients": chains * len(ladder) * 10 * LEAPFROGS,
        "seconds": seconds,
        "walk / plain loop": seconds["walk"] / seconds["plain loop"],
        "walk / plain loop, float32": seconds["walk"] / seconds["plain loop, float32"],
    }


def figures(content: Mapping[str, Any]) -> str:
    """Return the ratios and times of all parts as a table for a terminal."""
    rows = {
        f"{part}: {name}": f"{value:.3g}"
        for part, values in content.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if isinstance(value, float)
    }
    return pd.Series(rows, dtype=object).to_string()


def main(
    record: Record,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the fastest counts.")] = 3,
    only: Annotated[list[str], typer.Option(help="Parts to run; the others keep their figures.")] = list(PARTS),  # noqa: B006
    chains: Annotated[int, typer.Option(min=1, help="Chains of the exact product.")] = 2000,
) -> None:
    """Run all measurements, or those of ``--only``; print and write the ratios."""
    check_choice("--only", only, PARTS)
    content = record.read("overhead")
    parts: dict[str, Callable[[], Any]] = {
        "digits": lambda: digits(rounds),
        "cubes": lambda: cubes(rounds, model=load("cubes")),
        "memory": memory,
        "oracle": lambda: oracle(rounds, chains),
    }
    for name in PARTS:
        if name in only:
            content |= {name: parts[name](), "threads": torch.get_num_threads()}
            record.write("overhead", content)
    say(figures(content))
