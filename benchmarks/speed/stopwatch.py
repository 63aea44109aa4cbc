"""Wall times that can be compared: of interleaved runs, each waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


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


def wait(device: str) -> None:
    """Wait until a CUDA device has finished its queued work; on a CPU return at once."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
