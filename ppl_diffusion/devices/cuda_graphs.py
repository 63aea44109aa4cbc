"""Recording of network calls as CUDA graphs, which replay all kernels of a call with a single launch.

The gradient of an energy consists of some hundreds of small kernels. Unless the batch is large, the CPU launches them
more slowly than the GPU computes them. A call is therefore recorded as a CUDA graph when a thread makes it for the
second time with arguments of the same shapes, and replayed from then on: the same kernels, with bitwise equal results.
(A thread's first call sets up its handles and plans of CUDA's libraries, which a recording must not do.)

A replay runs no Python code. Networks of this library are recorded by default, unless they have hooks. Another network
can be recorded if its ``forward`` always computes the same function of its tensors, parameters and buffers and copies
no value to the CPU: call ``model.record_calls()``. ``model.record_calls(False)`` turns recording off, and
``model.record_calls(largest=...)`` sets the number of coordinates of the largest batch that is recorded.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RECORDED = 6_000_000
"""Most coordinates of a batch that is recorded: kernels of a larger batch run for longer than their launches take."""

MOST_RECORDINGS = 16
"""Most distinct calls that a recorder remembers; the least recently used is dropped."""

Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors that otherwise reads only constants, the parameters of a network, and generators."""

_lock = threading.RLock()
_last_replay: dict[torch.device, Any] = {}
"""Event at the end of the last replay on a device. Graphs share memory, so replays of all streams run in turn."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    function: Function  # kept, since tensors that it reads must live as long as the graph


class Recorder:
    """Calls functions of tensors; on CUDA it records them as graphs and replays the graph of an equal call.

    A replay uses the current values of parameters that were changed in place. A new graph is recorded after parameters
    were moved or converted, modules were replaced, or torch's precision settings were changed.

    Attributes:
        most: number of coordinates of the largest batch that is recorded; 0 turns recording off.

    Args:
        network: the network that the functions call.
        generators: the generators that the functions draw from, on the device of the network.
        most: see the attribute.
    """

    def __init__(self, network: nn.Module, generators: Sequence[torch.Generator] = (), *, most: int) -> None:
        self.network, self.generators, self.most = network, tuple(generators), most
        # Recorded calls, threads that have made a call which is not recorded yet, None for one that cannot be recorded.
        self._known: OrderedDict[Hashable, _Recorded | set[int] | None] = OrderedDict()
        self._memory: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": OrderedDict(), "_memory": None}

    def __call__(self, function: Function, *inputs: Tensor, kind: Hashable) -> tuple[Tensor, ...]:
        """Return ``function(*inputs)``, by a replay where an equal call has been recorded.

        Args:
            function: the function to call.
            inputs: tensors on the device of the network, the first one the batch ``(batch, *event_shape)``.
            kind: a key that is equal for functions that compute the same.

        Raises:
            RuntimeError: the network cannot be captured in a CUDA graph.
        """
        x = inputs[0]
        if x.device.type != "cuda" or x.numel() > self.most or torch.compiler.is_compiling():
            return function(*inputs)
        modules = tuple(self.network.modules())
        if torch.cuda.is_current_stream_capturing() or _has_hooks(modules):
            return function(*inputs)
        with _lock, torch.cuda.device(x.device):
            key, thread = (kind, _recording_key(modules, inputs)), threading.get_ident()
            call = self._known.setdefault(key, set())
            if isinstance(call, set):
                if thread in call:
                    call = self._known[key] = self._record(function, inputs)
                else:
                    call.add(thread)
            self._known.move_to_end(key)
            while len(self._known) > MOST_RECORDINGS:
                self._known.popitem(last=False)
            if not any(isinstance(known, _Recorded) for known in self._known.values()):
                self._memory = None  # no graph uses the memory pool
            if isinstance(call, _Recorded):
                return _replay(call, inputs)
        return function(*inputs)

    def clear(self) -> None:
        """Drop all recorded graphs and release their memory."""
        with _lock:
            self._known.clear()
            self._memory = None

    def _record(self, function: Function, inputs: Sequence[Tensor]) -> _Recorded | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        static_inputs, handled = tuple(x.detach().clone() for x in inputs), sys.exception()
        try:
            for generator in self.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                outputs = function(*static_inputs)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            first: BaseException = error  # what made the capture invalid, before its end failed for that reason
            while first.__context__ not in (None, handled):
                first = first.__context__
            reason = str(first).splitlines()[0]
            raise RuntimeError(
                f"this call of {type(self.network).__name__} cannot be recorded ({reason}), and "
                "CUDA may be of no use to this process any more: start anew, with model.record_calls(False)"
            ) from error
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream set
        self._memory = graph.pool()
        return _Recorded(graph, static_inputs, outputs, function)


def _has_hooks(modules: Sequence[nn.Module]) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in modules for name in hooks)


def _recording_key(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Hashable:
    """Return the key of a recording: everything that its graph depends on besides the values of tensors."""
    read = (x for m in modules for x in (*m._parameters.values(), *m._buffers.values()) if x is not None)
    return (
        tuple((x.shape, x.dtype) for x in inputs),
        tuple((x.data_ptr(), x.dtype, x.shape, x.stride()) for x in read),
        tuple((type(module), module.training) for module in modules),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        *_precision_settings(),
    )


def _replay(recorded: _Recorded, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    stream, device = torch.cuda.current_stream(), inputs[0].device
    if device in _last_replay:
        stream.wait_event(_last_replay[device])
    for static_input, x in zip(recorded.inputs, inputs, strict=True):
        static_input.copy_(x.detach())
        static_input.record_stream(stream)
    recorded.graph.replay()
    outputs = tuple(output.clone() for output in recorded.outputs)
    _last_replay[device] = stream.record_event()
    return outputs


def _precision_settings() -> tuple[Any, ...]:
    """Return the settings of convolutions and matrix products, from whichever of torch's two interfaces is readable."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    ways = convolutions.enabled, convolutions.benchmark, convolutions.deterministic
    try:
        return *ways, convolutions.allow_tf32, products.allow_tf32
    except RuntimeError:
        newer: Any = convolutions
        return *ways, newer.conv.fp32_precision, products.fp32_precision
