"""A torch potential inside JAX, and a JAX potential inside torch.

Both crossings make one batched call per evaluation, which returns energy and gradient together. Into
JAX the call is a callback that is handed XLA's own buffers, on the host or on an accelerator: ``vmap`` over chains
becomes one call for all chains, and energies stay float64 wherever 64-bit mode is enabled
(``with jax.enable_x64(True)``). A callback must not call JAX; torch code does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental.buffer_callback import buffer_callback

from ppl_diffusion.arrays import Array, double
from ppl_diffusion.density import energy_of_each, evaluate_each
from ppl_diffusion.potential import Mixture, Potential, Product
from ppl_diffusion.tapestry import Tapestry

__all__ = ["to_jax", "to_torch"]

_thread = threading.local()


def to_jax(potential: Potential) -> Potential:
    """``potential`` as a JAX potential; one that is already, or was before :func:`to_torch`, is returned as it is."""
    if isinstance(potential, JaxInTorch):
        return potential.potential
    if potential.backend == "jax":
        return potential
    return _rebuilt(potential, {}) if holds_jax(potential) else TorchInJax(potential)


def to_torch(potential: Potential, *, device: str = "cpu") -> Potential:
    """``potential`` as a torch potential on ``device``; one that is already, or was before :func:`to_jax`, is
    returned as it is."""
    if isinstance(potential, TorchInJax):
        return potential.potential
    return potential if potential.backend == "torch" else JaxInTorch(potential, device=device)


def host_for(potential: Potential, platform: str) -> jax.Device | None:
    """The processor, if JAX computes elsewhere, on ``platform``, and networks that ``potential`` calls are on it:
    their points would be sent there and back, where torch knows the platform at all. None: JAX may choose."""
    if platform == "cpu" or not any(crossing.potential.device.type == "cpu" for crossing in crossings(potential)):
        return None
    return jax.local_devices(backend="cpu")[0]


def crossings(potential: Potential) -> Iterator[TorchInJax]:
    """The torch potentials inside a JAX one."""
    if isinstance(potential, TorchInJax):
        yield potential
    inside = potential.potentials if isinstance(potential, Tapestry) else potential.leaves()
    for part in inside:
        if part is not potential:
            yield from crossings(part)


def holds_jax(potential: Potential) -> bool:
    """Whether a torch potential computes with JAX somewhere inside."""
    if isinstance(potential, Tapestry):
        return any(holds_jax(window) for window in potential.potentials)
    return any(
        isinstance(leaf, JaxInTorch) or (leaf is not potential and holds_jax(leaf)) for leaf in potential.leaves()
    )


def _rebuilt(potential: Potential, crossed: dict[Potential, Potential]) -> Potential:
    """The same expression of JAX leaves, each of which crosses once, and those that are JAX inside not at all."""
    if isinstance(potential, Product):
        factors = [_rebuilt(factor, crossed) for factor in potential.factors]
        return Product(factors, potential.exponents, log_scale=potential.log_scale)
    if isinstance(potential, Mixture):
        return Mixture([_rebuilt(component, crossed) for component in potential.components], potential.log_weights)
    if isinstance(potential, Tapestry) and holds_jax(potential):
        windows = [_rebuilt(window, crossed) for window in potential.potentials]
        return Tapestry(windows, potential.event_shape, potential.windows, potential.weights, potential.name)
    return crossed.setdefault(potential, to_jax(potential))


class Crossed(Potential):
    """A potential of one library inside the other.

    Attributes:
        potential: the one that it carries.
    """

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.schedule, self.event_shape, self.name = potential.schedule, potential.event_shape, potential.name

    @property
    def identity(self) -> Any:
        return type(self), self.potential.identity

    @property
    def exponent(self) -> Any:
        return self.potential.exponent

    @property
    def reference(self) -> tuple[Any, Any]:
        return self.potential.reference

    @property
    def diffused(self) -> Any:
        return self.potential.diffused

    def start(self, level: int, *, chains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.potential.start(level, chains=chains, rng=rng)

    def refresh(self, positions: Any, level: int, *, rng: np.random.Generator) -> tuple[Any, Any]:
        return self.potential.refresh(positions, level, rng=rng)


class TorchInJax(Crossed):
    """What :func:`to_jax` returns.

    Attributes:
        potential: the torch potential.
        calls: batched evaluations so far.
        failure: what the last call from XLA has failed with or was interrupted by: XLA may call from a thread of its
            own, and keeps text only.
    """

    backend = "jax"

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        self.calls = 0
        self.failure: BaseException | None = None

    @property
    def group(self) -> Any:
        """All torch potentials of an expression are evaluated in one call from XLA."""
        return TorchInJax

    def evaluate_group(self, members: Sequence[Any], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
        """Energies and gradients by one call, in which networks that are shared are called once."""
        shapes = tuple((self._energy_like(x), jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in points)
        return list(_cross(partial(self._write_both, members), shapes)(*points, jnp.asarray(level)))

    def energy_group(self, members: Sequence[Any], points: Sequence[Array], level: Any) -> list[Array]:
        """As :meth:`evaluate_group`, energies only, which JAX can differentiate: forward and gradient come from one
        call."""

        @jax.custom_vjp
        def energies(points: tuple[Array, ...], level: Array) -> tuple[Array, ...]:
            shapes = tuple(self._energy_like(x) for x in points)
            return tuple(_cross(partial(self._write_energies, members), shapes)(*points, level))

        def forward(points: tuple[Array, ...], level: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            found = self.evaluate_group(members, points, level)
            return tuple(energy for energy, _ in found), tuple(gradient for _, gradient in found)

        def backward(gradients: tuple[Array, ...], cotangents: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            extra = (1,) * len(self.event_shape)
            pairs = zip(gradients, cotangents, strict=True)
            return tuple(c.reshape(c.shape + extra).astype(g.dtype) * g for g, c in pairs), None

        energies.defvjp(forward, backward)
        return list(energies(tuple(points), jnp.asarray(level)))

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _energy_like(self, x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self._chains(x), jax.dtypes.canonicalize_dtype(jnp.float64))

    def _write_both(self, members: Sequence[TorchInJax], context: Any, out: Any, *given: Any) -> None:
        with self._called(context, given[0]):
            points, level = self._receive(members, given)
            found = evaluate_each([member.potential for member in members], points, level)
            for buffers, values, x in zip(out, found, points, strict=True):
                self._fill(buffers[0], values[0], self._chains(x))
                self._fill(buffers[1], values[1], x.shape)

    def _write_energies(self, members: Sequence[TorchInJax], context: Any, out: Any, *given: Any) -> None:
        with self._called(context, given[0]), torch.no_grad():
            points, level = self._receive(members, given)
            energies = energy_of_each([member.potential for member in members], points, level)
            for buffer, energy, x in zip(out, energies, points, strict=True):
                self._fill(buffer, energy, self._chains(x))

    @contextmanager
    def _called(self, context: Any, x: Any) -> Iterator[None]:
        """Inside a call from XLA: what torch does on an accelerator is queued behind what XLA has queued there."""
        queue: Any = nullcontext()
        if not _on_host(x):
            queue = torch.cuda.stream(torch.cuda.ExternalStream(context.stream, x.__dlpack_device__()[1]))
        _thread.in_callback = True
        try:
            with queue:
                yield
        except BaseException as error:
            self.failure = error
            raise
        finally:
            _thread.in_callback = False

    def _chains(self, x: Any) -> Any:
        return x.shape[: x.ndim - len(self.event_shape)]

    def _fill(self, buffer: Any, value: torch.Tensor, shape: Any) -> None:
        if tuple(value.shape) != tuple(shape):  # copied, one chain's value would be repeated for all of them
            raise ValueError(f"{self.name} returned shape {tuple(value.shape)} where {tuple(shape)} is due")
        if _on_host(buffer):
            np.copyto(np.asarray(buffer), value.detach().cpu().numpy())
        else:
            torch.from_dlpack(buffer).copy_(value.detach())

    def _receive(self, members: Sequence[TorchInJax], given: Sequence[Any]) -> tuple[list[torch.Tensor], int]:
        points = []
        for member, x in zip(members, given[:-1], strict=True):
            member.calls += 1
            points.append(_copied(x).to(member.potential.device))
        levels = set(_copied(given[-1]).flatten().tolist())
        if len(levels) > 1:
            raise ValueError(f"{self.name} takes one level for all chains, got {levels}: call it once a level")
        return points, int(levels.pop())


def _on_host(buffer: Any) -> bool:
    return int(buffer.__dlpack_device__()[0]) == 1


def _copied(buffer: Any) -> torch.Tensor:
    """What a buffer holds, which belongs to XLA and is used again when the callback has returned."""
    return torch.from_numpy(np.asarray(buffer).copy()) if _on_host(buffer) else torch.from_dlpack(buffer).clone()


@contextmanager
def plain_errors(potential: Potential) -> Iterator[None]:
    """Errors of torch code that JAX has called for a potential come out as they were raised, not inside XLA's or as its
    text."""
    try:
        yield
    except BaseException as error:
        called = list(crossings(potential))
        failures = [crossing.failure for crossing in called if crossing.failure is not None]
        for crossing in called:
            crossing.failure = None
        if failures and isinstance(error, Exception):
            raise failures[0] from None
        if isinstance(error, Exception) and "KeyboardInterrupt" in str(error):  # in JAX's own part of the call
            raise KeyboardInterrupt from None
        raise


def _cross(write: Callable[..., None], shapes: Any) -> Callable[..., Any]:
    """A host call that fills XLA's own buffers: ``pure_callback`` would round float64 arguments to float32."""
    return buffer_callback(write, shapes, vmap_method="expand_dims")


class JaxInTorch(Crossed):
    """What :func:`to_torch` returns; evaluated in 64-bit mode.

    Attributes:
        potential: the JAX potential.
    """

    backend = "torch"

    def __init__(self, potential: Potential, *, device: str = "cpu") -> None:
        super().__init__(potential)
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """Where tensors come back, and points must be."""
        return self._device

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        if getattr(_thread, "in_callback", False):
            raise RuntimeError(
                f"{self.name} computes with JAX and was called by a JAX callback, which may wait for ever: "
                "compose it as a JAX potential, without to_torch"
            )
        compiled = self.memo("compiled", self._compile)
        with jax.enable_x64(True):
            energy, gradient = compiled(x.detach().cpu().numpy(), level)
            values = np.array(energy, dtype=np.float64), np.array(gradient)
        return tuple(torch.from_numpy(value).to(x.device) for value in values)  # type: ignore[return-value]

    def _compile(self) -> Callable[..., Any]:
        return jax.jit(lambda x, level: self.potential.value_and_grad(x, level=level))

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
