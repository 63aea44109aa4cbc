"""The few array operations that the algebra needs, in torch and JAX alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

Array = Any
"""A torch tensor or a JAX array, according to the potential's backend."""

Backend = Literal["torch", "jax"]


def as_backend(x: Any, backend: Backend, name: str = "this potential", *, device: Any = "cpu") -> Array:
    """``x`` as an array of ``backend``; numpy arrays and nested lists are converted, in torch on ``device``.

    Raises:
        TypeError: an array of the other backend, or one that is not floating.
    """
    if backend == "jax":
        if isinstance(x, torch.Tensor):
            raise TypeError(f"{name} computes with JAX and got a torch tensor: pass x.numpy()")
        x = x if isinstance(x, jax.Array) else jnp.asarray(_native(x))
        floating = jnp.issubdtype(x.dtype, jnp.floating)
    else:
        if isinstance(x, jax.Array):
            raise TypeError(f"{name} computes with torch and got a JAX array: pass np.asarray(x)")
        if not isinstance(x, torch.Tensor):
            x = _native(x)
            x = torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy()).to(device)
        x = x.clone() if x.is_inference() else x  # autograd does not take one
        floating = x.dtype.is_floating_point
    if not floating:
        raise TypeError(f"{name} takes floating points, got {x.dtype}: pass x.astype('float64')")
    return x


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Where gradients can be taken although the caller is in ``torch.inference_mode``: it is ``no_grad`` meanwhile."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def on_cpu() -> Iterator[None]:
    """Where new tensors are on the processor although ``torch.set_default_device`` has said otherwise."""
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


def check_device(device: str | torch.device) -> torch.device:
    """``device``, if torch can compute there.

    Raises:
        ValueError: it is not on this machine, or no device.
    """
    try:
        found = torch.device(device)
        float(torch.zeros((), device=found, dtype=torch.float64))
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}): use --device cpu") from error
    return found


def constant(values: Any, device: torch.device) -> torch.Tensor:
    """Numbers as a float64 tensor there, kept: an accelerator waits for what it is sent, and what it has recorded
    reads them where they were."""
    if isinstance(values, torch.Tensor):
        return values.to(device, torch.float64)
    if isinstance(values, tuple):  # of numbers: a table of a schedule
        return _constant(values, (len(values),), device)
    table = np.asarray(values, dtype=np.float64)
    return _constant(tuple(table.ravel().tolist()), table.shape, device)


@cache
def _constant(values: tuple[float, ...], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device).reshape(shape)


def as_numpy(x: Array) -> np.ndarray:
    """An array of either library, wherever it is, as a numpy array."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _native(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def check_backend(backend: str) -> Backend:
    """``backend`` itself, if it is one."""
    if backend not in ("torch", "jax"):
        raise ValueError(f'unknown backend {backend!r}: use backend="torch" or backend="jax"')
    return backend  # type: ignore[return-value]


def logsumexp(terms: Array, *, axis: int) -> Array:
    """``log sum exp`` along one axis, in either array library."""
    if isinstance(terms, torch.Tensor):
        return torch.logsumexp(terms, axis)
    return jax.nn.logsumexp(terms, axis=axis)


def double(x: Array) -> Array:
    """``x`` in double precision; in JAX only where 64-bit mode is enabled."""
    if isinstance(x, torch.Tensor):
        return x.double()
    return x.astype(jax.dtypes.canonicalize_dtype(jnp.float64))


def cast_like(gradient: Array, x: Array) -> Array:
    """``gradient`` in the dtype of ``x``."""
    return gradient.to(x.dtype) if isinstance(x, torch.Tensor) else gradient.astype(x.dtype)


def weighted(weight: Any, gradient: Array, event_shape: tuple[int, ...]) -> Array:
    """``gradient (*chains, *event_shape)`` times a number, or one for every chain: where it is 0 the product is,
    even of what is not finite."""
    if isinstance(weight, float):
        return weight * gradient
    chains = tuple(gradient.shape[: gradient.ndim - len(event_shape)])
    weight = weight.reshape(chains + (1,) * len(event_shape))
    where = torch.where if isinstance(gradient, torch.Tensor) else jnp.where
    return where(weight == 0, 0.0, weight * gradient)
