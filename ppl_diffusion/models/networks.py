"""Networks inside an energy: vector fields s(x, log-SNR, condition).

Sampling an energy model needs the gradient of its energy, and training needs the second derivative. The networks here
are therefore smooth (SiLU throughout) and have no attention (fused attention has no second derivative). The weights of
their last layer start small but not zero, so that training starts near a Gaussian. The noise level enters through
sines and cosines of the log signal-to-noise ratio, which vary smoothly from level to level. Conditions are tokens
(``ppl_diffusion.models.conditions``): class labels are embedded; the position of an object is drawn as a Gaussian bump
into additional input channels, so that convolutions see it at its place in the picture; tokens that are vectors of
numbers enter as the noise level does, and if asked for as input channels that say what is where. A classifier is built
of the same blocks; labels are what it returns.

Source of the U-Net: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020),
https://arxiv.org/abs/2006.11239; of its pixel shuffling: Shi et al., 2016, https://arxiv.org/abs/1609.05158
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import on_cpu
from ..devices.convolution import Convolution, TransposedConvolution
from .drawing import TokenMap, position_channels, token_mlp

INITIAL_SCALE = 0.1
"""Factor on the initial weights of the last layer of a network or of a residual convolution block."""

GROUPS = 8
"""Groups of features that are normalised together."""


class LevelEmbedding(nn.Module):
    """Features ``(batch, width)`` of the log-SNR ``(batch,)``, with those of a label ``(batch,)`` where there are
    classes, or of a token ``(batch, token_size)``.

    Either argument may have length 1 instead, which broadcasts.
    """

    frequencies: Tensor

    def __init__(self, width: int, *, classes: int, token_size: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-2, 0, width // 4, dtype=torch.float32), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * (width // 4), width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.tokens = token_mlp(token_size, width) if token_size else None

    def forward(self, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        features = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.labels is not None:
            features = features + self.labels(condition)
        if self.tokens is not None:
            assert condition is not None
            features = features + self.tokens(condition.to(features.dtype))
        return F.silu(features)


class EnergyMLP(nn.Module):
    """A residual multilayer perceptron for points of a few dimensions.

    Args:
        size: dimensions of a point.
        width: features of the residual stream.
        hidden: features inside a block.
        blocks: number of residual blocks.
        octaves: number of Fourier frequencies of each coordinate: 1, 2, 4, ... radians per unit.
        classes: number of class labels, 0 for none.
        token_size: numbers of a token, for conditions that are vectors; 0 for none.
    """

    octaves: Tensor

    def __init__(
        self,
        size: int,
        *,
        width: int = 128,
        hidden: int = 256,
        blocks: int = 4,
        octaves: int = 5,
        classes: int = 0,
        token_size: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("octaves", 2.0 ** torch.arange(octaves, dtype=torch.float32), persistent=False)
        self.enter = nn.Linear(size * (1 + 2 * octaves), width)
        self.embedding = LevelEmbedding(width, classes=classes, token_size=token_size)
        self.into = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * hidden) for _ in range(blocks))
        self.out_of = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.head = _scaled_down(nn.Linear(width, size))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return ``s``, of the shape of ``x (batch, size)``; see :class:`LevelEmbedding` for the other arguments."""
        angles = (x[:, :, None] * self.octaves).flatten(1)
        h = self.enter(torch.cat([x, angles.sin(), angles.cos()], dim=1))
        level = self.embedding(log_snr, condition)
        for into, modulate, out_of in zip(self.into, self.modulate, self.out_of, strict=True):
            scale, shift = modulate(level).chunk(2, dim=1)
            h = h + out_of(F.silu(into(F.silu(h)) * (1 + scale) + shift))
        return self.head(F.silu(h))


class EnergyUNet(nn.Module):
    """A small U-Net for images, whose finest convolutions run at half the resolution of the image.

    Args:
        shape: (channels, height, width) of an image; both sides divisible by ``2 ** len(widths)``.
        widths: features at half resolution, at a quarter, and so on; multiples of 8.
        blocks: residual blocks at each resolution, on the way down and on the way up.
        classes: number of class labels, 0 for none.
        positions: whether conditions are positions ``(x, y, 1)`` in the picture; ``(0, 0, 0)`` is no condition.
        token_size: numbers of a token, for other conditions that are vectors; 0 for none.
        token_map: input channels into which a token is drawn, see :class:`TokenMap`; 0 for none.

    Raises:
        ValueError: ``shape`` has not three numbers; a side is not divisible by ``2 ** len(widths)``, or a width not by
            8; or ``token_map`` without ``token_size``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = (64, 96),
        blocks: int = 2,
        classes: int = 0,
        positions: bool = False,
        token_size: int = 0,
        token_map: int = 0,
    ) -> None:
        super().__init__()
        _check_image(shape, widths)
        if token_map and not token_size:
            raise ValueError("token_map draws tokens that are vectors of numbers: give token_size=, or leave it out")
        channels, self.positions = shape[0], positions
        features = 2 * widths[0]
        self.embedding = LevelEmbedding(features, classes=classes, token_size=token_size)
        self.map = TokenMap(token_size, token_map) if token_map else None
        self.enter = Convolution(4 * channels + 2 * positions + token_map, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.ModuleList(_Block(w, features) for _ in range(blocks)) for w in widths)
        self.shrink = nn.ModuleList(Convolution(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = _Block(widths[-1], features)
        self.grow = nn.ModuleList(TransposedConvolution(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(Convolution(2 * w, w, 1) for w in widths)
        self.up = nn.ModuleList(nn.ModuleList(_Block(w, features) for _ in range(blocks)) for w in widths)
        self.head = _scaled_down(Convolution(widths[0], 4 * channels, 3, padding=1))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return ``s``, of the shape of ``x (batch, channels, height, width)``; positions are tokens ``(batch, 3)``."""
        level = self.embedding(log_snr, condition)
        h = F.pixel_unshuffle(x, 2)
        if self.positions:
            h = torch.cat([h, position_channels(condition, h)], dim=1)
        if self.map is not None:
            h = torch.cat([h, self.map(condition, h)], dim=1)
        h = self.enter(h)
        skips = []
        for i, stage in enumerate(self.down):
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, level)
            skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        h = self.middle(h, level)
        for i in reversed(range(len(self.up))):
            h = self.join[i](torch.cat([h, skips[i]], dim=1))
            for block in self.up[i]:  # type: ignore[attr-defined]
                h = block(h, level)
            if i > 0:
                h = self.grow[i - 1](h)
        return F.pixel_shuffle(self.head(F.silu(h)), 2)


