"""Potentials: unnormalised densities at every noise level, and their algebra.

A potential gives the energy ``U(x, level) = -log p_level(x) + constant`` and its gradient. Densities
are combined level by level:

    product      (p q)(x)     U = U_p + U_q                       p * q
    power        p(x)^a       U = a U_p                           p ** a
    quotient     p(x)/q(x)^a  U = U_p - a U_q                     p / q ** a
    scale        c p(x)       U = U_p - log c                     c * p
    mixture      sum c_i p_i  U = -logsumexp_i(log c_i - U_i)     0.5 * p + 0.5 * q

A product of noised densities is not the noised product: composed potentials are a path of
densities whose last rung is the target. Mixtures weigh the *unnormalised* densities. A quotient
may not be normalisable, at some levels or at all; see :func:`ppl_diffusion.compose.check_quotient`.

Source: Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC
(Du et al., 2023), https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from .arrays import Array, Backend, as_backend, cast_like, logsumexp, per_point
from .schedule import NoiseSchedule


class Potential(ABC):
    """An unnormalised density at every noise level of a schedule.

    Subclasses are leaves: they say how to evaluate themselves in :meth:`_evaluate` and
    :meth:`_evaluate_energy`. Everything else, composition included, is built here.

    Attributes:
        backend: "torch" or "jax": the arrays that it computes with.
        schedule: the noise levels that it is defined on.
        event_shape: shape of one point ``x``.
        name: what it is called in expressions and reports.
    """

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
        x = self._accept(x, level)
        values = evaluate(self.leaves(), x, level)
        energy, weights = self._combine({leaf: value for leaf, (value, _) in values.items()})
        gradient = 0.0
        for leaf, weight in weights.items():
            gradient = gradient + per_point(weight, x, self.event_shape) * values[leaf][1]
        return energy, cast_like(gradient, x)

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

    def leaves(self) -> tuple[Potential, ...]:
        """The distinct potentials that an expression is made of."""
        return (self,)

    def memo(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """What ``build()`` returned for ``key`` the first time: compiled code that lives as long as the potential."""
        cache = self.__dict__.setdefault("_memo", {})
        if key not in cache:
            cache[key] = build()
        return cache[key]

    def evaluate_group(
        self, members: Sequence[Potential], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Evaluate leaves that share one network, ``self`` among them, each at its own points, by as few calls as
        possible."""
        return [member._evaluate(x, level) for member, x in zip(members, points, strict=True)]

    @property
    def group(self) -> Any:
        """Leaves of equal group are evaluated together: the network that they share, or themselves."""
        return self

    def _combine(self, energies: Mapping[Potential, Array]) -> tuple[Array, dict[Potential, Any]]:
        """The energy from those of the leaves, and its derivative with respect to each of them."""
        return energies[self], {self: 1.0}

    @abstractmethod
    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        """Energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` at accepted points."""

    @abstractmethod
    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        """Energies ``(*chains,)`` at accepted points, differentiable with the backend's own tools."""

    def _accept(self, x: Any, level: Any) -> Array:
        if not isinstance(level, jax.core.Tracer):
            self.schedule.check_level(level.item() if isinstance(level, jax.Array) and level.ndim == 0 else level)
        x = as_backend(x, self.backend, self.name)
        rank = len(self.event_shape)
        if x.ndim < rank or tuple(x.shape[x.ndim - rank :]) != self.event_shape:
            raise ValueError(
                f"{self.name} takes points of shape (*chains, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return x

    def __mul__(self, other: Any) -> Potential:
        if isinstance(other, Potential):
            return product([self, other])
        return Product([self], [1.0], log_scale=_log_positive(other))

    def __rmul__(self, other: Any) -> Potential:
        return self * other

    def __truediv__(self, other: Any) -> Potential:
        if isinstance(other, Potential):
            return Product([self, other], [1.0, -1.0])
        return Product([self], [1.0], log_scale=-_log_positive(other))

    def __pow__(self, exponent: Any) -> Potential:
        if not isinstance(exponent, Real) or not np.isfinite(float(exponent)):
            raise TypeError(f"a density can be raised to a finite number, not to {exponent!r}: try p ** 0.5")
        return Product([self], [float(exponent)])

    def __add__(self, other: Any) -> Potential:
        if not isinstance(other, Potential):
            raise TypeError(f"only a density can be added to a density, not {other!r}: try 0.5 * p + 0.5 * q")
        return mixture([self, other], log_weights=[0.0, 0.0])

    def __repr__(self) -> str:
        return self.name


class Product(Potential):
    """``c * p_1 ** a_1 * p_2 ** a_2 * ...``: what ``*``, ``/``, ``**`` and scalar factors build.

    Factors that are products themselves are multiplied out, equal factors are collected, and factors
    whose exponents cancel are left out unless nothing else remains.

    Attributes:
        factors: the distinct potentials that are multiplied.
        exponents: exponent of each.
        log_scale: ``log c``; it matters only inside a mixture.
    """

    factors: tuple[Potential, ...]
    exponents: tuple[float, ...]
    log_scale: float

    def __init__(self, factors: Sequence[Potential], exponents: Sequence[float], *, log_scale: float = 0.0) -> None:
        collected: dict[Potential, float] = {}
        for factor, exponent in zip(factors, exponents, strict=True):
            if isinstance(factor, Product):
                log_scale += exponent * factor.log_scale
                inner = zip(factor.factors, factor.exponents, strict=True)
            else:
                inner = zip((factor,), (1.0,), strict=True)
            for potential, power in inner:
                collected[potential] = collected.get(potential, 0.0) + float(exponent * power)
        _share(self, tuple(collected))
        # p * q / p is q: a factor that cancels is not evaluated, and its failures are not ours.
        collected = {factor: a for factor, a in collected.items() if a != 0} or collected
        self.factors, self.exponents = tuple(collected), tuple(collected.values())
        self.log_scale = float(log_scale)
        self.name = _product_name(self)

    @property
    def exponent(self) -> Any:
        return sum(a * factor.exponent for factor, a in zip(self.factors, self.exponents, strict=True))

    def leaves(self) -> tuple[Potential, ...]:
        return _distinct(self.factors)

    @property
    def reference(self) -> tuple[Any, Any]:
        return common_reference(self.leaves())

    def _combine(self, energies: Mapping[Potential, Array]) -> tuple[Array, dict[Potential, Any]]:
        energy: Any = -self.log_scale
        weights: dict[Potential, Any] = {}
        for factor, a in zip(self.factors, self.exponents, strict=True):
            inner, slopes = factor._combine(energies)
            energy = energy + a * inner
            for leaf, slope in slopes.items():
                weights[leaf] = weights.get(leaf, 0.0) + a * slope
        return energy, weights

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.value_and_grad(x, level=level)

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy(x, level=level)


class Mixture(Potential):
    """``sum_i w_i p_i`` of unnormalised densities: what ``+`` and :func:`mixture` build.

    Attributes:
        components: the potentials that are added.
        log_weights: ``log w_i`` of each.
    """

    def __init__(self, components: Sequence[Potential], log_weights: Sequence[float]) -> None:
        _share(self, components)
        self.components = tuple(components)
        self.log_weights = tuple(float(w) for w in log_weights)
        self.name = " + ".join(
            str(c) if w == 0 else f"{_number(w)} * {_bracket(c)}"
            for c, w in zip(self.components, self.log_weights, strict=True)
        )

    @property
    def exponent(self) -> Any:
        exponents = [np.asarray(component.exponent) for component in self.components]
        if any(not np.allclose(exponents[0], s) for s in exponents[1:]):
            raise ValueError(
                f"the components of {self.name} have exponents that sum to different values, so there is no common "
                "density to start from: pass init=, an array of shape (chains, *event_shape)"
            )
        return self.components[0].exponent

    def leaves(self) -> tuple[Potential, ...]:
        return _distinct(self.components)

    @property
    def reference(self) -> tuple[Any, Any]:
        return common_reference(self.leaves())

    def _combine(self, energies: Mapping[Potential, Array]) -> tuple[Array, dict[Potential, Any]]:
        pairs = [component._combine(energies) for component in self.components]
        terms = [log_weight - inner for log_weight, (inner, _) in zip(self.log_weights, pairs, strict=True)]
        xp: Any = jnp if self.backend == "jax" else torch
        total = logsumexp(xp.stack(terms), axis=0)
        weights: dict[Potential, Any] = {}
        for term, (_, slopes) in zip(terms, pairs, strict=True):
            share = xp.exp(term - total)
            for leaf, slope in slopes.items():
                weights[leaf] = weights.get(leaf, 0.0) + share * slope
        return -total, weights

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.value_and_grad(x, level=level)

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy(x, level=level)


def product(potentials: Sequence[Potential]) -> Product:
    """``p_1 * p_2 * ...``: energies add.

    Raises:
        ValueError, TypeError: no potentials, or potentials that do not fit together.
    """
    return Product(potentials, [1.0] * len(potentials))


def mixture(potentials: Sequence[Potential], *, log_weights: Sequence[float] | None = None) -> Mixture:
    """``sum_i exp(log_weights_i) p_i`` of unnormalised densities; components that are mixtures are merged.

    Args:
        potentials: the components.
        log_weights: log of each weight; equal weights that sum to one by default. What a weight
            means depends on the normaliser of its component.

    Raises:
        ValueError, TypeError: no potentials, as many weights as there are not components, weights
            that are not finite, or potentials that do not fit together.
    """
    if log_weights is None:
        log_weights = [-float(np.log(max(len(potentials), 1)))] * len(potentials)
    if len(log_weights) != len(potentials) or not np.all(np.isfinite(log_weights)):
        raise ValueError(
            f"mixture needs one finite log weight per component, got {list(log_weights)} for {len(potentials)}: "
            "leave out components of weight zero"
        )
    components: list[Potential] = []
    weights: list[float] = []
    for potential, log_weight in zip(potentials, log_weights, strict=True):
        scale = 0.0
        inner = potential
        if isinstance(potential, Product) and potential.exponents == (1.0,):
            inner, scale = potential.factors[0], potential.log_scale
        if isinstance(inner, Mixture):
            components += inner.components
            weights += [log_weight + scale + w for w in inner.log_weights]
        else:
            components.append(inner)
            weights.append(log_weight + scale)
    return Mixture(components, weights)


def evaluate(leaves: Sequence[Potential], x: Array, level: Any) -> dict[Potential, tuple[Array, Array]]:
    """Energy and gradient of every leaf at the same points; leaves that share a network go together."""
    return dict(zip(leaves, evaluate_each(leaves, [x] * len(leaves), level), strict=True))


def evaluate_each(leaves: Sequence[Potential], points: Sequence[Array], level: Any) -> list[tuple[Array, Array]]:
    """Energy and gradient of every leaf at its own points; leaves that share a network go together."""
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        groups.setdefault(leaf.group, []).append(index)
    values: dict[int, tuple[Array, Array]] = {}
    for indices in groups.values():
        members = [leaves[i] for i in indices]
        found = members[0].evaluate_group(members, [points[i] for i in indices], level)
        values.update(zip(indices, found, strict=True))
    return [values[index] for index in range(len(leaves))]


def evaluate_energy(leaves: Sequence[Potential], x: Array, level: Any) -> dict[Potential, Array]:
    """Energy of every leaf at the same points, differentiable with the backend's own tools."""
    return {leaf: leaf._evaluate_energy(x, level) for leaf in leaves}


def _share(composite: Potential, potentials: Sequence[Potential]) -> None:
    """Give a composite the backend, schedule and event shape that its parts must have in common."""
    composite.backend, composite.schedule, composite.event_shape = common_ground(potentials)


def common_ground(potentials: Sequence[Potential]) -> tuple[Backend, NoiseSchedule, tuple[int, ...]]:
    """Backend, schedule and event shape of potentials that are composed.

    Raises:
        ValueError, TypeError: no potentials, or potentials that do not have these in common.
    """
    if not potentials:
        raise ValueError("a composition needs at least one potential")
    for potential in potentials:
        if not isinstance(potential, Potential):
            raise TypeError(f"only potentials can be composed, got {potential!r}: wrap a function in EnergyFunction")
    first = potentials[0]
    for other in potentials[1:]:
        if other.backend != first.backend:
            raise TypeError(
                f"{first} computes with {first.backend} and {other} with {other.backend}: convert one, "
                "bridges.torch_jax.to_jax(p) or bridges.torch_jax.to_torch(p)"
            )
        if other.event_shape != first.event_shape:
            raise ValueError(
                f"{first} has points of shape {first.event_shape} and {other} of {other.event_shape}: "
                "only potentials over the same space can be composed"
            )
        if other.schedule != first.schedule:
            raise ValueError(
                f"{first} and {other} have different noise schedules ({first.schedule} and {other.schedule}): "
                "composition is level by level, give both the same schedule="
            )
    return first.backend, first.schedule, first.event_shape


def common_reference(leaves: Sequence[Potential]) -> tuple[Any, Any]:
    """Mean and variance of the data of potentials that share them; those of unit data otherwise."""
    first = leaves[0].reference
    return first if all(leaf.reference is first or leaf.group is leaves[0].group for leaf in leaves) else (0.0, 1.0)


def _distinct(potentials: Sequence[Potential]) -> tuple[Potential, ...]:
    return tuple(dict.fromkeys(leaf for potential in potentials for leaf in potential.leaves()))


def _log_positive(scale: Any) -> float:
    if not isinstance(scale, Real):
        raise TypeError(f"a density can be multiplied by a density or a positive number, not by {scale!r}")
    factor = float(scale)
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"a density can only be scaled by a positive number, got {factor}: use / for a quotient")
    return float(np.log(factor))


def _bracket(potential: Potential) -> str:
    return f"({potential})" if isinstance(potential, (Product, Mixture)) else str(potential)


def _number(log_scale: float) -> str:
    return f"{np.exp(log_scale):.4g}" if abs(log_scale) < 100 else f"exp({log_scale:.4g})"


def _product_name(product: Product) -> str:
    text = "" if product.log_scale == 0 else _number(product.log_scale)
    for factor, a in zip(product.factors, product.exponents, strict=True):
        power = "" if abs(a) == 1 and (a > 0 or text) else f"**{abs(a) if text else a:.4g}"
        sign = "" if not text else " * " if a >= 0 else " / "
        text += f"{sign}{_bracket(factor)}{power}"
    return text
