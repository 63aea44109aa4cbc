"""A torch potential inside JAX, and a JAX potential inside torch.

Both crossings make one batched call per evaluation, which returns energy and gradient together. Into
JAX the call is a callback that is handed XLA's own buffers, on the host or on an accelerator: ``vmap`` over chains
becomes one call for all chains, and energies stay float64 wherever 64-bit mode is enabled
(``with jax.enable_x64(True)``). A callback must not call JAX; torch code does not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental.buffer_callback import buffer_callback

from ppl_diffusion.arrays import Array, double
from ppl_diffusion.potential import Mixture, Potential, Product
from ppl_diffusion.tapestry import Tapestry

_thread = threading.local()
_failures: deque[BaseException] = deque(maxlen=1)
"""What a call from XLA has failed with or was interrupted by: XLA may call from a thread of its own, and keeps text."""


def to_jax(potential: Potential) -> Potential:
    """``potential`` as a JAX potential; one that is already, or was before :func:`to_torch`, is returned as it is."""
    if isinstance(potential, JaxInTorch):
        return potential.potential
    if potential.backend == "jax":
        return potential
    return _rebuilt(potential, {}) if _holds_jax(potential) else TorchInJax(potential)


def to_torch(potential: Potential, *, device: str = "cpu") -> Potential:
    """``potential`` as a torch potential on ``device``; one that is already, or was before :func:`to_jax`, is
    returned as it is."""
    if isinstance(potential, TorchInJax):
        return potential.potential
    return potential if potential.backend == "torch" else JaxInTorch(potential, device=device)


def host_for(potential: Potential, platform: str) -> jax.Device | None:
    """The processor, if JAX computes elsewhere, on ``platform``, and networks that ``potential`` calls are on it:
    their points would be sent there and back, where torch knows the platform at all. None: JAX may choose."""
    return jax.local_devices(backend="cpu")[0] if platform != "cpu" and _calls_host(potential) else None


def _calls_host(potential: Potential) -> bool:
    if isinstance(potential, Tapestry):
        return any(_calls_host(window) for window in potential.potentials)
    return any(
        leaf.potential.device.type == "cpu"
        if isinstance(leaf, TorchInJax)
        else leaf is not potential and _calls_host(leaf)
        for leaf in potential.leaves()
    )


def _holds_jax(potential: Potential) -> bool:
    if isinstance(potential, Tapestry):
        return any(_holds_jax(window) for window in potential.potentials)
    return any(
        isinstance(leaf, JaxInTorch) or (leaf is not potential and _holds_jax(leaf)) for leaf in potential.leaves()
    )


def _rebuilt(potential: Potential, crossed: dict[Potential, Potential]) -> Potential:
    """The same expression of JAX leaves, each of which crosses once, and those that are JAX inside not at all."""
    if isinstance(potential, Product):
        factors = [_rebuilt(factor, crossed) for factor in potential.factors]
        return Product(factors, potential.exponents, log_scale=potential.log_scale)
    if isinstance(potential, Mixture):
        return Mixture([_rebuilt(component, crossed) for component in potential.components], potential.log_weights)
    if isinstance(potential, Tapestry) and _holds_jax(potential):
        windows = [_rebuilt(window, crossed) for window in potential.potentials]
        return Tapestry(windows, potential.event_shape, potential.windows, potential.weights, potential.name)
    return crossed.setdefault(potential, to_jax(potential))


class TorchInJax(Potential):
    """What :func:`to_jax` returns.

    Attributes:
        potential: the torch potential.
        calls: batched evaluations so far.
    """

    backend = "jax"

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.schedule, self.event_shape, self.name = potential.schedule, potential.event_shape, potential.name
        self.calls = 0

    @property
    def exponent(self) -> Any:
        return self.potential.exponent

    @property
    def reference(self) -> tuple[Any, Any]:
        return self.potential.reference

    @property
    def diffused(self) -> Any:
        return self.potential.diffused

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        shapes = self._energy_like(x), jax.ShapeDtypeStruct(x.shape, x.dtype)
        return _cross(self._write_both, shapes)(x, jnp.asarray(level))

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return _energy_of(self, x, jnp.asarray(level))

    def _energy_like(self, x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self._chains(x), jax.dtypes.canonicalize_dtype(jnp.float64))

    def _write_both(self, context: Any, out: Any, x: Any, level: Any) -> None:
        with _callback(context, x):
            points, where = self._receive(x, level)
            values = self.potential.value_and_grad(points, level=where)
            for buffer, value, shape in zip(out, values, (self._chains(points), points.shape), strict=True):
                torch.from_dlpack(buffer).copy_(self._of_shape(value.detach(), shape))

    def _write_energy(self, context: Any, out: Any, x: Any, level: Any) -> None:
        with _callback(context, x), torch.no_grad():
            points, where = self._receive(x, level)
            energy = self.potential.energy(points, level=where)
            torch.from_dlpack(out).copy_(self._of_shape(energy, self._chains(points)))

    def _chains(self, x: Any) -> Any:
        return x.shape[: x.ndim - len(self.event_shape)]

    def _of_shape(self, value: torch.Tensor, shape: Any) -> torch.Tensor:
        if tuple(value.shape) != tuple(shape):  # copied, one chain's value would be repeated for all of them
            raise ValueError(f"{self.name} returned shape {tuple(value.shape)} where {tuple(shape)} is due")
        return value

    def _receive(self, x: Any, level: Any) -> tuple[torch.Tensor, int]:
        self.calls += 1
        # A copy: the buffer belongs to XLA and is used again when the callback has returned.
        points = torch.from_dlpack(x).to(self.potential.device, copy=True)
        levels = set(torch.from_dlpack(level).flatten().tolist())
        if len(levels) > 1:
            raise ValueError(f"{self.name} takes one level for all chains, got {levels}: call it once a level")
        return points, int(levels.pop())


@contextmanager
def _callback(context: Any, x: Any) -> Iterator[None]:
    """Inside a call from XLA: what torch does on an accelerator is queued behind what XLA has queued there."""
    device, number = x.__dlpack_device__()
    on_host = int(device) == 1
    queue = nullcontext() if on_host else torch.cuda.stream(torch.cuda.ExternalStream(context.stream, number))
    _thread.in_callback = True
    try:
        with queue:
            yield
    except BaseException as error:
        _failures.append(error)
        raise
    finally:
        _thread.in_callback = False


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of torch code that JAX has called come out as they were raised, not inside XLA's or as its text."""
    _failures.clear()
    try:
        yield
    except Exception:
        if _failures:
            raise _failures[-1] from None
        raise


