"""Claim: the walk costs what its network calls cost; kernels, weights, crossing and records add a few percent.

    python -m benchmarks.speed.overhead [--rounds 3]

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

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import torch
from pyro.infer.mcmc import HMC as PyroHMC
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, write
from bridges.blackjax import HMC
from ppl_diffusion import (
    EnergyFunction,
    EnergyModel,
    Ladder,
    NoiseSchedule,
    Potential,
    Progress,
    SamplingWarning,
    anneal,
    load,
    product,
)
from ppl_diffusion.potentials.planar import exact

CHAINS, RUNGS, STEPS, LEAPFROGS, STEP = 64, 2, 10, 3, 0.05  # steps and leapfrogs are the paper's for pictures


def paper_hmc(potential: Potential, x: torch.Tensor, level: int, steps: int) -> torch.Tensor:
    """The paper's released sampler, defects included: momentum updated in place, one decision for all chains."""
    for _ in range(steps):
        momentum = torch.randn_like(x)
        before, gradient = potential.value_and_grad(x, level=level)
        moved, kinetic = x.clone(), (momentum**2).sum()
        for _ in range(LEAPFROGS):
            momentum -= 0.5 * STEP * gradient
            moved += STEP * momentum
            _, gradient = potential.value_and_grad(moved, level=level)
            momentum -= 0.5 * STEP * gradient
        after, _ = potential.value_and_grad(moved, level=level)
        if torch.log(torch.rand(())) < (before - after).sum() + 0.5 * (kinetic - (momentum**2).sum()):
            x = moved
    return x


def pyro_hmc(potential: Potential, x: torch.Tensor, level: int, steps: int) -> None:
    """Run Pyro's own HMC kernel on one chain from ``x (*event_shape)``."""
    kernel = PyroHMC(
        potential_fn=lambda params: potential.energy(params["x"], level=level),
        step_size=STEP,
        trajectory_length=STEP * (LEAPFROGS + 0.5),
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    kernel.initial_params = {"x": x}
    kernel.setup(warmup_steps=0)
    params = {"x": x}
    for _ in range(steps):
        params = kernel.sample(params)


def plain_blackjax(target: Potential, ladder: Ladder, chains: int, *, precise: bool) -> Callable[[], Any]:
    """Return a loop over jitted rungs of BlackJAX's HMC, without records and weights."""

    def rung(x: Any, key: Any, level: Any) -> Any:
        def log_density(x: Any) -> Any:
            return -target.energy(x, level=level)

        kernel = blackjax.hmc(log_density, 0.03, jnp.ones(2), LEAPFROGS)

        def step(states: Any, key: Any) -> Any:
            return jax.vmap(kernel.step)(jax.random.split(key, chains), states)[0], None

        return jax.lax.scan(step, jax.vmap(kernel.init)(x), jax.random.split(key, ladder.steps_per_rung[0]))[0].position

    compiled = jax.jit(rung)

    def loop() -> Any:
        with jax.enable_x64(precise):
            x = jax.random.normal(jax.random.key(0), (chains, 2))
            for level in ladder.levels:
                x = compiled(x, jax.random.key(level), level)
            return jax.block_until_ready(x)

    return loop


def fastest(rounds: int, runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return seconds of the fastest of ``rounds`` interleaved runs of each function, after one run that compiles."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, act in runs.items():
            begun = time.perf_counter()
            act()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return {name: min(values) for name, values in times.items()}


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


def resident(*, chains: int = 256, rungs: int = 100) -> dict[str, float]:
    """Return the resident memory, in MiB, of a walk of 64x64 pictures after a tenth of its rungs and at its end."""
    target = EnergyFunction(
        lambda x, level: 0.5 * (x**2).sum((-1, -2, -3)),
        schedule=NoiseSchedule.cosine(rungs),
        event_shape=(3, 64, 64),
        backend="torch",
    )
    pages: list[int] = []

    def tell(state: Progress) -> None:
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    ladder = Ladder.full(target.schedule, steps=1)
    trace = anneal(target, HMC(leapfrogs=1), ladder=ladder, chains=chains, seed=0, progress=tell)
    return {
        "after a tenth of the rungs": pages[rungs // 10] * resource.getpagesize() / 2**20,
        "after all rungs": pages[rungs - 1] * resource.getpagesize() / 2**20,
        "of one population": trace.positions.nbytes / 2**20,
        "recorded on the way": trace.stats.nbytes / 2**20,
    }


def memory() -> dict[str, dict[str, float]]:
    """Run :func:`resident` in separate processes: with the C library's allocator set to return freed blocks of 1 MiB
    and more to the system at once, and with its default, which may keep them in its heap."""
    found = {}
    for name, setting in (("given back", {"MALLOC_MMAP_THRESHOLD_": "1048576"}), ("default", {})):
        code = "import json; from benchmarks.speed.overhead import resident; print(json.dumps(resident()))"
        told = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | setting, stdout=subprocess.PIPE, check=True
        )
        found[name] = json.loads(told.stdout)
    return found


def wait(device: str) -> None:
    """Wait until a CUDA device has finished its queued work; on a CPU return at once."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


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


def main() -> None:
    """Run all measurements, or those of ``--only``; print and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=("digits", "cubes", "memory", "oracle"), default=None)
    options = parser.parse_args()
    kept = RESULTS / "overhead.json"  # parts that are not run keep their figures
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    parts: dict[str, Callable[[], Any]] = {
        "digits": lambda: digits(options.rounds),
        "cubes": lambda: cubes(options.rounds, model=load("cubes")),
        "memory": memory,
        "oracle": lambda: oracle(options.rounds),
    }
    for name, part in parts.items():
        if options.only is None or name in options.only:
            content |= {name: part(), "threads": torch.get_num_threads()}
            write("overhead", content)
    table = Table("figure", "value")
    for heading, values in content.items():
        if isinstance(values, dict):
            for name, value in values.items():
                if isinstance(value, float):
                    table.add_row(f"{heading}: {name}", f"{value:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main()
