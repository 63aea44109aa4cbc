"""Evaluation in chunks: a batch is split where it exceeds the caches of a CPU or the memory of a GPU.

The chunk size follows a fixed rule rather than a timing, because rounding may depend on it and the same seed must give
the same trace: about 200,000 coordinates on a CPU, the whole batch on a GPU. :meth:`Chunks.tune` measures the fastest
size instead. The sizes of the chunks of a batch differ by at most one point.

When a device runs out of memory, the chunk size is halved from then on, with a warning. On CUDA evaluation runs in the
context :func:`precise`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .cuda_graphs import RECORDED, Recorder

CPU_CHUNK_COORDINATES = 200_000
"""Coordinates of a chunk on a CPU: 65 pictures of 3x32x32, or 16 of 3x64x64, close to the fastest in most runs."""

SMALLEST_CHUNK = 8
"""Fewest points of a chunk by the rule on a CPU and in :meth:`Chunks.tune`."""

Call = Callable[[slice], tuple[Tensor, ...]]
"""Maps a slice of the points to tensors whose first axis is the chunk: energies ``(chunk,)``, gradients and so on."""


class MemoryWarning(UserWarning):
    """A device ran out of memory, and evaluation continued in smaller chunks."""


class Chunks:
    """Chunked evaluation of a network on its device, shared by all conditions of a model.

    Attributes:
        launch: the recorder of CUDA graphs that calls the network.

    Args:
        coordinates: number of coordinates of one point.
        network: the network that is evaluated.
        record: whether its calls on CUDA are recorded; ``EnergyModel.record_calls`` changes that.
    """

    def __init__(self, coordinates: int, network: nn.Module, *, record: bool = False) -> None:
        self.coordinates, self.network = coordinates, network
        self.launch = Recorder(network, most=RECORDED if record else 0)
        self._sizes: dict[torch.device, int | None] = {}

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def size(self) -> int | None:
        """Most points that are evaluated at once on the current device; None for the whole batch."""
        rule = max(SMALLEST_CHUNK, CPU_CHUNK_COORDINATES // self.coordinates) if self.device.type == "cpu" else None
        return self._sizes.get(self.device, rule)

    @size.setter
    def size(self, size: int | None) -> None:
        self._sizes[self.device] = size

    def evaluate(self, call: Call, points: int) -> tuple[Tensor, ...]:
        """Call ``call`` on slices that cover ``0`` to ``points - 1``, and concatenate the results.

        Raises:
            torch.OutOfMemoryError: a single point does not fit into memory.
        """
        while True:
            size = min(points, self.size or points)
            try:
                with precise(self.device):
                    return _in_chunks(call, points, size)
            except torch.OutOfMemoryError:
                if size <= 1:
                    raise
                self._shrink(size)

    def tune(self, call: Call, points: int) -> dict[int, float]:
        """Time chunk sizes from ``points`` down, each half of the one before, and keep the fastest.

        Returns:
            Seconds for all points by chunk size, the fastest of three runs each (on CUDA the second run records).
        """
        sizes = [points]
        while sizes[-1] >= 2 * SMALLEST_CHUNK:
            sizes.append(-(-sizes[-1] // 2))
        seconds = {}
        for size in sizes:
            try:
                seconds[size] = min(self._seconds(call, points, size) for _ in range(3))
            except torch.OutOfMemoryError:
                self._shrink(size)
        self.size = min(seconds, key=seconds.__getitem__) if seconds else self.size
        return seconds

    def _seconds(self, call: Call, points: int, size: int) -> float:
        start = time.perf_counter()
        with precise(self.device):
            _in_chunks(call, points, size)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _shrink(self, size: int) -> None:
        self.size = max(1, size // 2)
        self.launch.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"{self.device} ran out of memory for {size} points at once: going on with {self.size}, nothing is lost",
            MemoryWarning,
            stacklevel=3,
        )


@contextmanager
def precise(device: torch.device) -> Iterator[None]:
    """Context in which networks compute in the precision of their parameters, and CUDA convolutions deterministically.

    ``torch.autocast`` is switched off. By default torch rounds CUDA convolutions to TF32 and may sum in any order;
    rounding energies changes acceptance probabilities. To allow TF32 nevertheless, set it for matrix products:
    ``torch.backends.cuda.matmul.allow_tf32 = True``.
    """
    known = torch.amp.is_autocast_available(device.type)
    with (
        torch.autocast(device.type, enabled=False) if known else nullcontext(),
        _precise_convolutions if device.type == "cuda" else nullcontext(),
    ):
        yield


class _PreciseConvolutions:
    """The settings of :func:`precise`. They are global to the process: the first thread that enters sets them, and the
    last thread that leaves restores them."""

    def __init__(self) -> None:
        self.lock, self.inside, self.undo = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                with ExitStack() as undo:
                    undo.enter_context(_deterministic(torch.backends.cudnn))
                    undo.enter_context(_without_tf32(torch.backends.cudnn))
                    self.undo = undo.pop_all()
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.undo.close()


_precise_convolutions = _PreciseConvolutions()


@contextmanager
def _deterministic(cudnn: Any) -> Iterator[None]:
    before = {"deterministic": cudnn.deterministic, "benchmark": cudnn.benchmark}
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        for switch, value in before.items():
            setattr(cudnn, switch, value)


@contextmanager
def _without_tf32(cudnn: Any) -> Iterator[None]:
    switch, exact = "allow_tf32", cast(Any, False)
    try:
        before, products = cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the caller has set torch's newer fp32_precision, which makes allow_tf32 unreadable
        cudnn, switch, exact = cudnn.conv, "fp32_precision", "ieee"
        before, products = cudnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision == "tf32"
    if before == exact or products:
        yield
        return
    setattr(cudnn, switch, exact)
    try:
        yield
    finally:
        setattr(cudnn, switch, before)


def _in_chunks(call: Call, points: int, size: int) -> tuple[Tensor, ...]:
    count = max(1, -(-points // max(size, 1)))
    edges = [points * i // count for i in range(count + 1)]
    parts = [call(slice(a, b)) for a, b in pairwise(edges)]
    if count == 1:
        return parts[0]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
