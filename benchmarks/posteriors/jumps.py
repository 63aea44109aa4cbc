"""Signals that are sums of independent jumps, linear measurements of them, and exact draws of their posteriors.

    jumps u_i of variance 1, independent        signal x = L u, L_ij = 1 for j <= i        measurement y = A L u + noise

A jump is Gaussian given its variance, which is fixed, drawn from an exponential distribution (Laplace jumps), or either
of both (spikes and a Laplace slab). Given the variances the posterior is Gaussian, and given a jump its variance has a
closed-form distribution: drawing the one and the other in turn (Gibbs sampling) leaves the posterior invariant.
Diffused jumps ``u_t = alpha u + sigma z`` are independent too, with densities in closed form.

Sources: A Statistical Benchmark for Diffusion Posterior Sampling Algorithms (Zach, Haouchat and Unser, 2025),
https://arxiv.org/abs/2509.12821; The Bayesian Lasso (Park and Casella, 2008), https://doi.org/10.1198/016214508000000337
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

SIZE = 64
"""Samples of a signal."""
DECIBELS = 25.0
"""Ratio of the median power of noiseless measurements to the power of the noise."""
OPERATORS = ("identity", "deconvolution", "imputation", "Fourier")


@dataclass(frozen=True)
class Law:
    """The law of a jump, with variance 1: Gaussian with a probability, else Laplace.

    Attributes:
        narrow: probability of the Gaussian part.
        width: standard deviation of the Gaussian part.
    """

    narrow: float
    width: float = 1.0

    @cached_property
    def slab(self) -> float:
        """Scale of the Laplace part; 1 where there is none."""
        return math.sqrt((1 - self.narrow * self.width**2) / (2 * (1 - self.narrow))) if self.narrow < 1 else 1.0

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return independent jumps ``(count, SIZE)``."""
        shape = (count, SIZE)
        narrow = rng.random(shape) < self.narrow
        return np.where(narrow, self.width * rng.standard_normal(shape), rng.laplace(scale=self.slab, size=shape))

    def log_parts(self, u: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> list[Tensor]:
        """Return the log-densities of both parts, times their probabilities, at ``u (...)``: of ``alpha`` times a jump
        plus normal noise of scale ``sigma``. A part of probability 0 is left out."""
        parts = []
        if self.narrow > 0:
            variance = (alpha * self.width) ** 2 + sigma**2
            parts.append(math.log(self.narrow) - 0.5 * (u**2 / variance + math.log(2 * math.pi * variance)))
        if self.narrow < 1:
            parts.append(math.log(1 - self.narrow) + _log_laplace(u, alpha * self.slab, sigma))
        return parts

    def energy(self, u: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Return minus the log-density ``(...)`` of diffused jumps ``u (..., SIZE)``."""
        parts = self.log_parts(u, alpha, sigma)
        return -(parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), 0)).sum(-1)

    def precisions(self, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw inverse variances of jumps ``u (...)`` given the jumps."""
        parts = [part.numpy() for part in self.log_parts(torch.from_numpy(u))]
        narrow = rng.random(u.shape) < (expit(parts[0] - parts[1]) if len(parts) > 1 else self.narrow)
        near = np.maximum(abs(u), 1e-12)
        return np.where(narrow, 1 / self.width**2, rng.wald(1 / (self.slab * near), 1 / self.slab**2))


def _log_laplace(u: Tensor, scale: float, sigma: float) -> Tensor:
    """Return the log-density of a Laplace variable plus a normal one of scale ``sigma``."""
    if sigma == 0:
        return -u.abs() / scale - math.log(2 * scale)
    ratio = sigma / scale
    # Above 10 the log is zero in double precision, and torch does not know its second derivative far above.
    tails = [torch.special.log_ndtr((-side * u / sigma - ratio).clamp(max=10)) for side in (1, -1)]
    sides = [u / scale + tails[0], -u / scale + tails[1]]
    return torch.logsumexp(torch.stack(sides), 0) + 0.5 * ratio**2 - math.log(2 * scale)


LAWS = {"Gauss": Law(1.0), "Laplace": Law(0.0), "spikes": Law(0.9, 0.2)}


def operator(name: str) -> np.ndarray:
    """Return the matrix ``(m, SIZE)`` that measures a signal."""
    rng, at = np.random.default_rng(1), np.arange(SIZE)
    if name == "identity":
        return np.eye(SIZE)
    if name == "deconvolution":
        apart = at[:, None] - at
        blur = np.exp(-0.5 * (apart / 2) ** 2) * (abs(apart) <= 6)
        return blur / blur.sum(1, keepdims=True)
    if name == "imputation":
        return np.eye(SIZE)[np.sort(rng.permutation(SIZE)[: 2 * SIZE // 5])]
    angles = 2 * np.pi * np.outer([1, 2, 3, *(4 + np.sort(rng.permutation(28)[:8]))], at) / SIZE
    waves = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)])
    return np.concatenate([np.ones((1, SIZE)), waves]) / np.sqrt(SIZE)


@dataclass(frozen=True)
class Measurement:
    """Measurements ``y = gain @ u + scale * noise`` of jumps.

    Attributes:
        gain: matrix ``(m, SIZE)``.
        scale: standard deviation of the noise.
    """

    gain: np.ndarray
    scale: float

    @classmethod
    def of(cls, name: str, law: Law) -> Measurement:
        """Return the measurement of signals of a law by an operator, ``DECIBELS`` above its noise."""
        gain = np.cumsum(operator(name)[:, ::-1], axis=1)[:, ::-1]
        power = np.median(np.mean((law.draw(1000, np.random.default_rng(2)) @ gain.T) ** 2, axis=1))
        return cls(np.ascontiguousarray(gain), float(np.sqrt(power * 10 ** (-DECIBELS / 10))))

    def draw(self, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return measurements ``(n, m)`` of jumps ``u (n, SIZE)``."""
        return u @ self.gain.T + self.scale * rng.standard_normal((len(u), len(self.gain)))

    def energy(self, u: Tensor, y: Tensor) -> Tensor:
        """Return minus the log-likelihood ``(...)`` of jumps ``u (..., SIZE)``, up to a constant."""
        return 0.5 * ((u @ torch.from_numpy(self.gain).T - y) ** 2).sum(-1) / self.scale**2

    def gaussian(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean ``(n, SIZE)`` and a root ``(SIZE, SIZE)`` of the covariance of jumps given ``y (n, m)``, if jumps
        are Gaussian."""
        covariance = np.linalg.inv(np.eye(SIZE) + self.gain.T @ self.gain / self.scale**2)
        return y @ self.gain @ covariance / self.scale**2, np.linalg.cholesky((covariance + covariance.T) / 2)

    def gibbs(
        self, law: Law, y: np.ndarray, *, draws: int, thin: int, first: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return draws ``(n, draws, SIZE)`` of jumps given ``y (n, m)``, of one Gibbs chain for each ``y``.

        Args:
            law: law of the jumps.
            y: measurements.
            draws: number of draws that are kept of a chain.
            thin: sweeps from one draw to the next.
            first: sweeps before the first draw; chains start from variances that are all 1.
            rng: source of randomness.
        """
        seen = torch.from_numpy(self.gain.T @ self.gain) / self.scale**2
        about = torch.from_numpy(y @ self.gain)[..., None] / self.scale**2
        precisions, kept = np.ones((len(y), SIZE)), []
        for sweep in range(first + draws * thin):
            factor = torch.linalg.cholesky(seen + torch.diag_embed(torch.from_numpy(precisions)))
            white = torch.linalg.solve_triangular(factor, about, upper=False)
            white = white + torch.from_numpy(rng.standard_normal(white.shape))
            u = torch.linalg.solve_triangular(factor.mT, white, upper=True)[..., 0].numpy()
            precisions = law.precisions(u, rng)
            if sweep >= first and (sweep - first + 1) % thin == 0:
                kept.append(u)
        return np.stack(kept, axis=1)
