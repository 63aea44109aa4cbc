"""The state of a walker as named arrays, as a checkpoint stores it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .kernel import State


def structure_of(state: State) -> str:
    """Return a text that tells states of different structures apart."""
    return str(jax.tree.structure(state))


def unstorable(state: State) -> str | None:
    """Return the dtype of an array of a state that cannot be stored, or None if all can."""
    kinds = {str(_stored(leaf).dtype): _stored(leaf).dtype.kind for leaf in jax.tree.leaves(state)}
    return next((dtype for dtype, kind in kinds.items() if kind not in "biuf"), None)


def to_arrays(state: State, *, name: str = "state") -> dict[str, np.ndarray]:
    """Return the arrays of a state, by names that begin with ``name``."""
    return {
        f"{name}.{field}.{i}": _stored(leaf)
        for field, value in state._asdict().items()
        for i, leaf in enumerate(jax.tree.leaves(value))
    }


def from_arrays(arrays: Mapping[str, np.ndarray], like: State, *, name: str = "state") -> State:
    """Return the state that was stored as ``arrays``, in the structure and on the devices of ``like``.

    Raises:
        ValueError: an array is missing or has another shape; the message names the field.
    """
    fields = {}
    for field, value in like._asdict().items():
        leaves, structure = jax.tree.flatten(value)
        try:
            stored = [_like(leaf, arrays[f"{name}.{field}.{i}"]) for i, leaf in enumerate(leaves)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{field}: {error}") from error
        fields[field] = jax.tree.unflatten(structure, stored)
    return State(**fields)


def known_by(energy: Any, gradient: Any, has_energy: bool) -> np.ndarray:
    """Return the values ``(chains,)`` by which a target is known at given points: energies, or norms of gradients."""
    if has_energy:
        return np.asarray(energy)
    return np.linalg.norm(np.asarray(gradient, dtype=np.float64).reshape(len(gradient), -1), axis=1)


def _stored(leaf: Any) -> np.ndarray:
    """Return a leaf of a state as numpy; keys of random numbers as their data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(leaf: Any, value: np.ndarray) -> Any:
    """Return a stored value as what ``leaf`` is: a number, or an array of numpy or JAX on its device.

    Raises:
        TypeError: it has another shape.
    """
    there = _stored(leaf)
    if there.shape != value.shape:
        raise TypeError(f"an array of shape {value.shape}, not {there.shape}")
    if not isinstance(leaf, jax.Array):
        return value if isinstance(leaf, np.ndarray) else type(leaf)(value)
    with jax.enable_x64(True):
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
        return jax.device_put(value, leaf.sharding)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
