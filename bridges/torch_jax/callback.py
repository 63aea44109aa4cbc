"""A torch potential inside JAX: one host callback per evaluation, for all chains and all torch leaves of an expression.

XLA passes its own input and output buffers, in CPU or GPU memory, to the callback, which writes energies and gradients
into the output buffers. A callback must not call JAX; torch code does not.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental.buffer_callback import buffer_callback

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.evaluation import energy_of_each, evaluate_each
from ppl_diffusion.potentials.leaf import Leaf
from ppl_diffusion.potentials.target import Target

_thread = threading.local()


def in_callback() -> bool:
    """Whether this thread is inside a callback from XLA."""
    return getattr(_thread, "in_callback", False)


@contextmanager
def outlived_by(called: Sequence[TorchTargetInJax]) -> Iterator[None]:
    """Context in which JAX traces callbacks that refer weakly to ``called``, which outlive the compiled function.

    JAX keeps a compiled function while its callbacks live, and these keep their potentials. If such a potential kept
    the compiled function in turn, none of them would ever be freed: such callbacks refer to it weakly.
    """
    before = getattr(_thread, "outlived_by", ())
    _thread.outlived_by = called
    try:
        yield
    finally:
        _thread.outlived_by = before


def _references(members: Sequence[TorchTargetInJax]) -> Callable[[], list[TorchTargetInJax]]:
    """Return a function that returns ``members``, and that refers weakly to those that outlive it."""
    weakly = {id(potential) for potential in getattr(_thread, "outlived_by", ())}
    references: list[Callable[[], Any]] = [
        weakref.ref(member) if id(member) in weakly else partial(_itself, member) for member in members
    ]
    return lambda: [reference() for reference in references]


def _itself(member: TorchTargetInJax) -> TorchTargetInJax:
    return member


class WrappedTarget(Target):
    """Base class of targets that wrap a target of the other array library.

    Attributes:
        potential: the wrapped target.
    """

    def __init__(self, potential: Any) -> None:
        self.potential = potential
        self.schedule, self.event_shape, self.name = potential.schedule, potential.event_shape, potential.name

    def parts(self) -> tuple[Any, ...]:
        return (self.potential,)

    def parts_at(self, positions: Any) -> list[tuple[Any, Any]]:
        return [(self.potential, positions)]

    @property
    def has_energy(self) -> bool:
        return self.potential.has_energy

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


class TorchTargetInJax(WrappedTarget):
    """A torch target as a JAX target; built by :func:`~bridges.torch_jax.to_jax`.

    Attributes:
        potential: the torch target.
        calls: number of batched evaluations so far.
        failure: the exception that the last failing callback raised, or None. It is kept because XLA may call from a
            thread of its own, and passes on only the text of an exception.
    """

    backend = "jax"

    def __init__(self, potential: Any) -> None:
        super().__init__(potential)
        self.calls = 0
        self.failure: BaseException | None = None

    @property
    def group(self) -> Any:
        """Key of potentials that are evaluated together: all torch potentials of an expression share one callback."""
        return TorchTargetInJax

    def evaluate_group(self, members: Sequence[Any], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
        """Energy ``(*chains)`` and gradient ``(*chains, *event_shape)`` of each member at its points, by one callback.

        A network that several members share is called once.
        """
        shapes = tuple((self._energy_struct(x), jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in points)
        write = partial(_write_energies_and_gradients, _references(members))
        return list(_host_callback(write, shapes)(*points, jnp.asarray(level)))

    def energy_group(self, members: Sequence[Any], points: Sequence[Array], level: Any) -> list[Array]:
        """Energies ``(*chains)`` only, differentiable once by JAX: differentiation makes a single callback."""

        references, shapes = _references(members), tuple(self._energy_struct(x) for x in points)
        extra = (1,) * len(self.event_shape)

        @jax.custom_vjp
        def energies(points: tuple[Array, ...], level: Array) -> tuple[Array, ...]:
            return tuple(_host_callback(partial(_write_energies, references), shapes)(*points, level))

        def forward(points: tuple[Array, ...], level: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            found = references()[0].evaluate_group(references(), points, level)
            return tuple(energy for energy, _ in found), tuple(gradient for _, gradient in found)

        def backward(gradients: tuple[Array, ...], cotangents: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            pairs = zip(gradients, cotangents, strict=True)
            return tuple(c.reshape(c.shape + extra).astype(g.dtype) * g for g, c in pairs), None

        energies.defvjp(forward, backward)
        return list(energies(tuple(points), jnp.asarray(level)))

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _energy_struct(self, x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self._chain_shape(x), jax.dtypes.canonicalize_dtype(jnp.float64))


class TorchInJax(TorchTargetInJax, Leaf):
    """A torch potential as a JAX potential, which can be composed."""

    @property
    def identity(self) -> Any:
        return type(self), self.potential.identity


def _alive(references: Callable[[], list[TorchTargetInJax]]) -> list[TorchTargetInJax]:
    members = references()
    if any(member is None for member in members):
        raise RuntimeError(
            "a function that was compiled during a walk was called after its potential was deleted: keep the "
            "potential, or compile the function outside of the walk"
        )
    return members


def _write_energies_and_gradients(
    references: Callable[[], list[TorchTargetInJax]], context: Any, out: Any, *given: Any
) -> None:
    members = _alive(references)
    with _callback_context(members[0], context, given[0]):
        points, level = _torch_inputs(members, given)
        found = evaluate_each([member.potential for member in members], points, level)
        for member, buffers, values, x in zip(members, out, found, points, strict=True):
            _fill(member, buffers[0], values[0], member._chain_shape(x))
            _fill(member, buffers[1], values[1], x.shape)


def _write_energies(references: Callable[[], list[TorchTargetInJax]], context: Any, out: Any, *given: Any) -> None:
    members = _alive(references)
    with _callback_context(members[0], context, given[0]), torch.no_grad():
        points, level = _torch_inputs(members, given)
        energies = energy_of_each([member.potential for member in members], points, level)
        for member, buffer, energy, x in zip(members, out, energies, points, strict=True):
            _fill(member, buffer, energy, member._chain_shape(x))


@contextmanager
def _callback_context(member: TorchTargetInJax, context: Any, x: Any) -> Iterator[None]:
    """Context of a callback: torch launches its GPU work on XLA's CUDA stream, and ``member`` keeps an exception."""
    stream: Any = nullcontext()
    if not _on_host(x):
        stream = torch.cuda.stream(torch.cuda.ExternalStream(context.stream, x.__dlpack_device__()[1]))
    _thread.in_callback = True
    try:
        with stream:
            yield
    except BaseException as error:
        member.failure = error
        raise
    finally:
        _thread.in_callback = False


