"""Potentials, unnormalised densities at every noise level, and the operators that compose them.

Potentials are composed level by level:

    product      (p q)(x)     U = U_p + U_q                       p * q
    power        p(x)^a       U = a U_p                           p ** a
    quotient     p(x)/q(x)^a  U = U_p - a U_q                     p / q ** a
    scale        c p(x)       U = U_p - log c                     c * p
    mixture      sum c_i p_i  U = -logsumexp_i(log c_i - U_i)     0.5 * p + 0.5 * q

A product of noised densities is not the noised product: a composed potential defines an annealing
path, and only its last rung is the target. Mixture weights multiply *unnormalised* densities. A quotient
may not be normalisable, at some levels or at all; see :func:`ppl_diffusion.check_quotient`.

Source: Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC
(Du et al., 2023), https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from ..arrays import Array, logsumexp
from ..schedule import NoiseSchedule
from .combined import Combined
from .common_ground import common_ground, set_common_ground
from .evaluation import evaluate, evaluate_energy
from .factors import collect
from .notation import log_positive, product_name
from .target import common_device, common_reference, require_energy


class Potential(Combined):
    """A target that can be multiplied, divided, raised to a power, and added to others.

    A subclass is a ``Leaf`` or a :class:`Composite`. To evaluate a composite, all of its distinct leaves are
    evaluated first, with one network call for leaves that share a network. Their energies and gradients are then
    combined by arithmetic.
    """

    composable = True

    def doubts(self) -> tuple[str, ...]:
        """Return what is known to be wrong with it, in sentences; compositions warn of it."""
        return ()

    @abstractmethod
    def at(self, schedule: NoiseSchedule) -> Potential:
        """Return the same density at the noise levels of another schedule, such as ``schedule.finer(4)``.

        Raises:
            TypeError: a part is known at its own levels only.
            ValueError: a part was not trained at these levels.
        """

    @abstractmethod
    def leaves(self) -> tuple[Potential, ...]:
        """Return the distinct leaves, from whose energies :meth:`_combine` computes its own."""

    def __mul__(self, other: Any) -> Potential:
        if isinstance(other, Potential):
            return product([self, other])
        return Product([self], [1.0], log_scale=log_positive(other))

    def __rmul__(self, other: Any) -> Potential:
        return self * other

    def __truediv__(self, other: Any) -> Potential:
        if isinstance(other, Potential):
            return Product([self, other], [1.0, -1.0])
        return Product([self], [1.0], log_scale=-log_positive(other))

    def __rtruediv__(self, other: Any) -> Potential:
        return Product([self], [-1.0], log_scale=log_positive(other))

    def __pow__(self, exponent: Any) -> Potential:
        if not isinstance(exponent, Real) or not np.isfinite(float(exponent)):
            raise TypeError(f"a density can be raised to a finite number, not to {exponent!r}: try p ** 0.5")
        return Product([self], [float(exponent)])

    def __add__(self, other: Any) -> Potential:
        if not isinstance(other, Potential):
            raise TypeError(f"only a density can be added to a density, not {other!r}: try 0.5 * p + 0.5 * q")
        return mixture([self, other], log_weights=[0.0, 0.0])

    def __sub__(self, other: Any) -> Potential:
        raise TypeError(f"densities cannot be subtracted: for a quotient write ({self}) / ({other})")

    __rsub__ = __sub__

    def __neg__(self) -> Potential:
        raise TypeError(f"a density cannot be negative: for its inverse, as a factor, write ({self}) ** -1")

    def __radd__(self, other: Any) -> Potential:
        return self if isinstance(other, int) and other == 0 else self + other  # sum([p, q]) begins with 0


class Composite(Potential):
    """A potential composed of others, whose energy is computed from the energies of its leaves."""

    levels_of_points = True  # of whatever leaves: those that take one level only are evaluated level by level

    @abstractmethod
    def parts(self) -> tuple[Potential, ...]:
        """Return the distinct potentials that it is directly composed of."""

    @abstractmethod
    def rebuilt(self, replace: Callable[[Potential], Potential]) -> Potential:
        """Return the same composition with ``replace(part)`` in place of each part."""

    def at(self, schedule: NoiseSchedule) -> Potential:
        return self.rebuilt(lambda part: part.at(schedule))

    def leaves(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(leaf for part in self.parts() for leaf in part.leaves()))

    @property
    def level_arrays(self) -> bool:  # type: ignore[override]
        """Whether every part accepts the level as a tensor on its device; see ``Potential``."""
        return all(part.level_arrays for part in self.parts())

    @property
    def device(self) -> torch.device:
        """Device that torch points must be on: a GPU if one of its networks is on one, else the CPU."""
        return common_device(self.leaves())

    @property
    def has_energy(self) -> bool:
        return all(part.has_energy for part in self.parts())

    @property
    def reference(self) -> tuple[Any, Any]:
        return common_reference(self.leaves())

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self._combine_with_gradient(evaluate(self.leaves(), x, level), x)

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self._combine(evaluate_energy(self.leaves(), x, level))[0]


class Product(Composite):
    """The density ``c * p_1 ** a_1 * p_2 ** a_2 * ...``, built by ``*``, ``/``, ``**`` and scalar factors.

    Factors that are products themselves are expanded and exponents of equal factors are added. Factors
    whose exponents cancel are dropped, unless no factor would remain.

    Attributes:
        factors: the distinct potentials ``p_i``.
        exponents: the exponent ``a_i`` of each factor.
        log_scale: ``log c``; it affects samples only inside a mixture.
    """

    factors: tuple[Potential, ...]
    exponents: tuple[float, ...]
    log_scale: float

    def __init__(self, factors: Sequence[Potential], exponents: Sequence[float], *, log_scale: float = 0.0) -> None:
        set_common_ground(self, factors)
        powers: list[tuple[Potential, Any, float]] = []
        for factor, exponent in zip(factors, exponents, strict=True):
            inner = [(factor, 1.0)]
            if isinstance(factor, Product):
                log_scale += exponent * factor.log_scale
                inner = list(zip(factor.factors, factor.exponents, strict=True))
            powers += [(one, one.identity, float(exponent * power)) for one, power in inner]
        collected = collect(powers)
        self.factors, self.exponents = tuple(collected), tuple(collected.values())
        self.log_scale = float(log_scale)
        names = [_parenthesised(factor) for factor in self.factors]
        self.name = product_name(names, self.exponents, self.log_scale)
        if self.name == names[0]:
            self.name = str(self.factors[0])

    @property
    def exponent(self) -> Any:
        return sum(a * factor.exponent for factor, a in zip(self.factors, self.exponents, strict=True))

    def parts(self) -> tuple[Potential, ...]:
        return self.factors

    def rebuilt(self, replace: Callable[[Potential], Potential]) -> Product:
        return Product([replace(factor) for factor in self.factors], self.exponents, log_scale=self.log_scale)

    def _combine(self, energies: Mapping[Any, Array]) -> tuple[Array, dict[Any, Any]]:
        energy: Any = -self.log_scale
        weights: dict[Potential, Any] = {}
        for factor, a in zip(self.factors, self.exponents, strict=True):
            inner, slopes = factor._combine(energies)
            energy = energy + a * inner
            for leaf, slope in slopes.items():
                weights[leaf] = weights.get(leaf, 0.0) + a * slope
        return energy, weights


class Mixture(Composite):
    """The density ``sum_i w_i p_i`` of unnormalised densities, built by ``+`` and :func:`mixture`.

    Attributes:
        components: the potentials ``p_i``.
        log_weights: ``log w_i`` of each component.
    """

    def __init__(self, components: Sequence[Potential], log_weights: Sequence[float]) -> None:
        set_common_ground(self, components)
        for component in components:
            require_energy(component, "mixtures")
        self.components = tuple(components)
        self.log_weights = tuple(float(w) for w in log_weights)
        weighed = zip(self.components, self.log_weights, strict=True)
        self.name = " + ".join(str(Product([component], [1.0], log_scale=weight)) for component, weight in weighed)

    @property
    def exponent(self) -> Any:
        exponents = [np.asarray(component.exponent) for component in self.components]
        if any(not np.allclose(exponents[0], s) for s in exponents[1:]):
            raise ValueError(
                f"the components of {self.name} have exponents that sum to different values, so there is no common "
                "density to start from: pass init=, an array of shape (chains, *event_shape)"
            )
        return self.components[0].exponent

    def parts(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(self.components))

    def rebuilt(self, replace: Callable[[Potential], Potential]) -> Mixture:
        return Mixture([replace(component) for component in self.components], self.log_weights)

    def _combine(self, energies: Mapping[Any, Array]) -> tuple[Array, dict[Any, Any]]:
        pairs = [component._combine(energies) for component in self.components]
        terms = [log_weight - inner for log_weight, (inner, _) in zip(self.log_weights, pairs, strict=True)]
        xp: Any = jnp if self.backend == "jax" else torch
        total = logsumexp(xp.stack(terms), axis=0)
        weights: dict[Potential, Any] = {}
        for term, (_, slopes) in zip(terms, pairs, strict=True):
            share = xp.where(term == -xp.inf, 0.0, xp.exp(term - total))  # also where all terms are: not NaN
            for leaf, slope in slopes.items():
                weights[leaf] = weights.get(leaf, 0.0) + share * slope
        return -total, weights


def product(potentials: Sequence[Potential]) -> Product:
    """Return the product ``p_1 * p_2 * ...``, whose energy is the sum of the energies.

    >>> from ppl_diffusion import load
    >>> ring, bar = load("ring"), load("bar")
    >>> product([ring, bar, bar]).exponents
    (1.0, 2.0)

    Raises:
        ValueError, TypeError: there are no potentials, or they cannot be composed (see :func:`common_ground`).
    """
    common_ground(potentials)
    return Product(potentials, [1.0] * len(potentials))


def mixture(potentials: Sequence[Potential], *, log_weights: Sequence[float] | None = None) -> Mixture:
    """Return ``sum_i exp(log_weights_i) p_i``; components that are mixtures themselves are flattened.

    >>> from ppl_diffusion import load
    >>> mixture([load("ring"), load("bar")], log_weights=[0.0, 0.0])
    ring + bar

    Args:
        potentials: the components ``p_i``.
        log_weights: log-weight of each component; by default equal weights that sum to one. Weights multiply
            unnormalised densities: a component's share of the mass also depends on its normaliser.

    Raises:
        ValueError, TypeError: there are no potentials, they cannot be composed (see :func:`common_ground`), or
            ``log_weights`` are not finite or not one per component.
    """
    common_ground(potentials)
    if log_weights is None:
        log_weights = [-float(np.log(max(len(potentials), 1)))] * len(potentials)
    if len(log_weights) != len(potentials) or not np.all(np.isfinite(log_weights)):
        raise ValueError(
            f"mixture needs one finite log weight per component, got {list(log_weights)} for {len(potentials)}: "
            f"give {len(potentials)}, and leave out components of weight zero"
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


def _parenthesised(potential: Potential) -> str:
    return f"({potential})" if isinstance(potential, (Product, Mixture)) else str(potential)
