"""Named compositions (guidance, conjunction, observation), and a check that quotients are normalisable.

    guidance       p_u^(1-w) p_c^w                      U_u + w (U_c - U_u)
    conjunction    base prod_i (p_i / base)             U_base + sum_i (U_i - U_base)
    observation    N(y; x, scale^2) of observed coordinates, noised at each level like the data

All of them are composed level by level: they define an annealing path whose last rung is the target.
A negative exponent divides by a density. Such a quotient may not be normalisable, at some levels or at
all; even if it is, its mass may lie outside the support of the numerator's training data.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .arrays import Array, Backend, as_backend, as_numpy, check_backend, double, read_only
from .density import Density
from .potential import Potential, Product
from .schedule import NoiseSchedule

TAIL_DISTANCES = (1.0, 2.0, 4.0, 8.0)
"""Distances from the origin at which tails are probed, in units of three times the root-mean-square radius of noised
unit-variance data. The energy must grow from each distance to the next (a learned energy may dip in between)."""

MAX_PREDICTED_NOISE = 6.0
"""Mean squared predicted noise per coordinate above which a chain counts as outside a factor's support (a standard
normal draw in two dimensions exceeds it with probability 0.0025)."""

MAX_SHARE_OUTSIDE = 0.05
"""Share of chains that may be outside a factor's support without a note."""


def guidance(conditional: Potential, unconditional: Potential, *, scale: float) -> Product:
    """Return ``unconditional ** (1 - scale) * conditional ** scale``, level by level.

    At scale 1 this is the conditional density, as with diffusers' ``guidance_scale``; the source's weight is
    ``scale - 1``. A scale above 1 divides by the unconditional density: see :func:`check_quotient`.

    Source: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
    """
    return conditional**scale * unconditional ** (1 - scale)  # type: ignore[return-value]


def conjunction(potentials: Sequence[Potential], base: Potential) -> Product:
    """Return ``base * prod_i (p_i / base)``, which imposes all conditions ``p_i`` at once; ``base`` is unconditional.

    Raises:
        ValueError, TypeError: there are no potentials, or they cannot be composed.
    """
    if isinstance(potentials, Potential) or not potentials:
        raise ValueError("a conjunction needs at least one potential: conjunction([p1, p2], base)")
    return Product([base, *potentials], [1.0 - len(potentials), *([1.0] * len(potentials))])


class Observation(Potential):
    """The Gaussian likelihood of observed coordinates as a potential; built by :func:`observation`.

    Attributes:
        values: observed values, shape ``event_shape``; zero where ``seen`` is False.
        seen: which coordinates were observed, bool, shape ``event_shape``.
        scale: standard deviation of the measurement noise.
    """

    def __init__(
        self, values: np.ndarray, seen: np.ndarray, scale: float, schedule: NoiseSchedule, backend: Backend, name: str
    ) -> None:
        self.values, self.seen, self.scale = np.where(seen, values, 0.0), seen, scale
        read_only(self.values, self.seen)
        self.schedule, self.backend, self.name = schedule, check_backend(backend), name
        self.event_shape = values.shape

    @property
    def exponent(self) -> Any:
        return self.seen.astype(np.float64)

    def _residual(self, x: Array, level: Any) -> tuple[Array, Any]:
        """Return ``x - alpha values``, zero where not observed, of the shape of ``x``, and its variance, a scalar."""
        clean = level == 0
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        alpha, sigma = alpha + clean * (1 - alpha), sigma - clean * sigma
        like = as_backend(self.values, self.backend), as_backend(self.seen.astype(np.float64), self.backend)
        values, seen = (array.to(x.device) if self.backend == "torch" else array for array in like)
        return seen * (double(x) - alpha * values), alpha**2 * self.scale**2 + sigma**2

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        residual, variance = self._residual(x, level)
        constant = 0.5 * self.seen.sum() * np.log(2 * np.pi * self.scale**2)
        return 0.5 * (residual**2).reshape(*self._chain_shape(x), self.values.size).sum(-1) / variance + constant

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
    """Return the Gaussian likelihood ``N(values; x, scale^2)`` of the observed coordinates of ``x``.

    At level 0 the potential is this exact likelihood of ``x``, including its normaliser. At other levels it is noised
    like the data: proportional to ``N(x; alpha values, alpha^2 scale^2 + sigma^2)``, with the constant of level 0.

    Args:
        values: observed values, shape ``event_shape`` of the prior; ignored where ``seen`` is False.
        seen: which coordinates were observed, bool, same shape; all by default.
        scale: standard deviation of the measurement noise, positive.
        schedule: the noise schedule of the prior.
        backend: the backend of the prior, "torch" or "jax".
        name: name in expressions and reports.

    Raises:
        ValueError: shapes do not match, ``scale`` is not positive, no coordinate was observed, ``values`` are bytes
            (uint8), or an observed value is not finite.
    """
    if np.asarray(values).dtype == np.uint8:
        raise ValueError("values are bytes, and pictures are in [-1, 1]: scale them by x / 127.5 - 1")
    values = np.array(values, dtype=np.float64)
    seen = np.ones(values.shape, dtype=bool) if seen is None else np.array(seen)
    if seen.dtype != bool or seen.shape != values.shape:
        raise ValueError(f"seen must be booleans of the shape of values, {values.shape}, got {seen.dtype} {seen.shape}")
    if np.ndim(scale) or not 0 < float(scale) < np.inf:
        raise ValueError(f"scale must be a positive standard deviation, one number, got {scale}: try scale=0.1")
    if not seen.any() or not np.all(np.isfinite(values[seen])):
        raise ValueError("at least one coordinate must be seen, and every seen value must be finite")
    return Observation(values, seen, float(scale), schedule, backend, name)


