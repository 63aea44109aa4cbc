"""CUDA graphs replay the values of plain calls exactly, to the bit; on the CPU, networks are called directly."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ppl_diffusion import EnergyModel, NoiseSchedule, conjunction
from ppl_diffusion.devices.cuda_graphs import MOST_RECORDINGS, RECORDED, Recorder, _has_hooks, _Recorded, _recording_key
from ppl_diffusion.models.conditions import Classes, Positions
from ppl_diffusion.models.networks import build_network

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="recordings need CUDA")
LEVELS = (0, 7, 19)


class Network(nn.Module):
    """A small network for pictures that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = unet()
        self.calls = 0

    def forward(self, x, log_snr, condition=None):
        self.calls += 1
        return self.inner(x, log_snr, condition)


def unet() -> nn.Module:
    return build_network("unet", shape=[3, 8, 8], widths=[8, 8], blocks=1, positions=True)


def model(device: str = "cuda", form: str = "squared_norm", most: int = RECORDED) -> EnergyModel:
    return (
        EnergyModel(
            Network(),
            form=form,
            schedule=NoiseSchedule.cosine(20),
            event_shape=(3, 8, 8),
            conditions=Positions(0.1, 0.9),
            name="small",
        )
        .to(device)
        .record_calls(largest=most)
    )


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
    for base in (copy.deepcopy(model("cpu", most=7)), pickle.loads(pickle.dumps(model("cpu", most=7)))):
        assert base.chunks.launch.network is base.network
        assert base.chunks.launch.most == 7


def test_networks_of_others_are_recorded_if_asked_for():
    own = {"form": "squared_norm", "schedule": NoiseSchedule.cosine(20), "event_shape": (3, 8, 8)}
    assert EnergyModel(unet(), conditions=Positions(0.1, 0.9), **own).chunks.launch.most == RECORDED
    other = EnergyModel(Network(), conditions=Classes(3), **own)
    assert other.chunks.launch.most == 0
    one = other.given(1)
    assert other.record_calls() is other
    assert one.chunks.launch.most == RECORDED, "of all conditions"
    assert one.record_calls(False).chunks.launch.most == other.chunks.launch.most == 0


def test_what_a_recording_takes_for_granted_is_told_apart():
    """The key of a recording changes with whatever a CUDA graph has fixed; on the CPU the key is built alike."""
    network = unet()
    x = torch.zeros(2, 3, 8, 8)
    keys = [_recording_key(tuple(network.modules()), [x])]

    def changed() -> bool:
        keys.append(_recording_key(tuple(network.modules()), [x]))
        return keys[-1] not in keys[:-1]

    with torch.no_grad():
        network.enter.weight.mul_(2)
    assert not changed()
    assert not changed()
    network.middle.first.weight.data = network.middle.first.weight.data[:2]
    assert changed()
    network.half()
    assert changed()
    network.middle.norm = nn.Identity()
    assert changed()
    network.middle.eval()
    assert changed()
    assert _recording_key(tuple(network.modules()), [x[:1]]) not in keys
    assert not _has_hooks(tuple(network.modules()))
    network.middle.second.register_full_backward_hook(lambda *given: None)
    assert _has_hooks(tuple(network.modules()))


@cuda
@pytest.mark.parametrize("form", ["squared_distance", "squared_norm", "inner_product"])
def test_replays_are_the_same_to_the_last_bit(form):
    base, plain = model(form=form), model(form=form, most=0)
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
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_call_is_recorded_by_a_thread_that_has_made_it_before(layout):
    """Callbacks of JAX come from a pool of threads; a recording must not set up CUDA's libraries for a new one."""
    base, plain = model(), model(most=0)
    base.network.to(memory_format=layout)
    plain.network.to(memory_format=layout)
    x, found = points(3), []
    pools = [ThreadPoolExecutor(1) for _ in range(3)]
    for pool in (*pools, pools[1], pools[2], pools[0]):
        same(
            pool.submit(two(base).value_and_grad, x, level=3).result(),
            two(plain).value_and_grad(x, level=3),
        )
        found += recorded(base)
    assert found == [False] * 3 + [True] * 3


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
    base, plain = model(), model(most=0)
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
def test_networks_with_hooks_are_called():
    base, seen = model(), []
    for _ in range(3):
        base.value_and_grad(points(3), level=3)
    assert recorded(base) == [True]
    handle = base.network.inner.middle.register_forward_hook(lambda *given: seen.append(1))
    for _ in range(4):
        base.value_and_grad(points(3), level=3)
    assert len(seen) == 4
    handle.remove()
    base.value_and_grad(points(3), level=3)
    assert len(seen) == 4


@cuda
def test_a_parametrisation_is_heeded():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    base, plain = model(), model(most=0)
    for _ in range(3):
        base.value_and_grad(points(3), level=3)
    for network in (base.network, plain.network):
        parametrize.register_parametrization(network.inner.enter, "weight", Twice())
    for _ in range(3):
        same(base.value_and_grad(points(3), level=3), plain.value_and_grad(points(3), level=3))


@cuda
def test_what_cannot_be_recorded_is_told():
    """In a separate process, because a failed capture may leave CUDA unusable."""
    code = """
import torch
from ppl_diffusion.devices.cuda_graphs import RECORDED, Recorder
network = torch.nn.Linear(2, 2).cuda()
def reads(x):
    return (network(x) * float(x.sum()),)
launch, x = Recorder(network, most=RECORDED), torch.ones(3, 2, device="cuda")
launch(reads, x, kind=1)
try:
    launch(reads, x, kind=1)
except RuntimeError as error:
    assert "cannot be recorded" in str(error) and "most = 0" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@cuda
def test_large_batches_and_old_ones_are_let_go():
    base = model()
    base.record_calls(largest=3 * 3 * 64)
    for _ in range(3):
        base.value_and_grad(points(4), level=3)
    assert recorded(base) == []
    base.record_calls(largest=10**6)
    for n in range(1, MOST_RECORDINGS + 3):
        base.value_and_grad(points(n), level=3)
    assert len(base.chunks.launch._known) == MOST_RECORDINGS
    base.chunks.launch.clear()
    assert recorded(base) == []
    for n in (1, 1, *range(2, MOST_RECORDINGS + 3), 1, 1):  # the only recording is dropped, and its memory with it
        base.value_and_grad(points(n), level=3)
    assert recorded(base)[-1]


@cuda
def test_generators_go_on():
    """Random numbers drawn during a replay equal those of plain calls."""
    network = nn.Linear(2, 2).to("cuda")
    generator = torch.Generator("cuda")
    launch = Recorder(network, [generator], most=RECORDED)

    def noisy(x):
        return (network(x).detach() + torch.randn(x.shape, generator=generator, device="cuda"),)

    x = torch.zeros(4, 2, device="cuda")
    for seed in range(4):
        generator.manual_seed(seed)
        expected = [noisy(x)[0], noisy(x)[0]]
        generator.manual_seed(seed)
        same([launch(noisy, x, kind=0)[0] for _ in range(2)], expected)
