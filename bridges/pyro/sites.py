"""The sites of a Pyro model, and the layout of its latent sites in a flat vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_diffusion.potentials.common_ground import same_density

from .coordinates import SubstituteLatents, find_fillers
from .names import check_names, dims_of
from .prior import DiffusionPrior, apply_wrappers, prior_of, unwrapped


@dataclass(frozen=True, eq=False)
class Site:
    """A latent site and its slice of the flat vector.

    Attributes:
        name: name of the site.
        start, stop: bounds of its slice.
        shape: shape of its unconstrained value.
        prior: its diffusion prior, or None for any other latent site.
        fn: for a diffusion prior, the site's distribution: the prior inside ``Independent`` or masked wrappers.
        scale, mask: for a diffusion prior, scale and mask set by Pyro's handlers.
        filler: whether ``obs_mask=`` has added the site for missing values, see ``bridges.pyro.coordinates``.
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
        """Return the site's part of ``flat (*chains, size)``, shape ``(*chains, *shape)``."""
        return flat[..., self.start : self.stop].reshape((*flat.shape[:-1], *self.shape))

    def total(self, energy: Tensor) -> Tensor:
        """Sum energies ``(chains, *batch)`` of the diffusion prior to ``(chains,)``, with its scale and masks."""
        counted = scale_and_mask(apply_wrappers(self.fn, energy), self.scale, self.mask)
        return counted.reshape(len(energy), -1).sum(1)

    def weights(self, energy: Tensor) -> Tensor | float:
        """Return the derivative of :meth:`total` by each energy: shape ``(chains, *batch)``, or one number for all."""
        if self.fn is self.prior and self.mask is None and isinstance(self.scale, (int, float)):
            return float(self.scale)
        with torch.enable_grad():
            leaf = energy.detach().requires_grad_()
            total = self.total(leaf).sum()
            return torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(energy)

    def powers(self) -> np.ndarray:
        """Power to which scale and masks raise the diffusion prior, shape ``batch``; 1 where a mask leaves it out."""
        assert self.prior is not None
        batch = self.shape[: len(self.shape) - len(self.prior.event_shape)]
        found = np.broadcast_to(np.asarray(self.weights(torch.zeros(1, *batch, dtype=torch.float64))), (1, *batch))[0]
        return np.where(found > 0, found, 1.0)

    def has_same_prior(self, node: Any) -> bool:
        """Whether ``node``, of another run of the model, has the same diffusion prior, scale and mask."""
        prior = prior_of(node["fn"])
        if prior is None or self.prior is None or prior.batch_shape != self.prior.batch_shape:
            return False
        energy = torch.arange(1.0, prior.batch_shape.numel() + 1).reshape(1, *prior.batch_shape)
        here = replace(self, prior=prior, fn=node["fn"], scale=node["scale"], mask=node["mask"])
        return torch.equal(here.total(energy), self.total(energy)) and same_density(
            self.prior.potential, prior.potential
        )


def sample_sites(nodes: Any, model: str) -> dict[str, Any]:
    """Return the sample sites of a trace, without its plates.

    Raises:
        TypeError: observed data that are not a tensor.
        ValueError: a plate that draws a random subsample at each evaluation, or data that are not on the CPU.
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
            if node["is_observed"]:
                _check_shape(name, model, tuple(node["value"].shape), tuple(fn.shape()))
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


def _check_shape(name: str, model: str, data: tuple[int, ...], drawn: tuple[int, ...]) -> None:
    try:
        torch.broadcast_shapes(data, drawn)
    except RuntimeError as error:
        raise ValueError(
            f"the data of {name} have shape {data}, and {model} draws it in shape {drawn}: give data of that shape, or "
            "a plate of their length"
        ) from error


def is_deterministic(node: Any) -> bool:
    """Whether a site only records a value, by ``pyro.deterministic`` or a reparametrisation."""
    return bool(node["is_observed"]) and isinstance(unwrapped(node["fn"]), dist.Delta)


class Layout(NamedTuple):
    """The sites of a model, found by a first run.

    Attributes:
        sites: the latent sites, in the order of the flat vector.
        observed: values of observed sites by name.
        recorded: names of the sites that ``pyro.deterministic`` records.
        dims: names of the dimensions of every site, except those of ``pyro.factor``.
        parameters: values of ``pyro.param`` and of the parameters of Pyro's modules by name, copied.
        notes: sentences on parameters, and on data outside the support of their distribution.
    """

    sites: tuple[Site, ...]
    observed: dict[str, np.ndarray]
    recorded: list[str]
    dims: dict[str, list[str]]
    parameters: dict[str, Tensor]
    notes: list[str]


class HeldParameters(Messenger):
    """Effect handler that keeps parameters at given values, also where Pyro's store of parameters is another one."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def layout_of(run: Callable[[SubstituteLatents], Any], model: str) -> Layout:
    """Run a model once and return the layout of its sites.

    Args:
        run: runs the model under a handler, and returns the nodes of its trace.
        model: name of the model, for error messages.

    Raises:
        ValueError: the model has latent sites that are discrete or cannot be sampled, subsampling plates, or names
            that :func:`~bridges.pyro.names.check_names` refuses.
    """
    nodes, sites, start = _first_run(run, model), [], 0
    observed: dict[str, np.ndarray] = {}
    recorded: list[str] = []
    dims: dict[str, list[str]] = {}
    parameters = {name: node["value"] for name, node in nodes.items() if node["type"] == "param"}
    notes = []
    if parameters:
        notes.append(
            f"{model} has the parameters {', '.join(parameters)}, which keep their present values: to infer one, give "
            "it a prior"
        )
    found = sample_sites(nodes, model)
    fillers = find_fillers(found)
    for name, node in found.items():
        if type(node["fn"]).__name__ == "Unit":  # the distribution of pyro.factor
            continue
        dims[name] = dims_of(name, node)
        if is_deterministic(node):
            recorded.append(name)
        elif node["is_observed"]:
            observed[name] = node["value"].detach().cpu().numpy()
            notes += _support_notes(name, node, model)
        else:
            sites.append(replace(_site(name, node, start, model), filler=name in fillers))
            start = sites[-1].stop
    check_names(dims, observed, model)
    # Parameters of pyro.module are those of the network, which may replace them by what it is given.
    held = {name: value.detach().clone() for name, value in parameters.items() if "$$$" not in name}
    return Layout(tuple(sites), observed, recorded, dims, held, notes)


