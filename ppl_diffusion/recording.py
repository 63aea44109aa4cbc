"""What a call launches on CUDA, recorded as a graph and launched again in one go.

The gradient of an energy is some hundreds of small kernels. A processor launches them more slowly than an accelerator
computes them, unless the batch is large. So a call is recorded when it is made for the second time with arguments of
the same kind, and replayed from then on: the same kernels, and the same values to the last bit. What cannot be recorded
(code that reads a value back, or sends one) is called as it is, and so are networks with hooks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COORDINATES = 6_000_000
"""Most of a batch that is recorded: a larger one keeps a device busy for longer than its launches take."""

KEPT = 16
"""Calls that are remembered."""

Function = Callable[..., tuple[Tensor, ...]]
"""Of tensors, reading nothing else that changes but the parameters of a network and generators."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    function: Function  # what it reads must live as long as the graph


class Recorder:
    """Calls functions of tensors; on CUDA it replays what it has recorded of a call like this one.

    Recordings follow parameters that change in place, and are made anew for parameters that have been moved or
    converted and for other switches of precision. They share their memory.

    Attributes:
        most: coordinates of the largest batch that is recorded; 0 for none.

    Args:
        network: what the functions call.
        generators: what they draw from, on the device of the network.
    """

    def __init__(self, network: nn.Module, generators: Sequence[torch.Generator] = ()) -> None:
        self.network, self.generators, self.most = network, tuple(generators), COORDINATES
        self._known: OrderedDict[Hashable, _Recorded | str] = OrderedDict()
        self._memory: Any = None
        self._done: Any = None
        self._lock = threading.RLock()

    def __reduce__(self) -> Any:
        return Recorder, (self.network, self.generators)

    def __call__(self, function: Function, *inputs: Tensor, kind: Hashable = None) -> tuple[Tensor, ...]:
        """``function(*inputs)``, whose first argument is the batch.

        Args:
            function: what is called.
            inputs: on the device of the network.
            kind: tells functions of the same name apart.
        """
        if inputs[0].device.type != "cuda" or inputs[0].numel() > self.most or torch.cuda.is_current_stream_capturing():
            return function(*inputs)
        with self._lock, torch.cuda.device(inputs[0].device):
            key = (function.__name__, kind, self._state(inputs))  # type: ignore[attr-defined]
            found = self._known.get(key)
            if found == "once":
                found = self._record(function, inputs)
            self._known[key] = found or "once"
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return self._replay(found, inputs) if isinstance(found, _Recorded) else function(*inputs)

    def clear(self) -> None:
        """Forget what was recorded, and give its memory back."""
        self._known.clear()
        self._memory = None

    def _state(self, inputs: Sequence[Tensor]) -> Hashable:
        """All that a recording takes for granted."""
        read = [*self.network.parameters(), *self.network.buffers()]
        return (
            tuple((x.shape, x.dtype) for x in inputs),
            tuple((x.data_ptr(), x.dtype, x.stride()) for x in read),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            *_switches(),
        )

    def _record(self, function: Function, inputs: Sequence[Tensor]) -> _Recorded | str:
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.network.modules()):
            return "never"
        graph, queue = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        held = tuple(x.detach().clone() for x in inputs)
        try:
            for generator in self.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                outputs = function(*held)
        except RuntimeError:  # torch.OutOfMemoryError is one
            return "never"
        finally:
            torch.cuda.set_stream(queue)  # a recording that fails stays in its own
        self._memory = graph.pool()
        return _Recorded(graph, held, outputs, function)

    def _replay(self, recorded: _Recorded, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        queue = torch.cuda.current_stream()
        if self._done is not None:  # recordings share their memory: one at a time, whoever asks
            queue.wait_event(self._done)
        for held, x in zip(recorded.inputs, inputs, strict=True):
            held.copy_(x.detach())
        recorded.graph.replay()
        outputs = tuple(output.clone() for output in recorded.outputs)
        self._done = queue.record_event()
        return outputs


def _switches() -> tuple[Any, ...]:
    """How convolutions and products are rounded, by whichever of torch's two sets of switches can be read."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        return convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark, convolutions.deterministic
    except RuntimeError:
        newer: Any = convolutions
        return newer.conv.fp32_precision, products.fp32_precision, convolutions.benchmark, convolutions.deterministic
