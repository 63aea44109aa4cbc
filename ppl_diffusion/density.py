"""Densities at every noise level: energies ``U(x, level) = -log p_level(x) + constant`` and their gradients.

A density is a leaf, which says how it is evaluated, or is made of others (``ppl_diffusion.potential``). The leaves of
one density are evaluated together, and those that share a network by one call of it; how their energies combine into
one, and the gradient with them, is arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from .arrays import Array, Backend, as_backend, as_numpy, cast_like, outside_inference_mode, weighted
from .schedule import NoiseSchedule

KEPT = 32
"""Most compiled kernels and the like that a density keeps."""


class Density(ABC):
    """An unnormalised density at every noise level of a schedule.

    Leaves say how to evaluate themselves in :meth:`_evaluate` and :meth:`_evaluate_energy`, composites how the
    energies of theirs combine in :meth:`_combine`.

    Attributes:
        backend: "torch" or "jax": the arrays that it computes with.
        schedule: the noise levels that it is defined on.
        event_shape: shape of one point ``x``.
        name: what it is called in expressions and reports.
        level_arrays: whether it takes a level that is a tensor ``(1,)`` on its device, and is NaN outside the schedule,
            so that an accelerator need not be waited for to learn the level's value.
    """

    level_arrays: bool = False
    backend: Backend
    schedule: NoiseSchedule
    event_shape: tuple[int, ...]
    name: str
    __array_ufunc__ = None  # numpy scalars leave arithmetic with a potential to the potential

    def energy(self, x: Any, *, level: Any) -> Array:
        """Energy of each point.

        Args:
            x: points, shape ``(*chains, *event_shape)``, floating; numpy arrays are converted.
            level: noise level, an integer; under a JAX transformation it may be traced.

        Returns:
            Energies in nats, shape ``(*chains,)``: float64, except in JAX without 64-bit mode.

        Raises:
            ValueError: wrong shape, level out of range, or tensor on another device.
            TypeError: an array of the other backend or one that is not floating.
        """
        with outside_inference_mode():
            x = self._accept(x, level)
            energies = evaluate_energy(self.leaves(), x, level)
            return self._combine(energies)[0]

    def value_and_grad(self, x: Any, *, level: Any) -> tuple[Array, Array]:
        """Energy of each point and its gradient, by one evaluation of every network involved.

        Args:
            x: points, shape ``(*chains, *event_shape)``, floating; numpy arrays are converted.
            level: noise level, an integer; under a JAX transformation it may be traced.

        Returns:
            Energies, shape ``(*chains,)`` as in :meth:`energy`, and gradients of the shape and
            dtype of ``x``. ``-gradient`` is the score of the density at this level.

        Raises:
            ValueError, TypeError: as :meth:`energy`.
        """
        with outside_inference_mode():
            x = self._accept(x, level)
            return self._combine_with_gradient(evaluate(self.leaves(), x, level), x)

    @property
    def device(self) -> torch.device:
        """Where points in torch must be: on an accelerator if a network of it is on one."""
        return common_device([leaf for leaf in self.leaves() if leaf is not self])

    @property
    def exponent(self) -> Any:
        """Sum ``s`` of the exponents of the expression, a number or an array of ``event_shape``.

        At the noisiest level a model is standard normal, hence the composed density
        ``N(0, I / s)``: where annealed chains start.

        Raises:
            ValueError: the components of a mixture do not agree on it.
        """
        return 1.0

    @property
    def reference(self) -> tuple[Any, Any]:
        """Mean and variance of the data, as far as they are known: numbers, or arrays that broadcast to the event."""
        return (0.0, 1.0)

    @property
    def diffused(self) -> Any:
        """Which coordinates noise is added to: all, or booleans of ``event_shape``."""
        return True

    def refresh(self, positions: Any, level: int, *, rng: np.random.Generator) -> tuple[Any, Any]:
        """Moves that leave the density of ``level`` invariant and cost next to nothing, made on arrival there.

        Returns:
            Positions, and by how much the energy of each has changed, ``(chains,)``; here none, and 0.
        """
        return positions, 0.0

    def start(self, level: int, *, chains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws from ``N(0, I / s)``, ``s`` the :attr:`exponent`, times sigma where the schedule explodes.

        Args:
            level: the noisiest level of a ladder.
            chains: number of draws.
            rng: source of randomness.

        Returns:
            Positions ``(chains, *event_shape)`` and their log-density ``(chains,)``.

        Raises:
            ValueError: exponents whose sum is not positive.
        """
        total = np.broadcast_to(np.asarray(self.exponent, dtype=np.float64), self.event_shape)
        if np.any(total <= 0):
            raise ValueError(
                f"the exponents of {self} sum to {total.min():.3g}, so it has no density at the noisiest level to "
                "start from: make the sum positive, or pass init="
            )
        scale = max(1.0, self.schedule.sigma(level)) / np.sqrt(total)
        noise = rng.standard_normal((chains, *self.event_shape))
        constant = np.sum(np.log(scale)) + 0.5 * scale.size * np.log(2 * np.pi)
        return noise * scale, -0.5 * np.sum(noise.reshape(chains, -1) ** 2, axis=1) - constant

    def same_as(self, other: Density) -> bool:
        """Whether another expression, built anew perhaps, is the same density at every level."""
        if other is self:
            return True
        spaces = [(p.backend, p.schedule, tuple(p.event_shape)) for p in (self, other)]
        if spaces[0] != spaces[1]:
            return False
        mine, theirs = self.leaves(), other.leaves()
        if [leaf.identity for leaf in mine] == [leaf.identity for leaf in theirs]:  # then the algebra decides
            xp: Any = jnp if self.backend == "jax" else torch
            values = [xp.asarray(u) for u in np.random.default_rng(0).uniform(1, 2, len(mine))]
            one, two = (p._combine(dict(zip(p.leaves(), values, strict=True)))[0] for p in (self, other))
            return bool(one == two)
        point = np.random.default_rng(0).standard_normal(self.event_shape)
        for level in (0, len(self.schedule) - 1):
            one, two = (as_numpy(p.energy(point, level=level)) for p in (self, other))
            if not np.allclose(one, two):
                return False
        return True

    @property
    def identity(self) -> Any:
        """Equal for leaves that are the same density."""
        return self

    def parts(self) -> tuple[Any, ...]:
        """The distinct densities that it is directly made of, or carries into another library."""
        return ()

    def leaves(self) -> tuple[Any, ...]:
        """The distinct densities whose energies its own is arithmetic of."""
        return (self,)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memo"}

    def memo(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """What ``build()`` returned for ``key`` the first time: compiled code and the like, which is not pickled. The
        oldest of more than ``KEPT`` is forgotten."""
        cache = self.__dict__.setdefault("_memo", {})
        if key not in cache:
            cache[key] = build()
            if len(cache) > KEPT:
                del cache[next(iter(cache))]
        return cache[key]

    def evaluate_group(
        self, members: Sequence[Density], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Evaluate leaves that share one network, ``self`` among them, each at its own points, by as few calls as
        possible."""
        return [member._evaluate(x, level) for member, x in zip(members, points, strict=True)]

    def energy_group(self, members: Sequence[Density], points: Sequence[Array], level: Any) -> list[Array]:
        """As :meth:`evaluate_group`, energies only, differentiable with the backend's own tools."""
        return [member._evaluate_energy(x, level) for member, x in zip(members, points, strict=True)]

    @property
    def group(self) -> Any:
        """Leaves of equal group are evaluated together: the network that they share, or themselves."""
        return self

    def _combine(self, energies: Mapping[Density, Array]) -> tuple[Array, dict[Density, Any]]:
        """The energy from those of the leaves, and its derivative with respect to each of them."""
        return energies[self], {self: 1.0}

    def _combine_with_gradient(self, values: Mapping[Density, tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
        """Energy and gradient at ``x (*chains, *event_shape)`` from those of the leaves."""
        energy, weights = self._combine({leaf: value for leaf, (value, _) in values.items()})
        gradient: Any = 0.0
        for leaf, weight in weights.items():
            gradient = gradient + weighted(weight, values[leaf][1], self.event_shape)
        return energy, cast_like(gradient, x)

    @abstractmethod
    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        """Energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` at accepted points."""

    @abstractmethod
    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        """Energies ``(*chains,)`` at accepted points, differentiable with the backend's own tools."""

    def _accept(self, x: Any, level: Any) -> Array:
        if not isinstance(level, jax.core.Tracer):
            self.schedule.check_level(level.item() if isinstance(level, jax.Array) and level.ndim == 0 else level)
        x = as_backend(x, self.backend, self.name, device=self.device)
        rank = len(self.event_shape)
        if x.ndim < rank or tuple(x.shape[x.ndim - rank :]) != self.event_shape:
            raise ValueError(
                f"{self.name} takes points of shape (*chains, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return x

    def __repr__(self) -> str:
        return self.name


def evaluate(leaves: Sequence[Density], x: Array, level: Any) -> dict[Density, tuple[Array, Array]]:
    """Energy and gradient of every leaf at the same points; leaves that share a network go together."""
    return dict(zip(leaves, evaluate_each(leaves, [x] * len(leaves), level), strict=True))


def evaluate_each(leaves: Sequence[Density], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
    """Energy and gradient of every leaf at its own points; leaves that share a network go together."""
    return _by_group(leaves, points, lambda first, *group: first.evaluate_group(*group, level))


def evaluate_energy(leaves: Sequence[Density], x: Array, level: Any) -> dict[Density, Array]:
    """Energy of every leaf at the same points, differentiable with the backend's own tools."""
    return dict(zip(leaves, energy_of_each(leaves, [x] * len(leaves), level), strict=True))


def energy_of_each(leaves: Sequence[Density], points: Sequence[Array], level: Any) -> list[Array]:
    """Energy of every leaf at its own points, differentiable; leaves that share a network go together."""
    return _by_group(leaves, points, lambda first, *group: first.energy_group(*group, level))


def _by_group(leaves: Sequence[Density], points: Sequence[Array], evaluate: Callable[..., list[Any]]) -> list[Any]:
    """What ``evaluate`` makes of the leaves of each group and their points, in the order of the leaves."""
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        groups.setdefault(leaf.group, []).append(index)
    values: dict[int, Any] = {}
    for indices in groups.values():
        members = [leaves[i] for i in indices]
        found = evaluate(members[0], members, [points[i] for i in indices])
        values.update(zip(indices, found, strict=True))
    return [values[index] for index in range(len(leaves))]


def common_device(densities: Sequence[Density]) -> torch.device:
    """The accelerator that networks of some of the densities are on; the processor if there is none."""
    devices = [density.device for density in densities]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def common_reference(leaves: Sequence[Density]) -> tuple[Any, Any]:
    """Mean and variance of the data of potentials that share them; those of unit data otherwise."""
    first = leaves[0].reference
    agreed = all(np.array_equal(a, b) for leaf in leaves[1:] for a, b in zip(first, leaf.reference, strict=True))
    return first if agreed else (0.0, 1.0)
