"""A potential as a distribution: the prior of a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppl_diffusion.anneal import anneal
from ppl_diffusion.potential import Potential
from ppl_diffusion.schedule import Ladder

from ..blackjax import HMC
from ..torch_jax import to_torch

DRAW = {"rungs": 50, "steps": 5}
"""The ladder by which ``DiffusionPrior.sample`` draws."""


class DiffusionPrior(TorchDistribution):
    """An unnormalised density as a Pyro distribution: ``x = pyro.sample("x", DiffusionPrior(prior))``.

    ``log_prob`` is minus the energy at a noise level, the cleanest unless :func:`at_level` says otherwise; the
    unknown normaliser is left out. It works in plates, beside other latent sites, and as the prior of a
    variational guide (gradients flow). Load the potential outside the model, which runs at every evaluation.

    ``sample`` draws by annealed HMC: approximate, and as slow as that is. MCMC never starts from it.

    Args:
        potential: the density; one that computes with JAX crosses into torch, for kernels of ``bridges.pyro`` only.
        level: noise level.
        batch_shape: as for any distribution.

    Raises:
        TypeError: not a potential.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        potential: Potential,
        *,
        level: int = 0,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(potential, Potential):
            raise TypeError(f"DiffusionPrior takes a potential, got {potential!r}: give load('digits')")
        potential.schedule.check_level(level)
        self.potential, self.level = to_torch(potential), level
        super().__init__(torch.Size(batch_shape), torch.Size(potential.event_shape), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Every real array of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiffusionPrior:
        """The same density with another batch shape."""
        return DiffusionPrior(self.potential, level=self.level, batch_shape=batch_shape)

    def at(self, level: int) -> DiffusionPrior:
        """The same prior at another noise level."""
        return DiffusionPrior(self.potential, level=level, batch_shape=self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the energy of ``value (*sample, *batch_shape, *event_shape)``, shape ``(*sample, *batch_shape)``."""
        energy = self.potential.energy(value.to(self.potential.device), level=self.level).to(value.device)
        return -energy.expand(torch.broadcast_shapes(energy.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Approximate draws by annealed HMC, seeded by torch's global generator, as Pyro users expect."""
        shape = torch.Size(sample_shape) + self.batch_shape
        seed = int(torch.randint(2**31, ()))
        top = len(self.potential.schedule) - 1 - self.level
        rungs = min(DRAW["rungs"], top + 1)
        levels = sorted({round(self.level + top * i / max(rungs - 1, 1)) for i in range(rungs)}, reverse=True)
        ladder = Ladder(levels=tuple(levels), steps=DRAW["steps"])
        trace = anneal(self.potential, HMC(), ladder=ladder, chains=max(shape.numel(), 1), seed=seed)
        drawn = torch.from_numpy(trace.positions[:, 0]).to(torch.get_default_dtype())
        return drawn[: shape.numel()].reshape(shape + self.event_shape)


class at_level(Messenger):
    """Run a model with its diffusion priors at a noise level: ``at_level(30)(model)``, or ``with at_level(30): ...``.

    Args:
        level: an integer, 0 the cleanest.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def _pyro_sample(self, msg: Any) -> None:
        if prior_of(msg["fn"]) is not None:
            msg["fn"] = rewrapped(msg["fn"], lambda prior: prior.at(self.level))


def prior_of(fn: Any) -> DiffusionPrior | None:
    """The diffusion prior inside a distribution that may be masked or independent, or None.

    Raises:
        ValueError: one that is wrapped otherwise.
    """
    inner = unwrapped(fn)
    if isinstance(inner, DiffusionPrior) or not hasattr(inner, "base_dist"):
        return inner if isinstance(inner, DiffusionPrior) else None
    if prior_of(inner.base_dist) is not None:
        raise ValueError(
            f"a diffusion prior inside a {type(inner).__name__} cannot be annealed: sample x from the prior "
            "itself, and transform it in the model"
        )
    return None


def unwrapped(fn: Any) -> Any:
    """A distribution that may be masked or independent, without that."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def rewrapped(fn: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of what is inside ``fn``, masked and independent as ``fn`` is."""
    if isinstance(fn, dist.Independent):
        return rewrapped(fn.base_dist, change).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return rewrapped(fn.base_dist, change).mask(fn._mask)
    return change(fn)


def through(fn: Any, energy: Tensor) -> Tensor:
    """Energies of the diffusion prior inside ``fn``, ``(chains, *batch)``, masked and summed as ``fn`` does it."""
    if isinstance(fn, DiffusionPrior):
        return energy
    inner = through(fn.base_dist, energy)
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(inner, mask=fn._mask)
    return sum_rightmost(inner, fn.reinterpreted_batch_ndims)
