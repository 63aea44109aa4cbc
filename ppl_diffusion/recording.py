"""What a call launches on CUDA, recorded as a graph and launched again in one go.

The gradient of an energy is some hundreds of small kernels. A processor launches them more slowly than an accelerator
computes them, unless the batch is large. So a call is recorded when it is made for the second time with arguments of
the same kind, and replayed from then on: the same kernels, and the same values to the last bit.

A recording knows nothing of Python. Networks of this library are recorded by themselves, unless they have hooks. For
another one, whose ``forward`` is the same function of its tensors, its parameters and its buffers every time and reads
no value back, say ``model.chunks.launch.most = ppl_diffusion.recording.RECORDED``; 0 turns recording off.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RECORDED = 6_000_000
"""Most coordinates of a batch that is recorded: a larger one keeps a device busy for longer than its launches take."""

KEPT = 16
"""Calls that are remembered."""

Function = Callable[..., tuple[Tensor, ...]]
"""Of tensors, reading nothing else that changes but the parameters of a network and generators."""

_lock = threading.RLock()
_done: dict[torch.device, Any] = {}
"""When the last replay on a device ends: recordings share memory, so they go one after another, whoever asks."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    function: Function  # what it reads must live as long as the graph


class Recorder:
    """Calls functions of tensors; on CUDA it replays what it has recorded of a call like this one.

    Recordings follow parameters that change in place, and are made anew for parameters that have been moved or
    converted, for modules that have been replaced, and for other switches of precision.

    Attributes:
        most: coordinates of the largest batch that is recorded; 0 for none.

    Args:
        network: what the functions call.
        generators: what they draw from, on the device of the network.
        most: see there.
    """

    def __init__(self, network: nn.Module, generators: Sequence[torch.Generator] = (), *, most: int) -> None:
        self.network, self.generators, self.most = network, tuple(generators), most
        self._known: OrderedDict[Hashable, _Recorded | str] = OrderedDict()
        self._memory: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": OrderedDict(), "_memory": None}

    def __call__(self, function: Function, *inputs: Tensor, kind: Hashable) -> tuple[Tensor, ...]:
        """``function(*inputs)``, whose first argument is the batch.

        Args:
            function: what is called.
            inputs: on the device of the network.
            kind: equal for functions that do the same.

        Raises:
            RuntimeError: a network that was not to be recorded.
        """
        x = inputs[0]
        if x.device.type != "cuda" or x.numel() > self.most or torch.compiler.is_compiling():
            return function(*inputs)
        modules = tuple(self.network.modules())
        if torch.cuda.is_current_stream_capturing() or _hooked(modules):
            return function(*inputs)
        with _lock, torch.cuda.device(x.device):
            key = (kind, _state(modules, inputs))
            found = self._known.get(key)
            if found == "once":
                found = self._record(function, inputs)
            self._known[key] = found or "once"
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            if not any(isinstance(known, _Recorded) for known in self._known.values()):
                self._memory = None  # which nothing is left in
            if isinstance(found, _Recorded):
                return _replay(found, inputs)
        return function(*inputs)

    def clear(self) -> None:
        """Forget what was recorded, and give its memory back."""
        with _lock:
            self._known.clear()
            self._memory = None

    def _record(self, function: Function, inputs: Sequence[Tensor]) -> _Recorded | str:
        graph, queue = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        held = tuple(x.detach().clone() for x in inputs)
        try:
            for generator in self.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                outputs = function(*held)
        except torch.OutOfMemoryError:
            return "never"
        except RuntimeError as error:
            raise RuntimeError(
                f"this call of {type(self.network).__name__} cannot be recorded ({str(error).splitlines()[0]}), and "
                "CUDA may be of no use to this process any more: start anew, with model.chunks.launch.most = 0"
            ) from error
        finally:
            torch.cuda.set_stream(queue)  # a recording that fails stays in its own
        self._memory = graph.pool()
        return _Recorded(graph, held, outputs, function)


def _hooked(modules: Sequence[nn.Module]) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in modules for name in hooks)


def _state(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Hashable:
    """All that a recording takes for granted."""
    read = (x for m in modules for x in (*m._parameters.values(), *m._buffers.values()) if x is not None)
    return (
        tuple((x.shape, x.dtype) for x in inputs),
        tuple((x.data_ptr(), x.dtype, x.shape, x.stride()) for x in read),
        tuple((type(module), module.training) for module in modules),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        *_switches(),
    )


def _replay(recorded: _Recorded, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    queue, device = torch.cuda.current_stream(), inputs[0].device
    if device in _done:
        queue.wait_event(_done[device])
    for held, x in zip(recorded.inputs, inputs, strict=True):
        held.copy_(x.detach())
        held.record_stream(queue)
    recorded.graph.replay()
    outputs = tuple(output.clone() for output in recorded.outputs)
    _done[device] = queue.record_event()
    return outputs


def _switches() -> tuple[Any, ...]:
    """How convolutions and products are computed, by whichever of torch's two sets of switches can be read."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    ways = convolutions.enabled, convolutions.benchmark, convolutions.deterministic
    try:
        return *ways, convolutions.allow_tf32, products.allow_tf32
    except RuntimeError:
        newer: Any = convolutions
        return *ways, newer.conv.fp32_precision, products.fp32_precision
