"""Convolutions with fast second derivatives on CUDA.

Training an energy model differentiates a gradient. For the second derivative with respect to the weights, torch
convolves pictures with filters as large as pictures, for which CUDA has no fast kernels: this took half the time of a
training step on 64x64 pictures. Here a derivative of any order is computed by one of three operations, each with a
fast kernel: the convolution, its gradient with respect to the input, and its gradient with respect to the weights.

Source of the idea: Alias-Free Generative Adversarial Networks (Karras et al., 2021), https://arxiv.org/abs/2106.12423
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function


class _Rule(NamedTuple):
    """Geometry of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` with bias and zero padding, which is differentiated by this module while it is trained on CUDA."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self, x) if _trained_on_cuda(self, x) else super().forward(x)


class TransposedConvolution(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with bias, which is differentiated by this module while it is trained on CUDA."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride=stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return convolve(self, x) if _trained_on_cuda(self, x) else super().forward(x, output_size)


def _trained_on_cuda(layer: nn.Module, x: Tensor) -> bool:
    autocast = torch.is_autocast_enabled("cuda")  # handles the derivatives of torch's own operators only
    return x.is_cuda and layer.weight.requires_grad and torch.is_grad_enabled() and not autocast  # type: ignore[union-attr, return-value]


def convolve(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply ``layer`` to ``x (batch, channels, height, width)``, with the derivatives of this module.

    The result has the shape ``(batch, out_channels, new height, new width)``.
    """
    assert layer.bias is not None
    assert not isinstance(layer.padding, str)
    rule = _Rule(tuple(layer.stride), tuple(layer.padding), isinstance(layer, nn.ConvTranspose2d))
    return _Forward.apply(x, layer.weight, rule) + layer.bias[:, None, None]


INPUT, WEIGHT = 0, 1
"""Index of the argument that a convolution is differentiated by."""


class _Forward(Function):
    """The convolution ``C(x, w)``, without bias; bilinear in the input ``x`` and the weights ``w``."""

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
        result: list[Tensor | None] = [None] * 3
        for argument in (INPUT, WEIGHT):
            if ctx.needs_input_grad[argument]:
                result[argument] = _Backward.apply(gradients[0], x, weight, ctx.rule, argument)
        return tuple(result)


class _Backward(Function):
    """The gradient of ``<g, C(x, w)>`` with respect to ``x`` or ``w``, ``g`` being the gradient of the output.

    It is bilinear in ``g`` and in the other argument. Its own backward pass, for a direction ``v`` of the shape of the
    result, is that of ``<g, C(v, w)>`` or ``<g, C(x, v)>``: ``v`` takes the place of the argument differentiated by.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, weight: Tensor, rule: _Rule, argument: int) -> Tensor:
        mask = [index == argument for index in range(3)]
        stride, padding, transposed = rule
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, [0], stride, padding, (1, 1), transposed, (0, 0), 1, mask
        )[argument]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        gradient, x, weight, ctx.rule, ctx.argument = inputs
        ctx.save_for_backward(gradient, weight if ctx.argument == INPUT else x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient, other = ctx.saved_tensors
        pair = (gradients[0], other) if ctx.argument == INPUT else (other, gradients[0])
        result: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            result[0] = _Forward.apply(*pair, ctx.rule)
        remaining = WEIGHT if ctx.argument == INPUT else INPUT
        if ctx.needs_input_grad[1 + remaining]:
            result[1 + remaining] = _Backward.apply(gradient, *pair, ctx.rule, remaining)
        return tuple(result)
