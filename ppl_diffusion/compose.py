"""Compositions with a name: guidance, conjunction, observation; and the guard of quotients.

    guidance       p_u^(1-w) p_c^w                      U_u + w (U_c - U_u)
    conjunction    base prod_i (p_i / base)             U_base + sum_i (U_i - U_base)
    observation    N(y; x, scale^2) of seen coordinates, noised along the ladder as the data are

All of them are applied level by level: they define a path of densities whose last rung is the target.
A negative exponent divides by a density. The quotient may not be normalisable, at some levels or at
all, and even where it is, its mass may lie where the numerator has never seen data.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .arrays import Array, Backend, as_backend, as_numpy, check_backend, double
from .density import Density
from .potential import Composite, Potential, Product
from .schedule import NoiseSchedule

FAR = (1.0, 2.0, 4.0, 8.0)
"""Distances at which tails are probed, in units of three root-mean-square radii of noised unit data: from each
to the next the energy must grow (a learned energy may dip in between)."""

OUTSIDE = 6.0
"""Mean squared predicted noise per coordinate above which a chain lies outside a factor's support (one draw
of a factor in two dimensions passes it with probability .0025)."""

TOLERATED = 0.05
"""Share of chains that may lie outside before it is said."""


def guidance(conditional: Potential, unconditional: Potential, *, scale: float) -> Product:
    """``unconditional ** (1 - scale) * conditional ** scale``, level by level.

    A scale beyond 1 divides by the unconditional density: see :func:`check_quotient`.

    Source: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
    """
    return conditional**scale * unconditional ** (1 - scale)  # type: ignore[return-value]


def conjunction(potentials: Sequence[Potential], base: Potential) -> Product:
    """``base * prod_i (p_i / base)``: all conditions at once, each relative to the unconditional density.

    Raises:
        ValueError, TypeError: no potentials, or potentials that do not fit together.
    """
    if isinstance(potentials, Potential) or not potentials:
        raise ValueError("a conjunction needs at least one potential: conjunction([p1, p2], base)")
    return Product([base, *potentials], [1.0 - len(potentials), *([1.0] * len(potentials))])


class Observation(Potential):
    """A Gaussian likelihood of seen coordinates as a potential; built by :func:`observation`.

    Attributes:
        values: what was seen, shape ``event_shape``; ignored where nothing was.
        seen: shape ``event_shape``, bool.
        scale: standard deviation of the measurement.
    """

    def __init__(
        self, values: np.ndarray, seen: np.ndarray, scale: float, schedule: NoiseSchedule, backend: Backend, name: str
    ) -> None:
        self.values, self.seen, self.scale = np.where(seen, values, 0.0), seen, scale
        self.schedule, self.backend, self.name = schedule, check_backend(backend), name
        self.event_shape = values.shape

    @property
    def exponent(self) -> Any:
        return self.seen.astype(np.float64)

    def _residual(self, x: Array, level: Any) -> tuple[Array, Any]:
        clean = level == 0
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        alpha, sigma = alpha + clean * (1 - alpha), sigma - clean * sigma
        like = as_backend(self.values, self.backend), as_backend(self.seen.astype(np.float64), self.backend)
        values, seen = (array.to(x.device) if self.backend == "torch" else array for array in like)
        return seen * (double(x) - alpha * values), alpha**2 * self.scale**2 + sigma**2

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        residual, variance = self._residual(x, level)
        chains = tuple(x.shape[: x.ndim - len(self.event_shape)])
        constant = 0.5 * self.seen.sum() * np.log(2 * np.pi * self.scale**2)
        return 0.5 * (residual**2).reshape(*chains, self.values.size).sum(-1) / variance + constant

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        residual, variance = self._residual(x, level)
        return self._evaluate_energy(x, level), residual / variance


def observation(
    values: Any,
    *,
    seen: Any = None,
    scale: float,
    schedule: NoiseSchedule,
    backend: Backend,
    name: str = "observation",
) -> Observation:
    """The Gaussian likelihood ``N(values; x, scale^2)`` of the seen coordinates of ``x``.

    Along the ladder it is noised as the data are, ``N(x; alpha values, alpha^2 scale^2 + sigma^2)``;
    at level 0 it is the exact likelihood of ``x`` itself, normaliser included, which is left as it is above.

    Args:
        values: what was seen, of the event's shape.
        seen: booleans of the event's shape; all seen by default.
        scale: standard deviation of the measurement, positive.
        schedule: the noise levels, those of the prior.
        backend: "torch" or "jax", that of the prior.
        name: what it is called in expressions.

    Raises:
        ValueError: shapes that do not fit, a scale that is not positive, nothing seen, bytes,
            or seen values that are not finite.
    """
    if np.asarray(values).dtype == np.uint8:
        raise ValueError("values are bytes, and pictures are in [-1, 1]: scale them by x / 127.5 - 1")
    values = np.array(values, dtype=np.float64)
    seen = np.ones(values.shape, dtype=bool) if seen is None else np.array(seen)
    if seen.dtype != bool or seen.shape != values.shape:
        raise ValueError(f"seen must be booleans of the shape of values, {values.shape}, got {seen.dtype} {seen.shape}")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive standard deviation, got {scale}: try scale=0.1")
    if not seen.any() or not np.all(np.isfinite(values[seen])):
        raise ValueError("at least one coordinate must be seen, and every seen value must be finite")
    return Observation(values, seen, float(scale), schedule, backend, name)


def check_quotient(
    potential: Density, *, levels: Sequence[int], positions: Any = None, level: int | None = None
) -> list[str]:
    """What can be known to be wrong with a quotient, in words; nothing for other potentials.

    Two things are checked. *Tails*: far out in random directions the energy must grow with every doubling
    of the distance, at each of ``levels``, or no normalisable density exists there. *Support*: for chains of
    the composed density at ``level``, the noise that each numerator predicts, ``sigma grad U``, must have a
    mean square of at most about one per coordinate, as it has for draws of the numerator itself (it is the
    mean of unit noise given ``x``); far above, for more than a twentieth of the chains, the mass lies where
    the numerator has never seen data.

    Args:
        potential: any potential.
        levels: where to check tails: one evaluation of 128 points each, of 16 for events of a hundred numbers or more.
        positions: chains, shape ``(chains, *event_shape)``, for the check of support.
        level: the level of ``positions``.

    Returns:
        Sentences, empty when nothing was found.
    """
    if not isinstance(potential, Product) or (len(potential.factors) == 1 and potential.exponents[0] > 0):
        return _parts_checked(potential, levels=levels, positions=positions, level=level)
    if not _divides(potential):
        return []
    rng = np.random.default_rng(0)
    notes: list[str] = []
    rank, size = len(potential.event_shape), int(np.prod(potential.event_shape))
    count = 32 if size < 100 else 4  # random directions are alike in many dimensions, and a network there is dear
    rays = rng.standard_normal((count, *potential.event_shape))
    rays *= np.sqrt(size) / np.linalg.norm(rays.reshape(count, -1), axis=1).reshape(-1, *[1] * rank)
    open_levels = []
    for where in levels:
        radius = 3 * np.hypot(potential.schedule.alpha(where), potential.schedule.sigma(where))
        x = np.concatenate([rays * radius * distance for distance in FAR])
        with jax.enable_x64(True):
            energy = as_numpy(potential.value_and_grad(x, level=where)[0]).reshape(len(FAR), -1)
        if not np.all(np.diff(energy, axis=0) > 0):
            open_levels.append(where)
    if open_levels:
        notes.append(
            f"{potential} is not normalisable at level{'s' * (len(open_levels) > 1)} "
            f"{', '.join(map(str, sorted(open_levels)))}: far out its energy falls, chains will leave; "
            "lower the exponent of the denominator (or the guidance scale)"
        )
    if positions is not None and any(a < 0 for a in potential.exponents):
        notes += _outside(potential, np.asarray(positions), level)
    return notes


def _parts_checked(potential: Density, *, levels: Sequence[int], positions: Any, level: Any) -> list[str]:
    """What is wrong with the parts of a potential that is no quotient itself.

    A sum is normalisable where every component is, and its chains belong to one component each; so do those of a
    tapestry to its windows. Chains are handed on to what a potential merely carries.
    """
    parts, notes = potential.parts(), []
    for part in parts:
        carried = positions is not None and len(parts) == 1 and not isinstance(potential, Composite)
        carried = carried and np.prod(part.event_shape) == np.prod(potential.event_shape)
        chains = np.reshape(positions, (-1, *part.event_shape)) if carried else None
        notes += check_quotient(part, levels=levels, positions=chains, level=level)
    return list(dict.fromkeys(notes))


def _divides(potential: Density) -> bool:
    """Whether it is a quotient, or is made of one."""
    divided = isinstance(potential, Product) and any(a < 0 for a in potential.exponents)
    return divided or any(map(_divides, potential.parts()))


def _outside(potential: Product, x: np.ndarray, level: Any) -> list[str]:
    try:
        total = float(np.min(potential.exponent))
    except ValueError:  # components of a mixture that do not agree on it: no common width to allow for
        total = 1.0
    bound = OUTSIDE * max(1.0, 1 / total) if total > 0 else OUTSIDE
    notes = []
    for factor, a in zip(potential.factors, potential.exponents, strict=True):
        if a <= 0:
            continue
        gradient = as_numpy(factor.value_and_grad(x, level=level)[1])
        noise = potential.schedule.sigma(level) * gradient.reshape(len(x), -1)
        strength = np.mean(noise**2, axis=1)
        outside = float(np.mean(~(strength <= bound)))
        if outside > TOLERATED:
            notes.append(
                f"{outside:.0%} of the chains of {potential} have left the support of {factor}: the noise that it "
                f"predicts for them at level {level} has a mean square of {np.median(strength):.3g} per coordinate "
                "(median), where its own draws have about 1 at most; lower the exponent of the denominator "
                "(or the guidance scale)"
            )
    return notes
