"""Noise schedules and ladders: the signal and noise scales of every level, and the levels that annealing visits.

At level ``t`` the diffused variable is the scaled data ``x_0`` plus Gaussian noise ``z ~ N(0, I)``:

    x_t = alpha_t x_0 + sigma_t z

Level 0 is the cleanest, level ``len(schedule) - 1`` the noisiest. A *ladder* is the decreasing list of
levels that annealed sampling visits, its rungs, with the number of kernel steps taken at each.

Between two levels ``s > t`` (any spacing) the forward kernel is Gaussian too:

    q(x_s | x_t) = N(alpha_{s|t} x_t, sigma_{s|t}^2 I),
    alpha_{s|t} = alpha_s / alpha_t,   sigma_{s|t}^2 = sigma_s^2 - alpha_{s|t}^2 sigma_t^2
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from array_api_compat import array_namespace

from .arrays import constant

LARGEST_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """The signal scale ``alpha`` and the noise scale ``sigma`` of every level.

    Two schedules are equal when both of their tables are equal.

    Args:
        alphas: factor of the data at each level, cleanest first, all positive; one float per level.
        sigmas: standard deviation of the noise at each level, all positive; ``sigma / alpha``
            strictly increases.

    Raises:
        ValueError: the tables are empty or of unequal length, a value is not positive and finite, or
            the noise-to-signal ratio ``sigma / alpha`` does not increase.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        alphas, sigmas = (tuple(float(v) for v in table) for table in (self.alphas, self.sigmas))
        object.__setattr__(self, "alphas", alphas)
        object.__setattr__(self, "sigmas", sigmas)
        if len(alphas) != len(sigmas) or not alphas:
            raise ValueError(
                f"a schedule needs one alpha and one sigma per level, got {len(alphas)} and {len(sigmas)}: "
                "try NoiseSchedule.cosine(100)"
            )
        table = np.array([alphas, sigmas])
        if not np.all(np.isfinite(table)) or np.any(table <= 0):
            raise ValueError("alphas and sigmas must be positive and finite: try NoiseSchedule.cosine(100)")
        if np.any(np.diff(table[1] / table[0]) <= 0):
            raise ValueError("sigma / alpha must increase from level 0 (cleanest) on: reverse the tables")

    @classmethod
    def cosine(cls, levels: int, *, offset: float = 0.008) -> NoiseSchedule:
        """Return the cosine schedule of Nichol and Dhariwal; level ``i`` has ``alpha_bar((i + 1) / levels)``.

        Betas are clipped at 0.999, as in the paper.

        >>> schedule = NoiseSchedule.cosine(100)
        >>> len(schedule), round(schedule.sigma(0), 4), round(schedule.sigma(99), 4)
        (100, 0.0251, 1.0)

        Source: Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672
        """
        time = np.arange(_check_level_count(levels) + 1) / levels
        alpha_bar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
        return cls._from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])

    @classmethod
    def linear(cls, levels: int) -> NoiseSchedule:
        """Return the linear schedule: betas from 1e-4 to 0.02, times ``1000 / levels``.

        The factor keeps the noisiest level almost pure noise for any number of levels above one.

        Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
        """
        return cls._from_betas(np.linspace(1e-4, 0.02, _check_level_count(levels)) * 1000 / levels)

    @classmethod
    def edm(cls, levels: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
        """Return the variance-exploding schedule of EDM: ``alpha = 1``, ``sigma`` from ``sigma_min`` to ``sigma_max``.

        ``sigma ** (1 / rho)`` is evenly spaced over the levels.

        Source: Elucidating the Design Space of Diffusion-Based Generative Models
        (Karras et al., 2022), https://arxiv.org/abs/2206.00364
        """
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max is needed, got {sigma_min} and {sigma_max}")
        roots = np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), _check_level_count(levels))
        return cls(alphas=(1.0,) * levels, sigmas=tuple(roots**rho))

    @classmethod
    def _from_betas(cls, betas: np.ndarray) -> NoiseSchedule:
        alpha_bar = np.cumprod(1 - np.minimum(betas, LARGEST_BETA))
        return cls(alphas=tuple(np.sqrt(alpha_bar)), sigmas=tuple(np.sqrt(1 - alpha_bar)))

    def __len__(self) -> int:
        return len(self.alphas)

    def __repr__(self) -> str:
        return f"NoiseSchedule({len(self)} levels, sigma {self.sigmas[0]:.3g} to {self.sigmas[-1]:.3g})"

    def alpha(self, level: Any) -> Any:
        """Return ``alpha``, the factor of the data: a float for an int, an array of the shape of an integer array.

        Raises:
            TypeError: the levels are not integers.
            ValueError: a level is outside the schedule. Where reading the values would cost a transfer or is not
                possible, on a GPU and under a transformation, the result is NaN there instead.
        """
        return _look_up(self.alphas, level)

    def sigma(self, level: Any) -> Any:
        """Return ``sigma``, the standard deviation of the noise: a float for an int, an array as in :meth:`alpha`."""
        return _look_up(self.sigmas, level)

    def log_snr(self, level: Any) -> Any:
        """Return the log signal-to-noise ratio ``2 log(alpha / sigma)``, in nats: a float or array as :meth:`alpha`."""
        return _look_up(_log_snr(self.alphas, self.sigmas), level)

    def forward(self, clean: int, noisy: int) -> tuple[float, float]:
        """Return ``(alpha_{s|t}, sigma_{s|t})`` of the forward kernel from level ``t = clean`` to ``s = noisy``."""
        if not 0 <= clean < noisy < len(self):
            raise ValueError(f"0 <= clean < noisy < {len(self)} is needed, got {clean} and {noisy}")
        alpha = self.alphas[noisy] / self.alphas[clean]
        return alpha, float(np.sqrt(self.sigmas[noisy] ** 2 - (alpha * self.sigmas[clean]) ** 2))

    def check_level(self, level: int) -> None:
        """Raise ``TypeError`` when ``level`` is not an integer, ``ValueError`` when it is outside this schedule."""
        if not isinstance(level, (int, np.integer)) or isinstance(level, bool):
            raise TypeError(f"level must be an integer from 0 (cleanest) to {len(self) - 1}, got {level!r}")
        if not 0 <= level < len(self):
            raise ValueError(f"level {level} is outside this schedule: use 0 (cleanest) to {len(self) - 1} (noisiest)")