def _fill(member: TorchTargetInJax, buffer: Any, value: torch.Tensor, shape: Any) -> None:
    if tuple(value.shape) != tuple(shape):  # copy_ would broadcast the value of one chain to all of them
        raise ValueError(f"{member.name} returned shape {tuple(value.shape)} where {tuple(shape)} is due")
    if _on_host(buffer):
        torch.from_numpy(np.asarray(buffer)).copy_(value.detach())
    else:
        torch.from_dlpack(buffer).copy_(value.detach())


def _torch_inputs(members: Sequence[TorchTargetInJax], given: Sequence[Any]) -> tuple[list[torch.Tensor], Any]:
    """Copies of each member's points on its device, and the level: an integer, a tensor on the GPU, or a tensor
    ``(*chains,)`` of the levels of points."""
    points = []
    for member, x in zip(members, given[:-1], strict=True):
        member.calls += 1
        points.append(_copy_to_torch(x, member.potential.device))
    level = _copy_to_torch(given[-1])
    if level.device.type != "cpu" and level.numel() == 1 and all(m.potential.level_arrays for m in members):
        return points, level.flatten()  # reading its value would wait for a device-to-host copy
    found = set(level.flatten().tolist())
    if len(found) == 1:
        return points, int(found.pop())
    chains = members[0]._chain_shape(points[0])
    try:
        return points, level.reshape(level.shape + (1,) * (len(chains) - level.ndim)).expand(chains)
    except RuntimeError:
        raise ValueError(
            f"{members[0].name} was given levels of shape {tuple(level.shape)} for points of {chains}: map over both"
        ) from None


def _host_callback(write: Callable[..., None], shapes: Any) -> Callable[..., Any]:
    """A host callback that fills XLA's output buffers: ``pure_callback`` would round float64 arguments to float32."""
    return buffer_callback(write, shapes, vmap_method="expand_dims")


def _on_host(buffer: Any) -> bool:
    return int(buffer.__dlpack_device__()[0]) == 1


def _copy_to_torch(buffer: Any, device: torch.device | None = None) -> torch.Tensor:
    """Copy a buffer to a device, its own by default: XLA reuses its buffers after the callback has returned."""
    view = torch.from_numpy(np.asarray(buffer)) if _on_host(buffer) else torch.from_dlpack(buffer)
    return view.to(view.device if device is None else device, copy=True)
