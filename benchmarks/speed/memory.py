"""Resident memory of a long walk on many pictures (Linux)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from bridges.blackjax import HMC
from ppl_diffusion import EnergyFunction, Ladder, NoiseSchedule, Progress, anneal


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
        code = "import json; from benchmarks.speed.memory import resident; print(json.dumps(resident()))"
        told = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | setting, stdout=subprocess.PIPE, check=True
        )
        found[name] = json.loads(told.stdout)
    return found
