"""Convolutions whose gradients have fast gradients on CUDA.

Training an energy differentiates a gradient. torch takes the gradient of a convolution's gradient with respect to its
weights by convolving pictures with filters as large as pictures, for which CUDA has no fast kernels: half the time of a
step of training 64x64 pictures went there. Here every derivative of a convolution is one of three: a convolution, the
gradient with respect to its input, or that with respect to its weights, each of which has a kernel of its own.

Source of the idea: Alias-Free Generative Adversarial Networks (Karras et al., 2021), https://arxiv.org/abs/2106.12423
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function


class _Rule(NamedTuple):
    """How a convolution goes over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool


class Convolution(nn.Conv2d):
    """A convolution with a bias, zero-padded; trained on CUDA by the derivatives of this module."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self, x) if _trained_on_cuda(self, x) else super().forward(x)


class TransposedConvolution(nn.ConvTranspose2d):
    """The same, transposed."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride=stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return convolve(self, x) if _trained_on_cuda(self, x) else super().forward(x, output_size)


def _trained_on_cuda(layer: nn.Module, x: Tensor) -> bool:
    autocast = torch.is_autocast_enabled("cuda")  # which knows torch's own derivatives only
    return x.is_cuda and layer.weight.requires_grad and torch.is_grad_enabled() and not autocast  # type: ignore[union-attr, return-value]


def convolve(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """``layer`` at ``x (batch, channels, height, width)``, of that kind again, with derivatives of this module."""
    assert layer.bias is not None
    assert not isinstance(layer.padding, str)
    rule = _Rule(tuple(layer.stride), tuple(layer.padding), isinstance(layer, nn.ConvTranspose2d))
    return _Forward.apply(x, layer.weight, rule) + layer.bias[:, None, None]


INPUT, WEIGHT = 0, 1
"""What a convolution is differentiated by."""


class _Forward(Function):
    """The convolution, linear in its input and in its weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, rule: _Rule) -> Tensor:
        stride, padding, transposed = rule
        return torch.ops.aten.convolution(x, weight, None, stride, padding, (1, 1), transposed, (0, 0), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, ctx.rule = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 3
        for wanted in (INPUT, WEIGHT):
            if ctx.needs_input_grad[wanted]:
                found[wanted] = _Backward.apply(gradients[0], x, weight, ctx.rule, wanted)
        return tuple(found)


class _Backward(Function):
    """Its gradient with respect to the input or to the weights: linear in that of the output, and in the other one.

    Where a convolution meets what it is differentiated by, its own derivatives meet the direction that they are asked
    for: they are convolutions with that in its place.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, weight: Tensor, rule: _Rule, wanted: int) -> Tensor:
        mask = [index == wanted for index in range(3)]
        stride, padding, transposed = rule
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, [0], stride, padding, (1, 1), transposed, (0, 0), 1, mask
        )[wanted]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        gradient, x, weight, ctx.rule, ctx.wanted = inputs
        ctx.save_for_backward(gradient, weight if ctx.wanted == INPUT else x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient, other = ctx.saved_tensors
        pair = (gradients[0], other) if ctx.wanted == INPUT else (other, gradients[0])
        found: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            found[0] = _Forward.apply(*pair, ctx.rule)
        remaining = WEIGHT if ctx.wanted == INPUT else INPUT
        if ctx.needs_input_grad[1 + remaining]:
            found[1 + remaining] = _Backward.apply(gradient, *pair, ctx.rule, remaining)
        return tuple(found)
