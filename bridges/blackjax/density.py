"""The log-density of a target as BlackJAX's kernels take it: a function of one chain's flat position."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.target import Target

from .line_integral import LineIntegral, WorkDensity

LogDensity = Callable[[Array], Array]


def flat_log_density(target: Target, level: Array, scales: Any = 1.0) -> LogDensity:
    """Log-density at ``level`` of ``z (size,) = x / scales``; its value and gradient come from one evaluation.

    Where the energy or its gradient is not finite, it is minus infinity.

    Args:
        target: a JAX target, see :func:`bridges.torch_jax.to_jax`. It is referred to weakly: JAX keeps such functions
            with what it has compiled, which the target keeps in turn.
        level: noise level, an integer, which may be traced.
        scales: length scales of coordinates, shape ``(size,)``, or 1.

    Returns:
        The function; without an energy, a :class:`~bridges.blackjax.line_integral.WorkDensity`.
    """
    event_shape, potential = target.event_shape, weakref.proxy(target)
    if isinstance(target, LineIntegral):
        return cast(LogDensity, WorkDensity(potential, level, scales))

    def forward(z: Array, level: Array, scales: Array) -> tuple[Array, Array]:
        energy, gradient = potential.value_and_grad((z * scales).reshape(event_shape), level=level)
        finite = jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient))
        return jnp.where(finite, -energy, -jnp.inf), -gradient.reshape(z.shape) * scales

    @jax.custom_vjp
    def log_density(z: Array, level: Array, scales: Array) -> Array:
        energy = potential.energy((z * scales).reshape(event_shape), level=level)
        return jnp.where(jnp.isfinite(energy), -energy, -jnp.inf)

    def backward(gradient: Array, cotangent: Array) -> tuple[Array, None, None]:
        return cotangent * gradient, None, None

    log_density.defvjp(forward, backward)
    return lambda z: log_density(z, level, scales)
