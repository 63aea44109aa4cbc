"""Convolutions for training on CUDA: their derivatives of every order equal those of torch's convolutions."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ppl_diffusion import NoiseSchedule
from ppl_diffusion.devices import convolution
from ppl_diffusion.devices.convolution import Convolution, TransposedConvolution, convolve
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.training.objective import denoising_loss

LAYERS = {
    "3x3": lambda: Convolution(2, 3, 3, padding=1),
    "1x1": lambda: Convolution(3, 2, 1),
    "halving": lambda: Convolution(2, 3, 2, stride=2),
    "doubling": lambda: TransposedConvolution(3, 2, 2, stride=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_right(name):
    """First and second derivatives against finite differences; both of torch's checks fail for a wrong factor."""
    layer, x, call = asked(name)
    torch.testing.assert_close(convolve(layer, x), layer(x))
    assert gradcheck(call, (x, layer.weight, layer.bias))
    assert gradgradcheck(call, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("name", LAYERS)
def test_a_wrong_second_derivative_is_rejected(monkeypatch, name):
    """Negative control: second derivatives that are off by one per cent."""
    right = convolution._Backward

    class Wrong(right):
        @staticmethod
        def backward(ctx, *gradients):
            return tuple(None if found is None else 1.01 * found for found in right.backward(ctx, *gradients))

    monkeypatch.setattr(convolution, "_Backward", Wrong)
    layer, x, call = asked(name)
    assert gradcheck(call, (x, layer.weight, layer.bias))
    assert not gradgradcheck(call, (x, layer.weight, layer.bias), raise_exception=False)


def asked(name):
    """Return a layer, points, and the layer's values as a function of points and parameters."""
    layer = LAYERS[name]().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, layer.in_channels, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(Called(layer), {"layer.weight": weight, "layer.bias": bias}, x)

    return layer, x, call


class Called(torch.nn.Module):
    """A layer evaluated by ``convolve``, whose derivatives are tested."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return convolve(self.layer, x)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
    ],
)
def test_a_network_is_trained_alike(monkeypatch, device):
    """Gradients with respect to all parameters of a loss that contains a gradient."""
    network = build_network("unet", shape=[1, 8, 8], widths=[8, 16], blocks=1).double().to(device)
    clean = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)

    def gradients(here: bool) -> tuple[torch.Tensor, ...]:
        with monkeypatch.context() as patched:
            patched.setattr(convolution, "_trained_on_cuda", lambda layer, x: here)
            generator = torch.Generator(device).manual_seed(1)
            loss = denoising_loss(network, "squared_norm", NoiseSchedule.cosine(20), clean, generator=generator)
            return torch.autograd.grad(loss, list(network.parameters()))

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected)


def test_elsewhere_layers_are_torchs_own(monkeypatch):
    def never(*given):
        raise AssertionError

    monkeypatch.setattr(convolution, "convolve", never)
    network = build_network("unet", shape=[1, 8, 8], widths=[8, 16], blocks=1)
    network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).sum().backward()
