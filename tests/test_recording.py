"""What is recorded on CUDA gives the values of plain calls, to the last bit; elsewhere calls are plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ppl_diffusion import EnergyModel, NoiseSchedule, conjunction
from ppl_diffusion.condition import Positions
from ppl_diffusion.networks import build_network
from ppl_diffusion.recording import KEPT, Recorder, _Recorded

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="recordings need CUDA")
LEVELS = (0, 7, 19)


class Network(nn.Module):
    """A small one for pictures, which counts its calls and can be told to read a value back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network("unet", shape=[3, 8, 8], widths=[8, 8], blocks=1, positions=True)
        self.reads, self.calls = False, 0

    def forward(self, x, log_snr, condition=None):
        self.calls += 1
        if self.reads:
            float(log_snr[0])
        return self.inner(x, log_snr, condition)


def model(device: str = "cuda", form: str = "squared_norm") -> EnergyModel:
    return EnergyModel(
        Network(),
        form=form,
        schedule=NoiseSchedule.cosine(20),
        event_shape=(3, 8, 8),
        conditions=Positions(0.1, 0.9),
        name="small",
    ).to(device)


def points(count: int, seed: int = 0, device: str = "cuda") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(device)


def two(base: EnergyModel, shift: float = 0.0):
    return conjunction([base.given(x=0.3 + shift, y=0.4), base.given(x=0.7, y=0.6)], base)


def recorded(base: EnergyModel) -> list[bool]:
    return [isinstance(found, _Recorded) for found in base.chunks.launch._known.values()]


def same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_on_a_processor_functions_are_called():
    base = model("cpu")
    for calls in (1, 2, 3):
        base.value_and_grad(points(2, device="cpu"), level=3)
        assert base.network.calls == calls
    assert not base.chunks.launch._known


def test_a_recorder_is_copied_with_its_network():
    base = copy.deepcopy(model("cpu"))
    assert base.chunks.launch.network is base.network


@cuda
@pytest.mark.parametrize("form", ["squared_distance", "squared_norm", "inner_product"])
def test_replays_are_the_same_to_the_last_bit(form):
    base, plain = model(form=form), model(form=form)
    plain.chunks.launch.most = 0
    for turn in range(4):  # plain, recorded and replayed, replayed with other points, positions and levels
        for level in LEVELS:
            x = points(5, seed=turn)
            same(
                two(base, 0.1 * turn).value_and_grad(x, level=level),
                two(plain, 0.1 * turn).value_and_grad(x, level=level),
            )
    assert recorded(base) == [True]
    assert base.network.calls == 2
    assert plain.network.calls == 12


@cuda
def test_results_stay_what_they_were_when_others_follow():
    base = model()
    results = [two(base).value_and_grad(points(n, seed=s), level=3) for s in range(4) for n in (2, 5)]
    again = [two(base).value_and_grad(points(n, seed=s), level=3) for s in range(4) for n in (2, 5)]
    for one, other in zip(results, again, strict=True):
        same(one, other)
    assert recorded(base) == [True, True]


@cuda
def test_a_recording_follows_its_parameters():
    base, plain = model(), model()
    plain.chunks.launch.most = 0
    x = points(3)

    def agree() -> None:
        for _ in range(3):
            same(base.value_and_grad(x, level=3), plain.value_and_grad(x, level=3))

    agree()
    for change in (
        lambda p: p.mul_(1.1),  # in place
        lambda p: p.data.copy_(p.data.flip(0)),
    ):
        for network in (base.network, plain.network):
            with torch.no_grad():
                for parameter in network.parameters():
                    change(parameter)
        agree()
    assert recorded(base) == [True]
    for convert in (
        lambda network: network.to(memory_format=torch.channels_last),
        lambda network: network.half(),
        lambda network: network.float(),
        lambda network: network.double(),
    ):
        convert(base.network)
        convert(plain.network)
        agree()


@cuda
def test_switches_of_precision_are_heeded():
    base, products = model(), torch.backends.cuda.matmul
    x, before = points(3), products.allow_tf32
    try:
        for asked in (False, True, False, True):
            products.allow_tf32 = asked
            base.value_and_grad(x, level=3)
            base.value_and_grad(x, level=3)
    finally:
        products.allow_tf32 = before
    assert recorded(base) == [True, True]


@cuda
def test_what_cannot_be_recorded_is_called():
    base, plain = model(), model()
    base.network.reads = plain.network.reads = True
    plain.chunks.launch.most = 0
    stream = torch.cuda.current_stream()
    for turn in range(4):
        same(base.value_and_grad(points(3, turn), level=3), plain.value_and_grad(points(3, turn), level=3))
    assert torch.cuda.current_stream() == stream
    assert recorded(base) == [False]
    hooked = model()
    seen = []
    hooked.network.inner.register_forward_hook(lambda *given: seen.append(1))
    for _ in range(4):
        hooked.value_and_grad(points(3), level=3)
    assert len(seen) == 4


@cuda
def test_large_batches_and_old_ones_are_let_go():
    base = model()
    base.chunks.launch.most = 3 * 3 * 64
    for _ in range(3):
        base.value_and_grad(points(4), level=3)
    assert recorded(base) == []
    base.chunks.launch.most = 10**6
    for n in range(1, KEPT + 3):
        base.value_and_grad(points(n), level=3)
    assert len(base.chunks.launch._known) == KEPT
    base.chunks.launch.clear()
    assert recorded(base) == []


@cuda
def test_generators_go_on():
    """What is drawn inside a recording is what plain calls draw."""
    network = nn.Linear(2, 2).to("cuda")
    generator = torch.Generator("cuda")
    launch = Recorder(network, [generator])

    def noisy(x):
        return (network(x).detach() + torch.randn(x.shape, generator=generator, device="cuda"),)

    x = torch.zeros(4, 2, device="cuda")
    for seed in range(4):
        generator.manual_seed(seed)
        expected = [noisy(x)[0], noisy(x)[0]]
        generator.manual_seed(seed)
        same([launch(noisy, x)[0], launch(noisy, x)[0]], expected)
