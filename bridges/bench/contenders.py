"""What competes: kernels of BlackJAX and Pyro, with their libraries' adaptation or with ours, and one's own.

A contender is a name and what makes a sampler of it for a number of coordinates and a budget. One's own is a function
``kernel(log_density)`` that returns an algorithm in BlackJAX's form, or any kernel that ``anneal`` takes:

    def kernel(log_density):
        return blackjax.barker_proposal(log_density, step_size=0.1)

Not among them: Riemannian HMC (``blackjax.rmhmc``), whose metric at a point needs second derivatives, which do not
cross from torch; elliptical slice sampling, which needs a Gaussian prior; samplers without gradients.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import blackjax
import numpy as np

from ppl_diffusion.sampling.kernel import Kernel
from ppl_diffusion.sampling.step import Adaptive

from .. import blackjax as ours
from .. import pyro as pyros
from ..blackjax import from_blackjax
from ..blackjax.walker import BlackJAXKernel
from . import adaptation
from .protocol import SHARE
from .samplers import Sampler, StepAdapted, Unadapted

STANDARD = ("hmc", "nuts", "mala", "mclmc-tuner")
"""Contenders that stand beside one's own."""


@dataclass(frozen=True)
class Contender:
    """What competes.

    Attributes:
        name: name in tables and files.
        make: ``make(size, gradients)`` returns a sampler, or a kernel of the protocol of ``anneal``.
        words: what it is.
        chains: the number of chains that it moves, if it is slow; None for as many as the others.
        own: whether it is somebody's own, so that a budget that is too small for it is an error.
    """

    name: str
    make: Callable[[int, float], Sampler | Kernel]
    words: str
    chains: int | None = None
    own: bool = False


def _ours(kernel: BlackJAXKernel) -> Callable[[int, float], Sampler]:
    return lambda size, gradients: StepAdapted(kernel)


def _theirs(library: Any, step: Adaptive, **parameters: Any) -> Callable[[int, float], Sampler]:
    """A kernel of BlackJAX of unit mass with our adaptive step."""

    def make(size: int, gradients: float) -> Sampler:
        given = {"inverse_mass_matrix": np.ones(size), **parameters}
        return StepAdapted(from_blackjax(library.build_kernel, library.init, step_size=step, **given))

    return make


def _adapted(build: Callable[..., Sampler], *given: Any, **options: Any) -> Callable[[int, float], Sampler]:
    return lambda size, gradients: partial(build, *given, **options)(SHARE * gradients)


def _pyro(kernel: Kernel) -> Callable[[int, float], Kernel]:
    return lambda size, gradients: kernel


def contenders() -> dict[str, Contender]:
    """Return all contenders by name."""
    random_steps = Adaptive(target_acceptance=0.8)
    found = [
        Contender("ula", _ours(ours.ULA()), "unadjusted Langevin, our adaptive step"),
        Contender("mala", _ours(ours.MALA()), "MALA, our adaptive step"),
        Contender("barker", _theirs(blackjax.barker, Adaptive(0.57)), "Barker proposal, our adaptive step"),
        Contender("uhmc", _ours(ours.UHMC()), "unadjusted HMC, 3 leapfrogs, half of the momentum redrawn"),
        Contender("hmc", _ours(ours.HMC()), "HMC, 3 leapfrogs, our adaptive step"),
        Contender("hmc-10", _ours(ours.HMC(leapfrogs=10)), "HMC, 10 leapfrogs, our adaptive step"),
        Contender("hmc-partial", _ours(ours.HMC(leapfrogs=1, refreshment=0.2)), "HMC, 1 leapfrog, momentum kept"),
        Contender("dynamic-hmc", _theirs(blackjax.dynamic_hmc, random_steps), "HMC, 1 to 9 leapfrogs at random"),
        Contender(
            "multinomial-hmc",
            _theirs(blackjax.multinomial_hmc, random_steps, num_integration_steps=7),
            "multinomial HMC, 7 leapfrogs, our adaptive step",
        ),
        Contender("nuts", _ours(ours.NUTS()), "NUTS of unit mass, our adaptive step"),
        Contender("nuts-window", _adapted(adaptation.windows, "nuts"), "NUTS, Stan's windows, diagonal mass"),
        Contender(
            "nuts-low-rank", _adapted(adaptation.windows, "nuts", low_rank=True), "NUTS, windows, mass of low rank"
        ),
        Contender(
            "hmc-window", _adapted(adaptation.windows, "hmc"), "HMC, 10 leapfrogs, Stan's windows, diagonal mass"
        ),
        Contender("hmc-chees", _adapted(adaptation.chees), "HMC, jittered length by ChEES"),
        Contender("ghmc-meads", _adapted(adaptation.meads), "generalised HMC by MEADS"),
        Contender("mclmc-tuner", _adapted(adaptation.microcanonical), "microcanonical Langevin with its tuner"),
        Contender(
            "adjusted-mclmc",
            _adapted(adaptation.adjusted_microcanonical, dynamic=False),
            "microcanonical, Metropolis test, its tuner",
        ),
        Contender(
            "adjusted-mclmc-dynamic",
            _adapted(adaptation.adjusted_microcanonical, dynamic=True),
            "the same, trajectories of random length",
        ),
        Contender("pyro-hmc", _pyro(pyros.HMC()), "Pyro's HMC, 3 leapfrogs, adaptive step and mass", chains=4),
        Contender("pyro-nuts", _pyro(pyros.NUTS()), "Pyro's NUTS, adaptive step and mass", chains=4),
    ]
    return {contender.name: contender for contender in found}


def find(name: str) -> Contender:
    """Return a contender by its name, or one's own by ``module:object``.

    Raises:
        ValueError: there is no contender, module or object of this name.
        TypeError: the object is neither a kernel nor a function of the log-density.
    """
    known = contenders()
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ValueError(f"there is no kernel {name!r}: write module:function, or one of {', '.join(known)}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"there is no module {error.name!r}: give mymodule:kernel for mymodule.py in this folder"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{module} has no {attribute}: write def {attribute}(log_density) in it") from error
    return own(name, found)


def own(name: str, kernel: Any) -> Contender:
    """Return one's own kernel as a contender: a contender, a kernel that ``anneal`` takes, or a function
    ``kernel(log_density)`` that returns an algorithm in BlackJAX's form.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(kernel, Contender):
        return kernel
    if isinstance(kernel, BlackJAXKernel):
        return Contender(name, lambda size, gradients: StepAdapted(kernel), str(kernel), own=True)
    if isinstance(kernel, Kernel):
        return Contender(name, lambda size, gradients: kernel, str(kernel), chains=4, own=True)
    if callable(kernel):
        words = f"one's own, {_source_of(kernel)}"  # its results are not those of another version of it
        return Contender(name, lambda size, gradients: Unadapted(kernel, name), words, own=True)
    raise TypeError(
        f"{name} is a {type(kernel).__name__}: write def kernel(log_density): return "
        "blackjax.mala(log_density, step_size=0.1)"
    )


def _source_of(function: Callable[..., Any]) -> str:
    """Return a short text that changes with the file of a function."""
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        source = repr(function)
    return hashlib.sha256(source.encode()).hexdigest()[:8]
