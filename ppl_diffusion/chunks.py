"""Evaluation in chunks: a batch that does not fit the caches of a processor, or the memory of a device, is split.

How many points go at once is a rule and not a race, since rounding may depend on it and the same seed must give the
same trace: on a processor as many as make up about 200,000 coordinates, on an accelerator all of them.
:meth:`Chunks.tune` measures what is fastest where it matters. Chunks are equal up to one point.

A device that runs out of memory is asked for half as much from then on, with a line that says so. On CUDA evaluation is
:func:`precise`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .networks import EnergyMLP, EnergyUNet
from .recording import RECORDED, Recorder

COORDINATES = 200_000
"""In a chunk on a processor: pictures of 3x32x32 went fastest 64 at a time, of 3x64x64 16 at a time."""

SMALLEST = 8
"""Points in the smallest chunk that is worth trying."""

Call = Callable[[slice], tuple[Tensor, ...]]
"""Energies ``(chunk,)`` of some of the points, and whatever else is led by them, such as gradients."""


class MemoryWarning(UserWarning):
    """A device ran out of memory, and evaluation went on in smaller chunks."""


class Chunks:
    """How a network is evaluated on the device that it is on, shared by all of its conditions.

    Attributes:
        launch: calls what is evaluated; on CUDA it replays what it has recorded, of networks of this library unless
            ``launch.most`` says otherwise.

    Args:
        coordinates: of one point.
        network: what is evaluated.
    """

    def __init__(self, coordinates: int, network: nn.Module) -> None:
        self.coordinates, self.network = coordinates, network
        self.launch = Recorder(network, most=RECORDED if type(network) in (EnergyMLP, EnergyUNet) else 0)
        self._sizes: dict[torch.device, int | None] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def size(self) -> int | None:
        """Most points that are evaluated at once there; None for all."""
        rule = max(SMALLEST, COORDINATES // self.coordinates) if self.device.type == "cpu" else None
        return self._sizes.get(self.device, rule)

    @size.setter
    def size(self, size: int | None) -> None:
        self._sizes[self.device] = size

    def evaluate(self, call: Call, points: int) -> tuple[Tensor, ...]:
        """``call`` on all points, ``0`` to ``points - 1``, some at a time.

        Raises:
            torch.OutOfMemoryError: a single point does not fit.
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
        """Measure sizes from ``points`` down by halves, and keep the fastest.

        Returns:
            Seconds for all points by size, the best of three runs each: on CUDA the second one records.
        """
        sizes = [points]
        while sizes[-1] >= 2 * SMALLEST:
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
        begun = time.perf_counter()
        with precise(self.device):
            _in_chunks(call, points, size)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

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
    """Convolutions on CUDA in the precision of their parameters, and alike every time; torch rounds them to TF32 and
    adds in any order by default.

    Rounded energies move acceptance probabilities. Whoever wants TF32 says so as for products,
    ``torch.backends.cuda.matmul.allow_tf32 = True``.
    """
    if device.type != "cuda":
        yield
        return
    with _switches:
        yield


class _Switches:
    """The switches of :func:`precise`, which belong to the process: the first thread in sets them, and the last one out
    puts them back."""

    def __init__(self) -> None:
        self.lock, self.inside, self.undo = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.undo.enter_context(_reproducible(torch.backends.cudnn))
                self.undo.enter_context(_unrounded(torch.backends.cudnn))
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.undo.close()


_switches = _Switches()


@contextmanager
def _reproducible(convolutions: Any) -> Iterator[None]:
    before = {"deterministic": convolutions.deterministic, "benchmark": convolutions.benchmark}
    convolutions.deterministic, convolutions.benchmark = True, False
    try:
        yield
    finally:
        for switch, value in before.items():
            setattr(convolutions, switch, value)


@contextmanager
def _unrounded(convolutions: Any) -> Iterator[None]:
    switch, exact = "allow_tf32", cast(Any, False)
    try:
        before, products = convolutions.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the caller has used torch's newer switches, beside which these cannot be read
        convolutions, switch, exact = convolutions.conv, "fp32_precision", "ieee"
        before, products = convolutions.fp32_precision, torch.backends.cuda.matmul.fp32_precision == "tf32"
    if before == exact or products:
        yield
        return
    setattr(convolutions, switch, exact)
    try:
        yield
    finally:
        setattr(convolutions, switch, before)


def _in_chunks(call: Call, points: int, size: int) -> tuple[Tensor, ...]:
    count = max(1, -(-points // max(size, 1)))
    edges = [points * i // count for i in range(count + 1)]
    parts = [call(slice(a, b)) for a, b in pairwise(edges)]
    if count == 1:
        return parts[0]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
