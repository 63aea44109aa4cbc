"""Checks of Pyro models that would be sampled wrongly: what is refused, and what is warned of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch

from .sites import Site, sample_sites

MOST_COMPARED = 1000
"""Coordinates of a latent site whose draws are compared with each other."""


def check_same_sites(sites: Sequence[Site], found: Mapping[str, Any], model: str) -> None:
    """Refuse a model whose latent sites are ``sites`` in a first run, and others in a run that has the sites ``found``.

    Raises:
        ValueError: a latent site that one of the two runs lacks.
    """
    some = {site.name for site in sites} ^ {name for name, node in found.items() if not node["is_observed"]}
    if some:
        raise ValueError(
            f"{model} samples {', '.join(sorted(some))} in some of its runs only, and a density needs all of its "
            "coordinates: sample it in every run, and use it where it is wanted"
        )


def precision_warnings(sites: Sequence[Site], drawn: np.ndarray, model: str) -> list[str]:
    """Return sentences about latent sites of which several draws ``(draws, size)`` have been rounded to one number."""
    notes = []
    for site in sites:
        stop = min(site.stop, site.start + MOST_COMPARED)
        columns: Any = [] if site.prior is not None else drawn[:, site.start : stop].T
        finite = (column for column in columns if np.isfinite(column).all())
        most = max((int(np.unique(column, return_counts=True)[1].max()) for column in finite), default=1)
        if most > 2:
            notes.append(
                f"{most} of {len(drawn)} draws of the latent site {site.name} of {model} are one number: its prior has "
                f"mass closer to the edge of its support than {torch.get_default_dtype()} can tell, and it is lost: "
                "torch.set_default_dtype(torch.float64), or take other parameters"
            )
    return notes


def check_priors(sites: Sequence[Site], nodes: Any, model: str) -> None:
    """Raise ValueError if a diffusion prior of ``sites`` is another one in ``nodes``, from another run of the model."""
    for site in sites:
        if not site.has_same_prior(nodes[site.name]):
            raise ValueError(
                f"the prior of {site.name} in {model}, its scale or its mask depends on other latent sites, and would "
                f"be fixed here: sample {site.name} from one prior, and let the model do the rest, tau * {site.name}"
            )


def check_rerun(sites: Sequence[Site], run: Callable[[], Any], model: str) -> None:
    """Refuse a model that has other sites, or draws random numbers, when all of its ``sites`` are given.

    Args:
        sites: the latent sites of a first run.
        run: runs the model with all of them given, and returns the nodes of its trace.
        model: name of the model, for error messages.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        before = torch.random.get_rng_state()
        check_same_sites(sites, sample_sites(run(), model), model)
        if not torch.equal(before, torch.random.get_rng_state()):
            raise ValueError(
                f"{model} draws random numbers that are no sites of it, such as torch.randn, dropout, or sites hidden "
                "by poutine.block: make them sites, or draw them once, outside"
            )
