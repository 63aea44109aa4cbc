"""What can be walked on: energies ``U(x, level) = -log p_level(x) + constant`` at every noise level, and gradients.

A target that can also be multiplied, divided and added is a :class:`~ppl_diffusion.potentials.algebra.Potential`. The
joint density of a Pyro model is a target only: its coordinates are those of that model, so it is walked on alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ..arrays import Array, Backend, as_backend, cast_like, outside_inference_mode
from ..schedule import NoiseSchedule

MEMO_SIZE = 32
"""Maximum number of objects, such as compiled kernels, that :meth:`Target.memo` caches per density."""


class Target(ABC):
    """An unnormalised density at every noise level of a schedule, on which chains can be walked.

    A subclass implements :meth:`_evaluate` and :meth:`_evaluate_energy`.

    Attributes:
        backend: "torch" or "jax", the library whose arrays it computes with.
        schedule: the noise schedule on whose levels it is defined.
        event_shape: shape of one point ``x``.
        name: name in expressions and reports.
        composable: whether it is a :class:`~ppl_diffusion.potentials.algebra.Potential`.
        level_arrays: whether the level may be an integer tensor of shape ``(1,)`` on the density's device, which saves
            synchronising a GPU to read its value; energies and gradients are NaN at a level outside the schedule.
        levels_of_points: whether the level may also be such a tensor of shape ``(*chains,)``, a level for each point.
    """

    composable: bool = False
    level_arrays: bool = False
    levels_of_points: bool = False
    backend: Backend
    schedule: NoiseSchedule
    event_shape: tuple[int, ...]
    name: str
    __array_ufunc__ = None  # makes ``np.float64(2) * p`` call ``p.__rmul__`` instead of a numpy ufunc

    def energy(self, x: Any, *, level: Any) -> Array:
        """Return the energy ``U = -log p_level(x) + constant`` of each point.

        Args:
            x: points, shape ``(*chains, *event_shape)``, of floating dtype; numpy arrays are converted.
            level: noise level, an integer; under a JAX transformation it may be traced. One that is out of range then
                gives NaN, or an error of JAX's if a torch network is inside.

        Returns:
            Energies in nats, shape ``(*chains,)``: float64, except in JAX without 64-bit mode.

        Raises:
            ValueError: ``x`` has the wrong shape or is on another device, or ``level`` is out of range.
            TypeError: ``x`` is an array of the other backend or not of floating dtype, ``level`` is not an integer, or
                only the gradient is known (:attr:`has_energy`).
        """
        if not self.has_energy:
            raise TypeError(
                f"{self} has no energy, as only its gradient is known: use score(x, level=...), or train an energy "
                "from it, train(config, teacher=...)"
            )
        with outside_inference_mode():
            x, level = self._validate(x, level)
            return self._evaluate_energy(x, level)

    def value_and_grad(self, x: Any, *, level: Any) -> tuple[Array, Array]:
        """Return the energy of each point and its gradient, with one evaluation of every network involved.

        Args:
            x: points, shape ``(*chains, *event_shape)``, of floating dtype; numpy arrays are converted.
            level: as in :meth:`energy`.

        Returns:
            Energies, shape ``(*chains,)`` as in :meth:`energy`, and gradients of the shape and
            dtype of ``x``. ``-gradient`` is the score of the density at this level. Energies leave out the factors of
            which only the gradient is known.

        Raises:
            ValueError, TypeError: as :meth:`energy`.
        """
        with outside_inference_mode():
            x, level = self._validate(x, level)
            energy, gradient = self._evaluate(x, level)
            return energy, cast_like(gradient, x)

    def score(self, x: Any, *, level: Any) -> Array:
        """Return the gradient of the log-density at each point ``x (*chains, *event_shape)``, of its shape and dtype.

        Raises:
            ValueError, TypeError: as :meth:`value_and_grad`.
        """
        return -self.value_and_grad(x, level=level)[1]

    @property
    def device(self) -> torch.device:
        """Device that torch points must be on, by default the CPU."""
        return torch.device("cpu")

    @property
    def has_energy(self) -> bool:
        """Whether differences of its energies exist; False where only the gradient is known, a score.

        Without them there are no mixtures, weights or normalisers: see :func:`require_energy`.
        """
        return True

    @property
    def exponent(self) -> Any:
        """Sum ``s`` of the exponents of the expression, a number or an array of shape ``event_shape``.

        At the noisiest level every model is close to a standard normal, so that the composed density is close
        to ``N(0, I / s)``, from which annealed chains start.

        Raises:
            ValueError: the components of a mixture have different sums of exponents.
        """
        return 1.0

    @property
    def reference(self) -> tuple[Any, Any]:
        """Mean and variance of the data, numbers or arrays that broadcast to ``event_shape``; (0, 1) if unknown."""
        return (0.0, 1.0)

    @property
    def diffused(self) -> Any:
        """Which coordinates the schedule adds noise to: True for all, or booleans of shape ``event_shape``."""
        return True

    def refresh(self, positions: Any, level: int, *, rng: np.random.Generator) -> tuple[Any, Any]:
        """Apply cheap moves that leave the density of ``level`` invariant, on arrival at that level; by default none.

        Args:
            positions: numpy, float64, shape ``(chains, *event_shape)``; the caller's to change.
            level: the level at which the chains have arrived.
            rng: source of randomness.

        Returns:
            Positions of the same shape, and the changes of their energies, shape ``(chains,)``, or 0.
        """
        return positions, 0.0

    def start(self, level: int, *, chains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw starting positions from ``N(0, max(1, sigma)^2 I / s)``, ``s`` being the :attr:`exponent`.

        Args:
            level: the first, noisiest level of a ladder, whose ``sigma`` is used.
            chains: number of draws.
            rng: source of randomness.

        Returns:
            Positions, shape ``(chains, *event_shape)``, and their normalised log-density, shape ``(chains,)``.

        Raises:
            ValueError: the sum of the exponents is not positive in every coordinate.
        """
        scale = self._start_scale(level)
        noise = rng.standard_normal((chains, *self.event_shape))
        return noise * scale, _log_normal(noise, scale)

    def log_start(self, x: np.ndarray, level: int) -> np.ndarray:
        """Return the log-density ``(chains,)`` that :meth:`start` draws from, at ``x (chains, *event_shape)``."""
        scale = self._start_scale(level)
        return _log_normal(np.asarray(x, dtype=np.float64) / scale, scale)

    def _start_scale(self, level: int) -> np.ndarray:
        total = np.broadcast_to(np.asarray(self.exponent, dtype=np.float64), self.event_shape)
        if np.any(total <= 0):
            raise ValueError(
                f"the exponents of {self} sum to {total.min():.3g}, so it has no density at the noisiest level to "
                "start from: make the sum positive, or pass init="
            )
        return max(1.0, self.schedule.sigma(level)) / np.sqrt(total)

    def parts(self) -> tuple[Any, ...]:
        """Return the distinct densities that it is directly composed of, or that it wraps for another library."""
        return ()

    def parts_at(self, positions: Any) -> list[tuple[Any, Any]]:
        """Return each part with the points of it that correspond to chains at ``positions``; None if there are none.

        A chain of a mixture belongs to one component, and one of a tapestry is many windows: they stand for no points.
        """
        return [(part, None) for part in self.parts()]

    def doubts_of_weights(self, shares: np.ndarray, *, used: bool) -> list[str]:
        """Return what the weights of a walk tell against its result, in sentences; by default what the parts say.

        Args:
            shares: effective sample size of the weights on each rung, divided by the number of chains; NaN without any.
            used: whether chains were resampled by them.
        """
        return [doubt for part in self.parts() for doubt in part.doubts_of_weights(shares, used=used)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memo"}

    def memo(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return ``build()``, cached under ``key``; used for compiled code. The cache is not pickled, and drops the
        oldest of more than ``MEMO_SIZE`` objects."""
        cache = self.__dict__.setdefault("_memo", {})
        if key not in cache:
            cache[key] = build()
            if len(cache) > MEMO_SIZE:
                del cache[next(iter(cache))]
        return cache[key]

    def evaluate_group(
        self, members: Sequence[Target], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Evaluate leaves of one :attr:`group`, ``self`` among them, with as few network calls as possible.

        Each of ``members`` is evaluated at its own ``points (*chains, *event_shape)``. Returns energies ``(*chains,)``
        and gradients ``(*chains, *event_shape)`` for each.
        """
        return [member._evaluate(x, level) for member, x in zip(members, points, strict=True)]

    def energy_group(self, members: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
        """Return only the energies of :meth:`evaluate_group`, differentiable by the backend's autodiff."""
        return [member._evaluate_energy(x, level) for member, x in zip(members, points, strict=True)]

    @property
    def group(self) -> Any:
        """Key of the leaves that are evaluated together: a shared network, or by default the leaf itself."""
        return self

    def _alone(self, *others: Any) -> Any:
        """Refuse to be composed; a potential overrides the operators."""
        raise TypeError(f"{self} is a target, and is walked on alone: compose the priors inside the model")

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __add__ = __radd__ = _alone

    @abstractmethod
    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        """Return energies ``(*chains,)`` and gradients ``(*chains, *event_shape)`` at validated points."""

    @abstractmethod
    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        """Return energies ``(*chains,)`` at validated points, differentiable by the backend's autodiff."""

    def _validate(self, x: Any, level: Any) -> tuple[Array, Any]:
        """Check the level and the shape of ``x``; return ``x`` as an array of the backend, and a known level as an
        integer."""
        if not isinstance(level, jax.core.Tracer):
            level = level.item() if isinstance(level, (jax.Array, np.ndarray)) and level.ndim == 0 else level
            self.schedule.check_level(level)
        elif level.ndim or not jnp.issubdtype(level.dtype, jnp.integer):
            raise TypeError(
                f"level must be an integer, got {level.dtype}{list(level.shape)}: for several levels, jax.vmap over "
                "points and levels together"
            )
        x = as_backend(x, self.backend, self.name, device=self.device)
        rank = len(self.event_shape)
        if x.ndim < rank or tuple(x.shape[x.ndim - rank :]) != self.event_shape:
            raise ValueError(
                f"{self.name} takes points of shape (*chains, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return x, level

    def _chain_shape(self, x: Any) -> tuple[int, ...]:
        """Shape ``(*chains)`` of ``x (*chains, *event_shape)``."""
        return tuple(x.shape[: x.ndim - len(self.event_shape)])

    def __repr__(self) -> str:
        return self.name


def common_device(targets: Sequence[Target]) -> torch.device:
    """Return the first device other than the CPU that one of the targets is on, or else the CPU."""
    devices = [target.device for target in targets]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def common_reference(leaves: Sequence[Target]) -> tuple[Any, Any]:
    """Return the data mean and variance on which all leaves that know them agree, and (0, 1) if they do not agree."""
    known = [leaf for leaf in leaves if any(np.ndim(v) for v in leaf.reference) or tuple(leaf.reference) != (0.0, 1.0)]
    first, *others = (leaf.reference for leaf in known or leaves)
    agreed = all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    return first if agreed else (0.0, 1.0)


def require_energy(target: Target, what: str) -> None:
    """Raise ``TypeError`` if ``target`` has no energy; ``what``, in the plural, needs differences of energies."""
    if not target.has_energy:
        raise TypeError(
            f"{what} need differences of energies, and of {target} only the gradient is known: train an energy from "
            "it, train(config, teacher=...), and use that"
        )


def _log_normal(noise: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the log-density ``(chains,)`` of ``noise * scale``, ``noise (chains, *event_shape)`` being normal."""
    constant = np.sum(np.log(scale)) + 0.5 * scale.size * np.log(2 * np.pi)
    return -0.5 * np.sum(noise.reshape(len(noise), -1) ** 2, axis=1) - constant