def _is_masked(fn: Any) -> bool:
    """Whether a mask is among the wrappers of ``fn``, outside or inside of ``to_event``."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution)


def _support_notes(name: str, node: Any, model: str) -> list[str]:
    """Return a sentence if data lie outside of a support that depends on no parameters; missing data do not."""
    fn = unwrapped(node["fn"])
    support = getattr(type(fn), "support", None)
    if node["mask"] is not None or _is_masked(node["fn"]):
        return []
    if not isinstance(support, constraints.Constraint) or constraints.is_dependent(support):
        return []
    if bool(node["value"].isnan().any() or support.check(node["value"]).all()):
        return []
    return [
        f"some data of {name} in {model} lie outside the support of {type(fn).__name__}, {support}: they have no "
        "density, and what is computed for them means nothing: take another distribution, or mask them, fn.mask(good)"
    ]


def _first_run(run: Callable[[SubstituteLatents], Any], model: str) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        try:
            return run(SubstituteLatents({}))
        except NotImplementedError as error:
            raise ValueError(
                f"a latent site of {model} cannot be drawn ({str(error).splitlines()[0]}): give it a proper "
                "prior, which dist.ImproperUniform is not"
            ) from error
        except (ValueError, RuntimeError, IndexError) as error:
            if _takes_batches(run):
                raise ValueError(
                    f"{model} is written for batches of x, and is run for one x without a batch dimension "
                    f"({str(error).splitlines()[0][:200]}): give a network x[None], and take [0] of what it returns"
                ) from error
            if not isinstance(error, ValueError):
                raise
            # First line only: Pyro appends the shapes of all sites.
            raise ValueError(str(error).splitlines()[0]) from error


class _BatchOfOne(SubstituteLatents):
    """Effect handler that gives sites with a diffusion prior a batch of one value, of zeros."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if not msg["is_observed"] and prior_of(msg["fn"]) is not None:
            msg["value"] = msg["value"][None]


def _takes_batches(run: Callable[[SubstituteLatents], Any]) -> bool:
    """Whether a model that fails for one ``x`` runs for a batch of one."""
    try:
        run(_BatchOfOne({}))
    except Exception:  # whatever a model raises: it does not run
        return False
    return True


def _check_prior_site(name: str, node: Any, prior: DiffusionPrior, model: str) -> None:
    if prior.level != 0:
        raise ValueError(
            f"the prior of {name} in {model} is at noise level {prior.level}, but annealing sets the level: leave "
            f"level= and at_level out, and end the ladder there, Ladder(levels=(..., {prior.level}))"
        )
    batch = torch.Size(node["fn"].batch_shape)
    for what in ("scale", "mask"):
        shape = getattr(node[what], "shape", torch.Size())
        if len(shape) > len(batch) or any(n not in (1, m) for n, m in zip(shape[::-1], batch[::-1], strict=False)):
            raise ValueError(
                f"{what} of shape {tuple(shape)} around {name} in {model}, whose prior has the batch shape "
                f"{tuple(batch)}, would count it several times: sample {name} outside of poutine.{what}"
            )


def _site(name: str, node: Any, start: int, model: str) -> Site:
    fn, prior = node["fn"], prior_of(node["fn"])
    if isinstance(unwrapped(fn), dist.Delta):
        raise ValueError(f"the latent site {name} of {model} has one value only, a Delta: use pyro.deterministic")
    if isinstance(unwrapped(fn), (dist.VonMises, dist.SineBivariateVonMises)):
        raise ValueError(
            f"the latent site {name} of {model} is an angle, which would walk round its circle for ever: take the "
            "angle of two latent coordinates, torch.atan2(b, a)"
        )
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
    if prior is not None:
        _check_prior_site(name, node, prior, model)
    extra = {} if prior is None else {"fn": fn, "scale": node["scale"], "mask": node["mask"]}
    return Site(name, start, start + int(np.prod(shape)), shape, prior, **extra)
