"""Array operations that work on torch tensors and JAX arrays alike, and helpers for devices and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

Array = Any
"""A torch tensor or a JAX array, according to the potential's backend."""

Backend = Literal["torch", "jax"]


def as_backend(x: Any, backend: Backend, name: str = "this potential", *, device: Any = "cpu") -> Array:
    """Return ``x`` as an array of ``backend``, in its own floating dtype and shape.

    Numpy arrays and nested lists are converted: to tensors on ``device`` for torch, with ``jnp.asarray`` for JAX. A
    torch tensor or JAX array stays on the device where it is. ``name`` is the potential named in error messages.

    Raises:
        TypeError: ``x`` is an array of the other backend, or its dtype is not a floating-point one.
    """
    cast = "x.double()" if isinstance(x, torch.Tensor) else "x.astype('float64')"
    if backend == "jax":
        if isinstance(x, torch.Tensor):
            raise TypeError(f"{name} computes with JAX and got a torch tensor: pass x.numpy()")
        x = x if isinstance(x, jax.Array) else _known(jnp.asarray, native(x), name)
        floating = jnp.issubdtype(x.dtype, jnp.floating)
    else:
        if isinstance(x, jax.Array):
            raise TypeError(f"{name} computes with torch and got a JAX array: pass np.asarray(x)")
        if not isinstance(x, torch.Tensor):
            x = native(x)
            x = x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy()
            x = _known(torch.from_numpy, x, name).to(device)
        x = x.clone() if x.is_inference() else x  # autograd rejects inference tensors
        floating = x.dtype.is_floating_point
    if not floating:
        raise TypeError(f"{name} takes floating points, got {x.dtype}: pass {cast}")
    return x


def _known(convert: Callable[[np.ndarray], Array], x: np.ndarray, name: str) -> Array:
    """Return ``convert(x)``, and say what to type if the library does not know the dtype, such as longdouble."""
    try:
        return convert(x)
    except TypeError as error:
        raise TypeError(f"{name} takes floating points, got {x.dtype}: pass x.astype('float64')") from error


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Replace ``torch.inference_mode``, if the caller is in it, by ``torch.no_grad``, under which gradients can be
    enabled."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def on_cpu() -> Iterator[None]:
    """Create new tensors on the CPU by default, overriding ``torch.set_default_device``."""
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


def check_count(name: str, value: Any, *, least: int = 1, example: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number >= ``least``; ``example`` is one to try."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        tried = max(least, 100) if example is None else example
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}: try {name}={tried}")


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a ``torch.device`` after allocating a tensor on it and copying it back.

    Raises:
        ValueError: ``device`` does not name a device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        float(torch.zeros((), device=found, dtype=torch.float64))
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}): use --device cpu") from error
    return found


def constant(values: Any, device: torch.device) -> torch.Tensor:
    """Return numbers as a float64 tensor on ``device``, of their shape, cached unless ``values`` is a tensor.

    Caching avoids a host-to-device copy, for which the GPU would wait, in every call. It also keeps the memory alive
    from which recorded CUDA graphs read the numbers.
    """
    if isinstance(values, torch.Tensor):
        return values.to(device, torch.float64)
    if isinstance(values, tuple):  # a table of a schedule, one float per level
        return _cached_constant(values, (len(values),), device)
    table = np.asarray(values, dtype=np.float64)
    return _cached_constant(tuple(table.ravel().tolist()), table.shape, device)


@cache
def _cached_constant(values: tuple[float, ...], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device).reshape(shape)


def as_numpy(x: Array) -> np.ndarray:
    """Return an array of either library, on any device, as a numpy array of the same shape."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def native(x: Any) -> np.ndarray:
    """Return a numpy array in native byte order, the only one that torch and JAX know."""
    x = np.asarray(x)
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def digest(arrays: Sequence[np.ndarray]) -> str:
    """Return a digest of the types, shapes and values of arrays."""
    found = sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def read_only(*arrays: np.ndarray) -> None:
    """Forbid changes of arrays: what has been compiled with their values would not see them."""
    for array in arrays:
        array.setflags(write=False)


def check_backend(backend: str) -> Backend:
    """Return ``backend`` if it is "torch" or "jax", and raise ``ValueError`` otherwise."""
    if backend not in ("torch", "jax"):
        raise ValueError(f'unknown backend {backend!r}: use backend="torch" or backend="jax"')
    return backend  # type: ignore[return-value]


def logsumexp(terms: Array, *, axis: int) -> Array:
    """Return ``log(sum(exp(terms)))`` along one axis, which is removed from the shape."""
    if isinstance(terms, torch.Tensor):
        return torch.logsumexp(terms, axis)
    return jax.nn.logsumexp(terms, axis=axis)


def double(x: Array) -> Array:
    """Return ``x`` as float64; in JAX without 64-bit mode, as float32."""
    if isinstance(x, torch.Tensor):
        return x.double()
    return x.astype(jax.dtypes.canonicalize_dtype(jnp.float64))


def cast_like(gradient: Array, x: Array) -> Array:
    """Return ``gradient`` converted to the dtype of ``x``."""
    return gradient.to(x.dtype) if isinstance(x, torch.Tensor) else gradient.astype(x.dtype)


def weighted(weight: Any, gradient: Array, event_shape: tuple[int, ...]) -> Array:
    """Return ``weight * gradient``, shape ``(*chains, *event_shape)``, for a float or one weight per chain.

    With one weight per chain, shape ``(*chains,)``, a weight of 0 gives 0 even where the gradient is not finite.
    """
    if isinstance(weight, float):
        return weight * gradient
    chains = tuple(gradient.shape[: gradient.ndim - len(event_shape)])
    weight = weight.reshape(chains + (1,) * len(event_shape))
    where = torch.where if isinstance(gradient, torch.Tensor) else jnp.where
    return where(weight == 0, 0.0, weight * gradient)
