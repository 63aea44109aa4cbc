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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from array_api_compat import array_namespace
from scipy.special import expit

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

    def finer(self, times: int) -> NoiseSchedule:
        """Return the schedule with ``times - 1`` further levels between any two neighbours, even in log-SNR.

        Level ``i`` becomes level ``times * i``. ``alpha^2 + sigma^2`` stays 1 where it is; else alpha is interpolated
        by its logarithm.

        >>> coarse = NoiseSchedule.cosine(100)
        >>> len(coarse.finer(4)), coarse.finer(4).sigma(80) == coarse.sigma(20)
        (397, True)

        Raises:
            ValueError: ``times`` is not a whole number >= 1.
        """
        if not isinstance(times, (int, np.integer)) or times < 1:
            raise ValueError(f"times is a whole number >= 1, got {times!r}: try schedule.finer(4)")
        coarse = np.arange(len(self)) * times
        levels = np.arange(coarse[-1] + 1)
        log_snr = np.interp(levels, coarse, np.array(_log_snr(self.alphas, self.sigmas)))
        if self.preserves_variance:
            alphas = np.sqrt(expit(log_snr))
            sigmas = np.sqrt(expit(-log_snr))
        else:
            alphas = np.exp(np.interp(levels, coarse, np.log(self.alphas)))
            sigmas = alphas * np.exp(-log_snr / 2)
        alphas[coarse], sigmas[coarse] = self.alphas, self.sigmas
        return NoiseSchedule(alphas=tuple(alphas), sigmas=tuple(sigmas))

    @property
    def preserves_variance(self) -> bool:
        """Whether ``alpha^2 + sigma^2`` is 1 at every level."""
        return bool(np.allclose(np.square(self.alphas) + np.square(self.sigmas), 1, rtol=0, atol=1e-6))

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

    def reverse(self, x: np.ndarray, gradient: np.ndarray, noisy: int, clean: int) -> tuple[np.ndarray, float]:
        """Return mean and standard deviation of the reverse-diffusion step from level ``s = noisy`` to ``t = clean``.

        It is the Gaussian ``q(x_t | x_s, x_0)`` at Tweedie's estimate of ``x_0``.

        Args:
            x, gradient: points and the gradients of their energies at level s, of one shape.
        """
        alpha_s, sigma_s, alpha_t, sigma_t = (f(k) for k in (noisy, clean) for f in (self.alpha, self.sigma))
        alpha, sigma = self.forward(clean, noisy)
        spread, pull = sigma * sigma_t / sigma_s, alpha_t * sigma**2 / alpha_s
        # It is (alpha sigma_t^2 x + alpha_t sigma^2 x_0) / sigma_s^2, where x_0 = (x - sigma_s^2 gradient) / alpha_s.
        mean = (alpha * sigma_t**2 + pull) / sigma_s**2 * x
        mean -= pull * gradient
        return mean, spread

    def check_level(self, level: int) -> None:
        """Raise ``TypeError`` when ``level`` is not an integer, ``ValueError`` when it is outside this schedule."""
        if not isinstance(level, (int, np.integer)) or isinstance(level, bool):
            raise TypeError(f"level must be an integer from 0 (cleanest) to {len(self) - 1}, got {level!r}")
        if not 0 <= level < len(self):
            raise ValueError(f"level {level} is outside this schedule: use 0 (cleanest) to {len(self) - 1} (noisiest)")


def check_within(schedule: NoiseSchedule, known: NoiseSchedule, name: str) -> None:
    """Raise ``ValueError`` unless a network that was trained with ``known`` can be asked at levels of ``schedule``."""
    constant = [np.allclose(one.alphas, 1) for one in (schedule, known)]
    if (schedule.preserves_variance, constant[0]) != (known.preserves_variance, constant[1]):
        raise ValueError(
            f"{name} was trained with {known}, and {schedule} scales points otherwise: try schedule.finer(4)"
        )
    (clean, noisy), (cleanest, noisiest) = ((one.log_snr(0), one.log_snr(len(one) - 1)) for one in (schedule, known))
    if clean > cleanest + 1e-6 or noisy < noisiest - 1e-6:
        raise ValueError(
            f"{name} was trained at log-SNRs from {cleanest:.3g} to {noisiest:.3g}, and this schedule has {clean:.3g} "
            f"to {noisy:.3g}: leave its outer levels out, or try schedule.finer(4)"
        )


@cache
def _log_snr(alphas: tuple[float, ...], sigmas: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((2 * np.log(np.array(alphas) / np.array(sigmas))).tolist())


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
