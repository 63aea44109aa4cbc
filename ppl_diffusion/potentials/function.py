"""A potential defined by an arbitrary energy function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from ..arrays import Array, Backend, check_backend, double
from ..schedule import NoiseSchedule
from .leaf import Leaf


class EnergyFunction(Leaf):
    """A potential whose energy is ``function(x, level)``.

    Args:
        function: maps points ``(*chains, *event_shape)`` and a level to energies ``(*chains,)``, with arrays of the
            backend and differentiably; the energy of a chain must not depend on other chains. Kernels of JAX call it
            with a single point ``(*event_shape)``: index axes from the last, ``x[..., 0]``.
            In JAX, ``level`` is a traced integer during sampling, and other values that the function reads are
            compiled in at the first run: to change them, make a new ``EnergyFunction``.
        schedule: the noise levels.
        event_shape: shape of one point, a tuple.
        backend: "torch" or "jax".
        exponent: 1 for a density of noised data; 0 for a likelihood, or any other factor that carries no noise of its
            own. By default chains start from ``N(0, I / s)``, where ``s`` is the sum of the exponents of an expression.
            Reverse steps throw chains out where such a likelihood is steep and does not widen with the noise.
        device: for torch, the device on which ``function`` receives its points and holds its tensors.
        name: name in reports; by default the name of the function.

    Raises:
        TypeError: ``function`` is not callable; at evaluation, it returns something other than arrays of the backend.
        ValueError: ``backend`` is unknown, or a device other than the CPU is given for JAX; at evaluation, energies
            have the wrong shape, or torch cannot differentiate them with respect to ``x``.
    """

    _exponent = 1.0

    def __init__(
        self,
        function: Callable[[Array, Any], Array],
        *,
        schedule: NoiseSchedule,
        event_shape: Sequence[int],
        backend: Backend,
        exponent: float = 1.0,
        device: str | torch.device = "cpu",
        name: str | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"an energy function must be callable as function(x, level), got {function!r}")
        if isinstance(event_shape, int):
            raise TypeError(f"event_shape is a tuple: try event_shape=({event_shape},)")
        if not isinstance(exponent, (int, float, np.number)) or not np.isfinite(exponent):
            raise ValueError(f"exponent must be a finite number, got {exponent!r}: 1 for a density, 0 for a likelihood")
        self.function, self._exponent = function, float(exponent)
        self.schedule, self.event_shape, self.backend = schedule, tuple(event_shape), check_backend(backend)
        self._device = torch.device(device)
        if self.backend == "jax" and self._device.type != "cpu":
            raise ValueError(f"device={str(device)!r} is for torch: JAX arrays are where JAX puts them, leave it out")
        self.name = name or getattr(function, "__name__", "energy").replace("<lambda>", "energy")

    @property
    def exponent(self) -> Any:
        return self._exponent

    @property
    def device(self) -> torch.device:
        """Device that torch points must be on."""
        return self._device

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        if self.backend == "jax":
            (_, energy), gradient = jax.value_and_grad(self._total, has_aux=True)(x, level)
            return energy, gradient
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            total, energy = self._total(x, level)
            if not total.requires_grad:
                raise ValueError(f"{self.name} does not depend on x by torch operations: it has no gradient to walk by")
            (gradient,) = torch.autograd.grad(total, x)
        return energy.detach(), gradient

    def _total(self, x: Array, level: Any) -> tuple[Array, Array]:
        """Return the sum of the energies, whose gradient is that of every chain, and the energies ``(*chains,)``."""
        energy = self._evaluate_energy(x, level)
        return energy.sum(), energy

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        energy = self.function(x, level)
        if not isinstance(energy, jax.Array if self.backend == "jax" else torch.Tensor):
            raise TypeError(f"{self.name} must return {self.backend} arrays, one energy per chain, got {type(energy)}")
        chains = self._chain_shape(x)
        if tuple(energy.shape) != chains:
            raise ValueError(
                f"{self.name} returned energies of shape {tuple(energy.shape)} for points of shape {tuple(x.shape)}: "
                f"it must return one energy per chain, shape {chains}"
            )
        return double(energy)
