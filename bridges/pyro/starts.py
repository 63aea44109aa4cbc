"""Starting points of the latent sites of a Pyro model that have no diffusion prior: draws of their own priors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro
import torch
from torch import Tensor

from .checks import check_priors, check_same_sites
from .coordinates import unconstrain
from .flat import FlatModel
from .sites import sample_sites


class StartsFromPriors(FlatModel):
    """A model over one flat vector whose latent sites without a diffusion prior start from their own priors."""

    def _start_others(
        self, drawn: Mapping[str, Tensor], values: np.ndarray, log_density: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Draw the other sites of every chain, in place.

        Args:
            drawn: values of the sites with a diffusion prior, each ``(chains, *shape)``.
            values: flat points ``(chains, size)``, whose other coordinates are set.
            log_density: log-density of the points ``(chains,)``, to which theirs are added.
            rng: source of the seed of the model's draws.

        Raises:
            ValueError: a site has another shape in some runs, or the sites differ.
        """
        others = [site for site in self.sites if site.prior is None]
        if others or len(drawn) > 1:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
                torch.default_generator.manual_seed(int(rng.integers(2**63)))
                for chain in range(len(values)):
                    handler = self._substitute({name: value[chain] for name, value in drawn.items()})
                    nodes = self._trace(handler)
                    check_same_sites(self.sites, sample_sites(nodes, self.name), self.name)
                    check_priors([site for site in self.sites if site.prior is not None], nodes, self.name)
                    for site in others:
                        u, log_p = unconstrain(nodes[site.name], handler)
                        if tuple(u.shape) != site.shape:
                            raise ValueError(
                                f"the latent site {site.name} of {self.name} has another shape in some runs: let its "
                                "shape depend on nothing that is drawn"
                            )
                        values[chain, site.start : site.stop] = u.numpy().ravel()
                        log_density[chain] += float(log_p)