def _cross(write: Callable[..., None], shapes: Any) -> Callable[..., Any]:
    """A host call that fills XLA's own buffers: ``pure_callback`` would round float64 arguments to float32."""
    return buffer_callback(write, shapes, vmap_method="expand_dims")


def _energy_of(crossing: TorchInJax, x: Array, level: Array) -> Array:
    """Energies that JAX can differentiate: forward and gradient come from one call."""

    @jax.custom_vjp
    def energy(x: Array, level: Array) -> Array:
        return _cross(crossing._write_energy, crossing._energy_like(x))(x, level)

    def forward(x: Array, level: Array) -> tuple[Array, Array]:
        return crossing._evaluate(x, level)

    def backward(gradient: Array, cotangent: Array) -> tuple[Array, None]:
        extra = (1,) * len(crossing.event_shape)
        return cotangent.reshape(cotangent.shape + extra).astype(gradient.dtype) * gradient, None

    energy.defvjp(forward, backward)
    return energy(x, level)


class JaxInTorch(Potential):
    """What :func:`to_torch` returns; evaluated in 64-bit mode.

    Attributes:
        potential: the JAX potential.
    """

    backend = "torch"

    def __init__(self, potential: Potential, *, device: str = "cpu") -> None:
        self.potential, self._device = potential, torch.device(device)
        self.schedule, self.event_shape, self.name = potential.schedule, potential.event_shape, potential.name
        self._compiled = jax.jit(lambda x, level: potential.value_and_grad(x, level=level))

    @property
    def device(self) -> torch.device:
        """Where tensors come back, and points must be."""
        return self._device

    @property
    def exponent(self) -> Any:
        return self.potential.exponent

    @property
    def reference(self) -> tuple[Any, Any]:
        return self.potential.reference

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        if getattr(_thread, "in_callback", False):
            raise RuntimeError(
                f"{self.name} computes with JAX and was called by a JAX callback, which may wait for ever: "
                "compose it as a JAX potential, without to_torch"
            )
        with jax.enable_x64(True):
            energy, gradient = self._compiled(x.detach().cpu().numpy(), level)
            values = np.array(energy, dtype=np.float64), np.array(gradient)
        return tuple(torch.from_numpy(value).to(x.device) for value in values)  # type: ignore[return-value]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return double(_JaxEnergy.apply(x, self, level)[0])


class _JaxEnergy(torch.autograd.Function):
    """Energies that torch can differentiate once, batched by ``torch.func.vmap`` too."""

    @staticmethod
    def forward(x: torch.Tensor, potential: JaxInTorch, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        return potential._evaluate(x, level)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.rank = len(inputs[1].event_shape)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        cotangent = cotangents[0]
        return cotangent.reshape(cotangent.shape + (1,) * ctx.rank).to(gradient.dtype) * gradient, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor, potential: JaxInTorch, level: int) -> Any:
        moved = x.movedim(in_dims[0], 0)
        return _JaxEnergy.apply(moved, potential, level), (0, 0)
