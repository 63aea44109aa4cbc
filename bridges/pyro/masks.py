"""Masked observations: which elements of an observed site do not count, and values that stand for missing ones."""

from __future__ import annotations

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor


def hidden(node: Any) -> Tensor | None:
    """Return which elements of an observed site are masked, bool of the value's shape, or None without a mask.

    Masks come from ``poutine.mask`` or from ``fn.mask``, outside or inside of ``to_event``.
    """
    fn, masks = node["fn"], [(node["mask"], node["fn"].event_dim)]
    shape = torch.broadcast_shapes(node["value"].shape, (*fn.batch_shape, *fn.event_shape))
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    found = [(torch.as_tensor(mask), rank) for mask, rank in masks if mask is not None]
    if not found:
        return None
    left = torch.zeros(shape, dtype=torch.bool)
    for mask, rank in found:
        left = left | ~mask.bool().reshape((*mask.shape, *[1] * rank))
    return left


def filled(node: Any) -> Tensor:
    """Return the value of an observed site, with its NaN under a mask replaced by the median of the data.

    The density of NaN is NaN, and so is its derivative, which a mask multiplies by zero and so keeps. A value of the
    data is in the support.
    """
    value, left = node["value"], hidden(node)
    if left is None or not value.is_floating_point():
        return value
    middle = value.detach().nanmedian().nan_to_num(0.5)
    return torch.where(value.isnan() & left, middle, value)
