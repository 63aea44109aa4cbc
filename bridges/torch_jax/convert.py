"""Torch potentials as JAX potentials, and JAX potentials as torch potentials.

Both conversions make one batched call per evaluation, which returns energy and gradient together. From JAX, torch is
called by a host callback that works on XLA's own buffers, in CPU or GPU memory: ``vmap`` over chains becomes one call
for all chains, and energies stay float64 if 64-bit mode is enabled (``with jax.enable_x64(True)``). A callback must
not call JAX; torch code does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import jax
import numpy as np
import torch

from ppl_diffusion.arrays import Array, double
from ppl_diffusion.potentials.algebra import Composite, Potential
from ppl_diffusion.potentials.leaf import Leaf
from ppl_diffusion.potentials.tapestry import Tapestry
from ppl_diffusion.potentials.target import Target

from .callback import TorchInJax, TorchTargetInJax, WrappedTarget, in_callback

__all__ = ["to_jax", "to_torch"]


@overload
def to_jax(potential: Potential) -> Potential: ...
@overload
def to_jax(potential: Target) -> Target: ...
def to_jax(potential: Target) -> Target:
    """Convert to JAX; a JAX potential is returned as it is, :func:`to_torch` is undone.

    A potential gives a potential, and a target that cannot be composed, such as a Pyro model's joint density, a target.

    >>> from ppl_diffusion import load
    >>> ring = load("ring")
    >>> to_jax(ring).backend, to_torch(to_jax(ring)) is ring
    ('jax', True)
    """
    if isinstance(potential, JaxTargetInTorch):
        return potential.potential
    if potential.backend == "jax":
        return potential
    if not isinstance(potential, Potential):
        return TorchTargetInJax(potential)
    by_leaves = contains_jax(potential) or not potential.has_energy  # parts with an energy remain known
    return _cross_leaves(potential, {}) if by_leaves else TorchInJax(potential)


@overload
def to_torch(potential: Potential, *, device: str = "cpu") -> Potential: ...
@overload
def to_torch(potential: Target, *, device: str = "cpu") -> Target: ...
def to_torch(potential: Target, *, device: str = "cpu") -> Target:
    """Convert to torch on ``device``; a torch potential is returned as it is, :func:`to_jax` is undone."""
    if isinstance(potential, TorchTargetInJax):
        return potential.potential
    if potential.backend == "torch":
        return potential
    kind = JaxInTorch if isinstance(potential, Potential) else JaxTargetInTorch
    return kind(potential, device=device)


def cpu_device_for(potential: Target, platform: str) -> jax.Device | None:
    """JAX's CPU device if ``platform`` is another and torch parts of ``potential`` run on the CPU, else None.

    On JAX's default device, the points would be copied between devices at every evaluation, and torch may not support
    that platform at all. None leaves the choice to JAX.
    """
    if platform == "cpu" or not any(crossing.potential.device.type == "cpu" for crossing in crossings(potential)):
        return None
    return jax.local_devices(backend="cpu")[0]


def crossings(potential: Target) -> Iterator[TorchTargetInJax]:
    """Yield the torch potentials inside a JAX potential."""
    if isinstance(potential, TorchTargetInJax):
        yield potential
    for part in potential.parts():
        yield from crossings(part)


def contains_jax(potential: Target) -> bool:
    """Whether a torch potential has a part that computes with JAX."""
    return isinstance(potential, JaxTargetInTorch) or any(contains_jax(part) for part in potential.parts())


def _cross_leaves(potential: Potential, crossed: dict[Potential, Potential]) -> Potential:
    """Rebuild an expression from JAX leaves: a torch leaf is wrapped once, a JAX leaf inside torch is unwrapped.

    ``crossed`` maps the leaves that have been converted so far to their JAX potentials.
    """
    if isinstance(potential, Composite) and (contains_jax(potential) or not isinstance(potential, Tapestry)):
        return potential.rebuilt(lambda part: _cross_leaves(part, crossed))
    if potential not in crossed:
        crossed[potential] = potential.potential if isinstance(potential, JaxInTorch) else TorchInJax(potential)
    return crossed[potential]


@contextmanager
def reraise_torch_errors(potential: Target) -> Iterator[None]:
    """Context in which errors of torch callbacks are raised unchanged, not as XLA errors that quote their text."""
    called = list(crossings(potential))
    _forget_failures(called)  # of calls outside of this context, which the caller may have handled
    try:
        yield
    except BaseException as error:
        failures = _forget_failures(called)
        if failures and isinstance(error, Exception):
            raise failures[0] from failures[0].__cause__
        if isinstance(error, Exception) and "KeyboardInterrupt" in str(error):  # in JAX's part of a callback
            raise KeyboardInterrupt from None
        raise


def _forget_failures(called: list[TorchTargetInJax]) -> list[BaseException]:
    """Return the exceptions that callbacks of these potentials have kept, and keep them no longer."""
    failures = [crossing.failure for crossing in called if crossing.failure is not None]
    for crossing in called:
        crossing.failure = None
    return failures


class JaxTargetInTorch(WrappedTarget):
    """A JAX target as a torch target, evaluated in 64-bit mode; built by :func:`to_torch`.

    Attributes:
        potential: the JAX target.
    """

    backend = "torch"

    def __init__(self, potential: Any, *, device: str = "cpu") -> None:
        super().__init__(potential)
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """The torch device of the points and of the results."""
        return self._device

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        if in_callback():
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


class JaxInTorch(JaxTargetInTorch, Leaf):
    """A JAX potential as a torch potential, which can be composed."""

    @property
    def identity(self) -> Any:
        return type(self), self.potential.identity, self._device


class _Once(torch.autograd.Function):
    """The gradient at ``x``, which torch knows as a function of ``x`` so that differentiating it raises an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "torch can differentiate a JAX potential once only: take second derivatives in JAX, jax.hessian"
        )


class _JaxEnergy(torch.autograd.Function):
    """Energies that torch can differentiate once, also under ``torch.func.vmap``."""

    @staticmethod
    def forward(x: torch.Tensor, potential: JaxTargetInTorch, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        return potential._evaluate(x, level)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.rank = len(inputs[1].event_shape)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, gradient = ctx.saved_tensors
        cotangent, gradient = cotangents[0], _Once.apply(x, gradient)
        return cotangent.reshape(cotangent.shape + (1,) * ctx.rank).to(gradient.dtype) * gradient, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor, potential: JaxTargetInTorch, level: int) -> Any:
        moved = x.movedim(in_dims[0], 0)
        return _JaxEnergy.apply(moved, potential, level), (0, 0)