def check_quotient(
    potential: Density, *, levels: Sequence[int], positions: Any = None, level: int | None = None
) -> list[str]:
    """Check that quotients in ``potential`` are normalisable and that chains stay in the support of numerators.

    *Tails*: along random directions the energy must grow with every doubling of a large distance, at each of
    ``levels``; otherwise the quotient is not normalisable there. *Support*: the noise ``sigma grad U`` that a
    numerator predicts is the conditional mean ``E[z | x]`` of unit noise, hence has a mean square of at most about
    one per coordinate for draws of the numerator itself. If it is far larger for more than 5% of the chains of the
    composed density, they lie outside the support of the numerator's training data.

    Args:
        potential: any potential. A product that contains a quotient is checked as a whole; other products pass, and
            of any other potential each part is checked.
        levels: levels at which tails are checked, by evaluating 128 points each, or 16 if an event has at least 100
            coordinates.
        positions: chains, shape ``(chains, *event_shape)``, whose support is checked; by default none.
        level: the level of ``positions``, required with them.

    Returns:
        One sentence per problem found, empty if there is none.
    """
    if positions is not None and level is None:
        raise ValueError("positions are of one level: give level= too")
    if not isinstance(potential, Product) or (len(potential.factors) == 1 and potential.exponents[0] > 0):
        each = (
            check_quotient(part, levels=levels, positions=x, level=level) for part, x in potential.parts_at(positions)
        )
        return list(dict.fromkeys(note for notes in each for note in notes))
    if not _contains_quotient(potential):
        return []
    rng = np.random.default_rng(0)
    notes: list[str] = []
    rank, size = len(potential.event_shape), int(np.prod(potential.event_shape))
    count = 32 if size < 100 else 4  # in many dimensions directions differ little, and evaluations are expensive
    rays = rng.standard_normal((count, *potential.event_shape))
    rays *= np.sqrt(size) / np.linalg.norm(rays.reshape(count, -1), axis=1).reshape(-1, *[1] * rank)
    failed_levels = []
    for tail_level in levels:
        radius = 3 * np.hypot(potential.schedule.alpha(tail_level), potential.schedule.sigma(tail_level))
        x = np.concatenate([rays * radius * distance for distance in TAIL_DISTANCES])
        with jax.enable_x64(True):
            energy = as_numpy(potential.value_and_grad(x, level=tail_level)[0]).reshape(len(TAIL_DISTANCES), -1)
        if not np.all(np.diff(energy, axis=0) > 0):
            failed_levels.append(tail_level)
    if failed_levels:
        notes.append(
            f"{potential} is not normalisable at level{'s' * (len(failed_levels) > 1)} "
            f"{', '.join(map(str, sorted(failed_levels)))}: far out its energy falls, chains will leave; "
            "lower the exponent of the denominator (or the guidance scale)"
        )
    if positions is not None and any(a < 0 for a in potential.exponents):
        notes += _check_support(potential, np.asarray(positions), level)
    return notes


def _contains_quotient(potential: Density) -> bool:
    """Whether ``potential`` is a quotient or is composed of one."""
    is_quotient = isinstance(potential, Product) and any(a < 0 for a in potential.exponents)
    return is_quotient or any(map(_contains_quotient, potential.parts()))


def _check_support(potential: Product, x: np.ndarray, level: Any) -> list[str]:
    """Check that chains ``x (chains, *event_shape)`` of a quotient lie in the support of each of its numerators."""
    try:
        total = float(np.min(potential.exponent))
    except ValueError:  # components of a mixture have different sums of exponents: allow for no extra width
        total = 1.0
    bound = MAX_PREDICTED_NOISE * max(1.0, 1 / total) if total > 0 else MAX_PREDICTED_NOISE
    notes = []
    for factor, a in zip(potential.factors, potential.exponents, strict=True):
        if a <= 0:
            continue
        gradient = as_numpy(factor.value_and_grad(x, level=level)[1])
        noise = potential.schedule.sigma(level) * gradient.reshape(len(x), -1)
        strength = np.mean(noise**2, axis=1)
        outside = float(np.mean(~(strength <= bound)))
        if outside > MAX_SHARE_OUTSIDE:
            notes.append(
                f"{outside:.0%} of the chains of {potential} have left the support of {factor}: the noise that it "
                f"predicts for them at level {level} has a mean square of {np.median(strength):.3g} per coordinate "
                "(median), where its own draws have about 1 at most; lower the exponent of the denominator "
                "(or the guidance scale)"
            )
    return notes
