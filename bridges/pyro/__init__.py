"""Diffusion models as priors in Pyro models, annealed with Pyro's or BlackJAX's kernels.

    prior = load("digits")

    def model(y):
        x = pyro.sample("x", DiffusionPrior(prior))
        noise = pyro.sample("noise", dist.HalfNormal(0.5))
        pyro.sample("y", dist.Normal(x[..., 14:], noise).to_event(2), obs=y)

    trace = anneal_model(model, (y,), kernel=HMC(), chains=8, draws=100, seed=0)

At the last rung, level 0, the target is the exact joint density of the model; the densities at higher levels form an
annealing path to it, see ``bridges.pyro.likelihood``. Other latent sites start from their priors and are sampled in
unconstrained coordinates; ``trace.sites`` holds their constrained values.
"""

from .annealing import anneal_model
from .exchanging import exchange_model
from .factor import from_model
from .joint import JointPotential
from .kernels import HMC, NUTS
from .prior import DiffusionPrior, at_level

__all__ = [
    "HMC",
    "NUTS",
    "DiffusionPrior",
    "JointPotential",
    "anneal_model",
    "at_level",
    "exchange_model",
    "from_model",
]