@dataclass(frozen=True)
class Ladder:
    """The levels that annealed sampling visits, noisiest first, and the number of kernel steps at each.

    Args:
        levels: strictly decreasing levels of a schedule, one per rung; draws are recorded at the last one.
        steps: number of kernel steps: one for all rungs, or a tuple with one per rung.

    Raises:
        ValueError: there are no levels, they do not strictly decrease, a number of steps is negative, or
            the length of ``steps`` differs from the number of rungs.
    """

    levels: tuple[int, ...]
    steps: int | tuple[int, ...] = 10

    def __post_init__(self) -> None:
        levels = _as_integers("levels", self.levels)
        object.__setattr__(self, "levels", levels)
        if not levels or levels[-1] < 0 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError(f"levels must decrease from noisy to clean, got {levels}: try Ladder(levels=(40, 20, 0))")
        steps = _as_integers("steps", np.atleast_1d(np.asarray(self.steps)))
        object.__setattr__(self, "steps", steps[0] if np.ndim(self.steps) == 0 else steps)
        if len(self.steps_per_rung) != len(levels) or min(self.steps_per_rung) < 0:
            raise ValueError(f"steps must be a number >= 0, or one for each of {len(levels)} rungs, got {self.steps}")

    @classmethod
    def full(cls, schedule: NoiseSchedule, *, steps: int | tuple[int, ...] = 10) -> Ladder:
        """Return the ladder that visits every level of ``schedule``."""
        return cls(levels=tuple(reversed(range(len(schedule)))), steps=steps)

    @classmethod
    def spaced(cls, schedule: NoiseSchedule, *, rungs: int = 50, steps: int | tuple[int, ...] = 10) -> Ladder:
        """Return the ladder of ``rungs`` evenly spaced levels from the noisiest to level 0, both included.

        >>> Ladder.spaced(NoiseSchedule.cosine(100), rungs=4, steps=2)
        Ladder(levels=(99, 66, 33, 0), steps=2)

        Raises:
            ValueError: fewer than two rungs (one, if the schedule has one level), or more rungs than levels.
        """
        least = min(2, len(schedule))
        if not isinstance(rungs, (int, np.integer)) or not least <= rungs <= len(schedule):
            raise ValueError(f"rungs must be {least} to {len(schedule)} (the levels of this schedule), got {rungs}")
        levels = np.rint(np.linspace(len(schedule) - 1, 0, rungs)).astype(int)
        return cls(levels=tuple(levels), steps=steps)

    @property
    def steps_per_rung(self) -> tuple[int, ...]:
        """Number of kernel steps of every rung, noisiest first."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,) * len(self.levels)

    def __len__(self) -> int:
        return len(self.levels)


@cache
def _log_snr(alphas: tuple[float, ...], sigmas: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((2 * np.log(np.array(alphas) / np.array(sigmas))).tolist())


def _as_integers(name: str, values: Any) -> tuple[int, ...]:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{name} must be whole numbers, got {values.tolist()!r}: try Ladder((40, 20, 0), steps=10)")
    return tuple(int(value) for value in values)


def _check_level_count(levels: int) -> int:
    if not isinstance(levels, (int, np.integer)) or levels < 1:
        raise ValueError(f"a schedule has a whole number of levels >= 1, got {levels!r}: try NoiseSchedule.cosine(100)")
    return int(levels)


def _look_up(table: tuple[float, ...], level: Any) -> Any:
    if isinstance(level, (int, np.integer)) and not isinstance(level, bool):
        if not 0 <= level < len(table):
            raise ValueError(f"level {level} is outside this schedule: use 0 (cleanest) to {len(table) - 1} (noisiest)")
        return table[level]
    if not hasattr(level, "dtype"):
        raise TypeError(f"levels are integers or arrays of them, got {level!r}: use 0 to {len(table) - 1}")
    if not _are_whole(level):
        raise TypeError(f"levels are integers, got an array of {level.dtype}: use 0 to {len(table) - 1}")
    if isinstance(level, torch.Tensor):
        level = level.long()  # torch takes small integers for masks
    elif jnp.iinfo(level.dtype).max < len(table):  # the length of the table must be one of their values
        level = level.astype(np.int32)
    inside = (level >= 0) & (level < len(table))
    if _is_readable(level) and not bool(inside.all()):
        raise ValueError(f"levels {level.tolist()} are not all inside this schedule: use 0 to {len(table) - 1}")
    if isinstance(level, torch.Tensor):
        values = constant(table, level.device)
        return values[level] if _is_readable(level) else values[level.clamp(0, len(table) - 1)].where(inside, torch.nan)
    xp = array_namespace(level)
    # JAX would clamp a traced level to the table, and count a negative one from its end.
    return xp.where(inside, xp.asarray(np.array(table))[level], xp.nan)


def _are_whole(level: Any) -> bool:
    if isinstance(level, torch.Tensor):
        return not (level.is_floating_point() or level.is_complex() or level.dtype == torch.bool)
    return bool(jnp.issubdtype(level.dtype, jnp.integer))


def _is_readable(level: Any) -> bool:
    """Whether the values of an array can be read at no cost: not those traced by JAX, nor those on a GPU."""
    if isinstance(level, torch.Tensor):
        return level.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(level)
    return isinstance(level, np.ndarray) or not isinstance(level, jax.core.Tracer)
