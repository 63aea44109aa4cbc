"""Sites of a Pyro model: what they are, and where they lie in a flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import biject_to

from .coordinates import Given, fillers_of
from .names import check_names, dims_of
from .prior import DiffusionPrior, prior_of, through, unwrapped


@dataclass(frozen=True, eq=False)
class Site:
    """Where a latent site lies in the flat vector.

    Attributes:
        name: of the site.
        start, stop: its coordinates.
        shape: of its unconstrained value.
        prior: its diffusion prior, or None for any other latent site.
        fn: the distribution that a diffusion prior is wrapped in.
        scale, mask: of a diffusion prior's site, as Pyro's handlers set them.
        filler: whether ``obs_mask=`` has left it.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    prior: DiffusionPrior | None
    fn: Any = None
    scale: Any = 1.0
    mask: Any = None
    filler: bool = False

    def of(self, flat: Tensor) -> Tensor:
        """Its coordinates of ``flat (*chains, size)``, in its shape."""
        return flat[..., self.start : self.stop].reshape((*flat.shape[:-1], *self.shape))

    def total(self, energy: Tensor) -> Tensor:
        """Energies of a diffusion prior, ``(chains, *batch)``, as the model counts them, ``(chains,)``."""
        counted = scale_and_mask(through(self.fn, energy), self.scale, self.mask)
        return counted.reshape(len(energy), -1).sum(1)

    def weights(self, energy: Tensor) -> Tensor | float:
        """How often :meth:`total` counts each of the energies, of their shape."""
        if self.fn is self.prior and self.mask is None and isinstance(self.scale, (int, float)):
            return float(self.scale)
        with torch.enable_grad():
            leaf = energy.detach().requires_grad_()
            total = self.total(leaf).sum()
            return torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(energy)

    def alike(self, node: Any) -> bool:
        """Whether another run of the model has the same diffusion prior here, and counts it as often."""
        prior = prior_of(node["fn"])
        if prior is None or self.prior is None or prior.batch_shape != self.prior.batch_shape:
            return False
        energy = torch.arange(1.0, prior.batch_shape.numel() + 1).reshape(1, *prior.batch_shape)
        here = replace(self, prior=prior, fn=node["fn"], scale=node["scale"], mask=node["mask"])
        return torch.equal(here.total(energy), self.total(energy)) and self.prior.potential.same_as(prior.potential)


def sample_sites(nodes: Any, model: str) -> dict[str, Any]:
    """The sample sites of a trace, without its plates.

    Raises:
        ValueError: a plate that draws a subsample, anew for each evaluation, or data on an accelerator.
    """
    found = {}
    for name, node in nodes.items():
        if node["type"] != "sample":
            continue
        fn = node["fn"]
        if type(fn).__name__ != "_Subsample":
            found[name] = node
            if node["is_observed"] and not isinstance(node["value"], Tensor):
                raise TypeError(f"the data of {name} in {model} are no tensor: give obs=torch.as_tensor(...)")
            if node["is_observed"] and node["value"].device.type != "cpu":
                raise ValueError(
                    f"the data of {name} are on {node['value'].device}, and {model} runs on the CPU, wherever the "
                    f"networks of its priors are: give {name}.cpu()"
                )
        elif fn.subsample_size is not None and fn.subsample_size < fn.size:
            raise ValueError(
                f"the plate {name} of {model} takes {fn.subsample_size} of {fn.size} at random, and MCMC needs all of "
                "the density: leave subsample_size out"
            )
    return found


def is_deterministic(node: Any) -> bool:
    """Whether a site is a value that ``pyro.deterministic`` or a reparametrisation records."""
    return bool(node["is_observed"]) and isinstance(unwrapped(node["fn"]), dist.Delta)


class Layout(NamedTuple):
    """What a first run finds of a model.

    Attributes:
        sites: the latent ones, in the order of the flat vector.
        observed: values of observed sites by name.
        recorded: names of what ``pyro.deterministic`` records.
        dims: names of the dimensions of every site, factors excepted.
    """

    sites: tuple[Site, ...]
    observed: dict[str, np.ndarray]
    recorded: list[str]
    dims: dict[str, list[str]]


def layout_of(run: Callable[[Given], Any], model: str) -> Layout:
    """Run a model once, by ``run(handler)``, which returns the nodes of its trace, and look at its sites.

    Raises:
        ValueError: parameters, discrete latent sites or others that cannot be drawn, plates that draw a subsample, or
            names that :func:`check_names` refuses.
    """
    nodes, sites, start = _first_run(run, model), [], 0
    observed: dict[str, np.ndarray] = {}
    recorded: list[str] = []
    dims: dict[str, list[str]] = {}
    for name, node in nodes.items():
        if node["type"] == "param":
            raise ValueError(f"{model} has the parameter {name}: fix it before sampling, or give it a prior")
    found = sample_sites(nodes, model)
    fillers = fillers_of(found)
    for name, node in found.items():
        if type(node["fn"]).__name__ == "Unit":  # what pyro.factor leaves
            continue
        dims[name] = dims_of(name, node)
        if is_deterministic(node):
            recorded.append(name)
        elif node["is_observed"]:
            observed[name] = node["value"].detach().cpu().numpy()
        else:
            sites.append(replace(_site(name, node, start, model), filler=name in fillers))
            start = sites[-1].stop
    check_names(dims, observed, model)
    return Layout(tuple(sites), observed, recorded, dims)


def _first_run(run: Callable[[Given], Any], model: str) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        try:
            return run(Given({}))
        except NotImplementedError as error:
            raise ValueError(
                f"a latent site of {model} cannot be drawn ({str(error).splitlines()[0]}): give it a proper "
                "prior, which dist.ImproperUniform is not"
            ) from error
        except ValueError as error:  # without the shapes of all sites, which Pyro adds
            raise ValueError(str(error).splitlines()[0]) from error


def _site(name: str, node: Any, start: int, model: str) -> Site:
    fn, prior = node["fn"], prior_of(node["fn"])
    if prior is None and fn.support.is_discrete:
        raise ValueError(
            f"{model} has the discrete latent site {name}, which has no gradient: sum it out inside "
            "the model, for example by a MixtureSameFamily"
        )
    try:
        shape = tuple(node["value"].shape if prior is not None else biject_to(fn.support).inv(node["value"]).shape)
    except NotImplementedError as error:
        raise ValueError(
            f"the support of the latent site {name} of {model}, {fn.support}, cannot be made unconstrained: build it "
            "from sites that can"
        ) from error
    extra = {} if prior is None else {"fn": fn, "scale": node["scale"], "mask": node["mask"]}
    return Site(name, start, start + int(np.prod(shape)), shape, prior, **extra)


def check_priors(sites: Sequence[Site], nodes: Any, model: str) -> None:
    """Refuse diffusion priors, ``sites`` of a first run of the model, that are others in another run."""
    for site in sites:
        if not site.alike(nodes[site.name]):
            raise ValueError(
                f"the prior of {site.name} in {model}, its scale or its mask depends on other latent sites, and would "
                f"be fixed here: sample {site.name} from one prior, and let the model do the rest, tau * {site.name}"
            )


def check_randomness(run: Callable[[], Any], model: str) -> None:
    """Refuse a model that draws numbers with all of its sites given: its energies would be noise."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        before = torch.random.get_rng_state()
        run()
        if not torch.equal(before, torch.random.get_rng_state()):
            raise ValueError(
                f"{model} draws random numbers that are no sites of it, such as torch.randn, dropout, or sites hidden "
                "by poutine.block: make them sites, or draw them once, outside"
            )
