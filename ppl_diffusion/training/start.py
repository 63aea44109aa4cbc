"""Where training starts from: the weights of a like network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.networks import EnergyUNet

OF_CONDITIONS = ("embedding.labels.", "embedding.tokens.", "map.")
"""How the names of those parameters begin that only conditions need."""


@torch.no_grad()
def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the parameters of a network to those of a like one, which may have conditions of another kind, or none.

    What only the other's conditions need is left out, and what only its own need stays as it is: in an
    :class:`EnergyUNet` the input channels after those of the picture too.

    Raises:
        RuntimeError: the networks differ in more than their conditions.
    """
    own = network.state_dict()
    taken = {k: v for k, v in weights.items() if not k.startswith(OF_CONDITIONS) or _shape(own.get(k)) == v.shape}
    enter = taken.get("enter.weight")
    if isinstance(network, EnergyUNet) and enter is not None and enter.shape[0] == own["enter.weight"].shape[0]:
        of_picture = len(own["head.bias"])
        taken["enter.weight"] = own["enter.weight"].clone()
        shared = of_picture if enter.shape != own["enter.weight"].shape else enter.shape[1]
        taken["enter.weight"][:, :shared] = enter[:, :shared]
    network.load_state_dict({k: v for k, v in own.items() if k.startswith(OF_CONDITIONS)} | taken)


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape
