"""``DiffusionPrior``: a potential as a Pyro distribution."""

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

from ppl_diffusion.ladder import Ladder
from ppl_diffusion.potentials.algebra import Potential
from ppl_diffusion.sampling.anneal import anneal

from ..blackjax import HMC
from ..torch_jax import to_torch

SAMPLE_LADDER = {"rungs": 50, "steps": 5}
"""Number of rungs and steps per rung of the ladder by which ``DiffusionPrior.sample`` draws."""


class DiffusionPrior(TorchDistribution):
    """An unnormalised density as a Pyro distribution: ``x = pyro.sample("x", DiffusionPrior(prior))``.

    ``log_prob`` is minus the energy at noise level 0, or at the level set by :func:`at_level`, without the unknown
    normalising constant. The distribution works in plates, beside other latent sites, and with variational guides,
    since ``log_prob`` is differentiable. Load the potential outside the model, because the model runs at every
    evaluation.

    ``sample`` runs annealed HMC: its draws are approximate and slow. ``anneal_model`` does not use it for its start.

    Args:
        potential: the density. A JAX potential is converted to torch; it then works with kernels of ``bridges.pyro``
            only.
        level: noise level.
        batch_shape: batch shape of the distribution.

    Raises:
        TypeError: ``potential`` is not a potential.
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
        """Return the same density with another batch shape."""
        return DiffusionPrior(self.potential, level=self.level, batch_shape=batch_shape)

    def at(self, level: int) -> DiffusionPrior:
        """Return the same prior at another noise level."""
        return DiffusionPrior(self.potential, level=level, batch_shape=self.batch_shape)

    def __repr__(self) -> str:
        return f"DiffusionPrior({self.potential}, level={self.level}, batch_shape={tuple(self.batch_shape)})"

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the energy of ``value (*sample, *batch_shape, *event_shape)``: ``(*sample, *batch_shape)``."""
        energy = self.potential.energy(value.to(self.potential.device), level=self.level).to(value.device)
        return -energy.expand(torch.broadcast_shapes(energy.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, *event)`` approximately, by annealed HMC, seeded by torch's global RNG."""
        shape = torch.Size(sample_shape) + self.batch_shape
        seed = int(torch.randint(2**31, ()))
        top = len(self.potential.schedule) - 1 - self.level
        rungs = min(SAMPLE_LADDER["rungs"], top + 1)
        levels = sorted({round(self.level + top * i / max(rungs - 1, 1)) for i in range(rungs)}, reverse=True)
        ladder = Ladder(levels=tuple(levels), steps=SAMPLE_LADDER["steps"])
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
    """Return the diffusion prior inside ``Independent`` and masked wrappers of ``fn``, or None if there is none.

    Raises:
        ValueError: a diffusion prior inside any other wrapper.
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
    """Return ``fn`` without its ``Independent`` and masked wrappers."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def rewrapped(fn: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` inside the ``Independent`` and masked wrappers of ``fn``, and wrap the result alike."""
    if isinstance(fn, dist.Independent):
        return rewrapped(fn.base_dist, change).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return rewrapped(fn.base_dist, change).mask(fn._mask)
    return change(fn)


def apply_wrappers(fn: Any, energy: Tensor) -> Tensor:
    """Mask and sum ``energy (chains, *batch)`` of the diffusion prior inside ``fn`` as the wrappers of ``fn`` do."""
    if isinstance(fn, DiffusionPrior):
        return energy
    inner = apply_wrappers(fn.base_dist, energy)
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(inner, mask=fn._mask)
    return sum_rightmost(inner, fn.reinterpreted_batch_ndims)