class ClassifierCNN(nn.Module):
    """A small classifier of noised images, whose first convolutions run at half the resolution of the image.

    Args:
        shape: (channels, height, width) of an image; both sides divisible by ``2 ** len(widths)``.
        widths: features at half resolution, at a quarter, and so on; multiples of 8.
        blocks: residual blocks at each resolution.
        classes: number of class labels, at least two.

    Raises:
        ValueError: as of :class:`EnergyUNet`; fewer than two classes.
    """

    def __init__(
        self, shape: Sequence[int], *, widths: Sequence[int] = (32, 64), blocks: int = 1, classes: int
    ) -> None:
        super().__init__()
        _check_image(shape, widths)
        if classes < 2:
            raise ValueError(f"a classifier has at least two classes, got {classes}: give labels")
        features = 2 * widths[0]
        self.embedding = LevelEmbedding(features, classes=0)
        self.enter = Convolution(4 * shape[0], widths[0], 3, padding=1)
        self.stages = nn.ModuleList(nn.ModuleList(_Block(w, features) for _ in range(blocks)) for w in widths)
        self.shrink = nn.ModuleList(Convolution(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.norm = nn.GroupNorm(GROUPS, widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits ``(batch, classes)`` of ``x (batch, channels, height, width)``; ``condition`` is ignored."""
        level = self.embedding(log_snr, None)
        h = self.enter(F.pixel_unshuffle(x, 2))
        for i, stage in enumerate(self.stages):
            h = self.shrink[i - 1](h) if i else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, level)
        return self.head(F.silu(self.norm(h)).mean((2, 3)))


class _Block(nn.Module):
    """Residual block: group norm, convolution, scale and shift by the level features, convolution."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.first = Convolution(width, width, 3, padding=1)
        self.modulate = nn.Linear(features, 2 * width)
        self.second = _scaled_down(Convolution(width, width, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulate(level)[:, :, None, None].chunk(2, dim=1)
        h = self.first(F.silu(self.norm(x)))
        return x + self.second(F.silu(h * (1 + scale) + shift))


def is_conditional(network: nn.Module) -> bool:
    """Whether a network is one of this library with conditions, which it cannot be evaluated without."""
    if isinstance(network, ClassifierCNN):
        return True
    if not isinstance(network, (EnergyMLP, EnergyUNet)):
        return False
    embedded = network.embedding.labels is not None or network.embedding.tokens is not None
    return embedded or (isinstance(network, EnergyUNet) and network.positions)


@on_cpu()
def build_network(kind: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Build a network, "mlp", "unet" or "cnn", from its constructor's arguments, as weight files store them.

    The initial weights are drawn from ``seed``; torch's global generator is not changed. They are in single precision,
    whatever torch's default is.

    Raises:
        ValueError: an unknown kind, or arguments that its constructor does not accept.
    """
    kinds: dict[str, type[nn.Module]] = {"mlp": EnergyMLP, "unet": EnergyUNet, "cnn": ClassifierCNN}
    if kind not in kinds:
        raise ValueError(f"unknown network {kind!r}: use one of {', '.join(kinds)}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return kinds[kind](**options).float()
    except TypeError as error:
        raise ValueError(f"network {kind!r} cannot be built from {options}: {error}") from error


def _check_image(shape: Sequence[int], widths: Sequence[int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"shape is (channels, height, width), got {list(shape)}: gray pictures have one channel")
    _, height, width = shape
    if height % 2 ** len(widths) or width % 2 ** len(widths):
        raise ValueError(f"sides {height}x{width} must be divisible by {2 ** len(widths)} for {len(widths)} widths")
    if not widths or any(width % GROUPS for width in widths):
        raise ValueError(f"widths must be multiples of {GROUPS}, which are normalised together, got {list(widths)}")


def _scaled_down(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(INITIAL_SCALE)
    return layer
