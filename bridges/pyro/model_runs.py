"""What ``anneal_model`` and ``exchange_model`` share: the joint density that walks, and the sites in the trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ppl_diffusion.arrays import check_count
from ppl_diffusion.sampling.advice import warn_caller
from ppl_diffusion.sampling.kernel import Kernel
from ppl_diffusion.sampling.trace import Trace

from ..blackjax.walker import BlackJAXKernel
from ..torch_jax.convert import contains_jax
from .joint import JointPotential
from .likelihood import Likelihood
from .walker import PyroKernel
from .workers import spread_over_processes


class ModelRun(NamedTuple):
    """What a walk on a Pyro model is given.

    Attributes:
        joint: the joint density of the model.
        kernel: the kernel, whose chains may be stepped by other processes.
        init: flat starting positions ``(chains, size)``, or None.
    """

    joint: JointPotential
    kernel: Kernel
    init: Any


@contextmanager
def run_of_model(
    model: Callable[..., Any] | JointPotential,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    *,
    kernel: Kernel,
    init: Any,
    likelihood: Likelihood,
    workers: int,
) -> Iterator[ModelRun]:
    """Context with what a walk is given; arguments and errors are those of :func:`bridges.pyro.anneal_model`."""
    check_count("workers", workers, example=2)
    if workers > 1 and not isinstance(kernel, PyroKernel):
        raise ValueError(f"{kernel} moves all chains by one call: leave workers= out, or use bridges.pyro.HMC()")
    if isinstance(model, JointPotential):
        if model.likelihood != likelihood:
            raise ValueError(f"{model} was made with likelihood={model.likelihood!r}: give the same here")
        if not isinstance(args, tuple) or args or kwargs:
            model.update(args, kwargs)
    joint = model if isinstance(model, JointPotential) else JointPotential(model, args, kwargs, likelihood=likelihood)
    home = [str(prior) for prior in joint.priors if contains_jax(prior)]
    if home and isinstance(kernel, BlackJAXKernel):
        raise ValueError(
            f"{home[0]} computes with JAX, which a call from JAX cannot: use a kernel of bridges.pyro, or "
            "backend='torch' for it"
        )
    if isinstance(init, Mapping):
        init = joint.flatten(init)
    joint.one_by_one = isinstance(kernel, PyroKernel)
    if workers == 1:
        yield ModelRun(joint, kernel, init)
        return
    with spread_over_processes(kernel, joint, workers) as moving:
        yield ModelRun(joint, moving, init)


def with_sites(trace: Trace, joint: JointPotential) -> Trace:
    """Return the trace of a walk on a joint density with the values of the model's sites, and with its warnings, which
    are issued."""
    attributes = {**trace.attributes, "likelihood": joint.likelihood, "dims": joint.dims}
    sites, groups = joint.report(trace.positions)
    seen = {}
    if trace.snapshots:  # (snapshots, chains, size): as draws, whose chains come first
        seen = joint.report(trace.snapshots["x"])[0]
    last, notes = attributes["levels"][-1], [*joint.notes]
    if last > 0:
        notes.append(
            f"the ladder ends at level {last}: the draws of {joint.name} are noised, x_k and not x, and of another "
            "density than its posterior; let it end at level 0"
        )
        del groups["log_likelihood"]
    for note in notes:
        warn_caller(note)
    attributes["warnings"] = [*attributes["warnings"], *notes]
    if joint.remarks:
        concerns = attributes.get("concerns", {})
        attributes["concerns"] = {**concerns, "nothing": [*concerns.get("nothing", []), *joint.remarks]}
    return dataclasses.replace(trace, sites=sites, groups=groups, attributes=attributes, snapshots=seen)
