"""Torch potentials as JAX potentials, and JAX potentials as torch potentials."""

from .convert import to_jax, to_torch

__all__ = ["to_jax", "to_torch"]
