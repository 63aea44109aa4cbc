"""Conditions drawn into a picture: input channels that show a convolution where something is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BUMP_WIDTH = 0.05
"""Standard deviation of the Gaussian bump that marks a position, as a fraction of the picture's side."""

MAP_SIDE = 8
"""Cells of a token's map in each direction."""


class TokenMap(nn.Module):
    """Channels that say what a token asks for, at the places where it asks for it.

    A token decides a vector of what, ``channels`` numbers, and a map of where, ``MAP_SIDE`` cells in each direction;
    their product is the drawing. It is zero for the token of zeros, which is no condition.
    """

    def __init__(self, token_size: int, channels: int, *, width: int = 128) -> None:
        super().__init__()
        self.what = token_mlp(token_size, channels, hidden=width)
        self.where = token_mlp(token_size, MAP_SIDE**2, hidden=width)

    def forward(self, tokens: Tensor | None, h: Tensor) -> Tensor:
        """Return channels ``(batch, channels, height, width)`` of the batch, size and type of ``h``, for tokens
        ``(batch, token_size)`` or ``(1, token_size)``."""
        assert tokens is not None
        present = (tokens != 0).any(1).to(h.dtype)[:, None, None, None]
        tokens = tokens.to(h.dtype)
        where = self.where(tokens).reshape(-1, 1, MAP_SIDE, MAP_SIDE)
        where = F.interpolate(where, size=h.shape[2:], mode="bilinear", align_corners=False)
        return (present * self.what(tokens)[:, :, None, None] * where).expand(len(h), -1, -1, -1)


def position_channels(tokens: Tensor | None, h: Tensor) -> Tensor:
    """Return channels ``(batch, 2, height, width)``: a bump at the position, and ones; both zero without a position.

    ``tokens`` are ``(batch, 3)`` or ``(1, 3)``; ``h (batch, channels, height, width)`` gives the shape.
    """
    assert tokens is not None
    tokens = tokens.to(h.dtype)
    x, y, present = tokens.expand(len(h), 3).unbind(1)
    down, right = (((torch.arange(n, device=h.device) + 0.5) / n).to(h.dtype) for n in h.shape[2:])
    distance = (down - y[:, None])[:, :, None] ** 2 + (right - x[:, None])[:, None, :] ** 2
    bump = torch.exp(-0.5 * distance / BUMP_WIDTH**2)
    return present[:, None, None, None] * torch.stack([bump, torch.ones_like(bump)], dim=1)


def token_mlp(size: int, width: int, *, hidden: int | None = None) -> nn.Module:
    inner = hidden or width
    return nn.Sequential(nn.Linear(size, inner), nn.SiLU(), nn.Linear(inner, width))
