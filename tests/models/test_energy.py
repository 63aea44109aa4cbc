"""Networks as potentials: the sign and scale laws, gradients, conditions, precision, and the zoo."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bridges.blackjax import HMC
from ppl_diffusion import (
    EnergyFunction,
    EnergyModel,
    Ladder,
    NoiseSchedule,
    anneal,
    conjunction,
    load,
    mixture,
    save_weights,
    tapestry,
)
from ppl_diffusion.devices.chunks import precise
from ppl_diffusion.models.conditions import Classes, ConditionWarning, Positions, dump, parse
from ppl_diffusion.models.forms import DENSITIES, noise_potential
from ppl_diffusion.models.library import cards, names
from ppl_diffusion.models.networks import EnergyMLP, EnergyUNet, LevelEmbedding, build_network
from ppl_diffusion.potentials.evaluation import evaluate_each
from ppl_diffusion.potentials.planar import NAMES, exact
from ppl_diffusion.training.objective import denoising_loss

SCHEDULE = NoiseSchedule.cosine(20)
FORMS = DENSITIES


def mlp(classes=0, form="squared_norm", seed=0):
    torch.manual_seed(seed)
    network = EnergyMLP(2, width=16, hidden=16, blocks=2, classes=classes)
    return EnergyModel(
        network.double(),
        form=form,
        schedule=SCHEDULE,
        event_shape=(2,),
        conditions=Classes(classes),
        reference=([0.1, -0.2], [0.5, 0.3]),
    )


def pictures():
    torch.manual_seed(0)
    network = EnergyUNet((3, 8, 8), widths=(8, 16), blocks=1, positions=True)
    return EnergyModel(
        network.double(),
        form="squared_norm",
        schedule=SCHEDULE,
        event_shape=(3, 8, 8),
        conditions=Positions(0.2, 0.8),
        name="pictures",
    )


def points(count=8, event=(2,)):
    return torch.randn(count, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", [0, 7, 19])
def test_gradients_are_those_of_the_energy(form, level):
    model, x = mlp(form=form), points()
    value, gradient = model.value_and_grad(x, level=level)
    torch.testing.assert_close(value, model.energy(x, level=level), rtol=1e-10, atol=1e-10)
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-6
        slope = (model.energy(x + step, level=level) - model.energy(x - step, level=level)) / 2e-6
        torch.testing.assert_close(slope, gradient[:, i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_energy_is_the_noise_potential_over_sigma(form):
    """The scale law: eps = grad f, U = f / sigma."""
    model, x = mlp(form=form), points().requires_grad_()
    f = noise_potential(model.network, form, SCHEDULE, x, torch.tensor([7]), None, model.reference)
    (noise,) = torch.autograd.grad(f.sum(), x)
    value, gradient = model.value_and_grad(x.detach(), level=7)
    torch.testing.assert_close(value * SCHEDULE.sigma(7), f.detach())
    torch.testing.assert_close(gradient * SCHEDULE.sigma(7), noise)


@pytest.mark.parametrize("form", ["squared_norm", "inner_product"])
def test_without_a_network_the_energy_is_the_noised_reference(form):
    model = mlp(form=form)
    with torch.no_grad():
        for parameter in model.network.head.parameters():
            parameter.zero_()
    for level in (0, 10, 19):
        alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
        mean, variance = alpha * torch.tensor([0.1, -0.2]), alpha**2 * torch.tensor([0.5, 0.3]) + sigma**2
        expected = (0.5 * (points() - mean) ** 2 / variance).sum(1)
        torch.testing.assert_close(model.energy(points(), level=level), expected, rtol=1e-6, atol=1e-6)


def test_the_loss_is_least_for_the_exact_score():
    """For Gaussian data the reference energy is exact: the loss is minimal, and any network output increases it."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.7 * torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    nothing, something = mlp(seed=1).network, mlp(seed=1).network
    with torch.no_grad():
        for parameter in nothing.head.parameters():
            parameter.zero_()
    losses = [
        float(
            denoising_loss(
                network,
                "squared_norm",
                SCHEDULE,
                clean,
                reference=(0.0, 0.49),
                generator=torch.Generator().manual_seed(1),
            ).detach()
        )
        for network in (nothing, something)
    ]
    sigma2 = np.array(SCHEDULE.sigmas) ** 2
    irreducible = np.mean(1 - sigma2 / (0.49 * np.array(SCHEDULE.alphas) ** 2 + sigma2))
    assert losses[0] == pytest.approx(irreducible, rel=0.03)
    assert losses[1] > losses[0]


def test_conditions_are_the_labels_of_the_network():
    model = mlp(classes=3)
    x = points()
    different = [model.given(i).energy(x, level=4) for i in range(3)] + [model.energy(x, level=4)]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert not torch.allclose(one, other)
    torch.testing.assert_close(model.given(2).given(1).energy(x, level=4), different[1])
    assert str(model.given(1)) == "model[1]"


def test_a_position_is_a_condition_that_the_network_finds_in_the_picture():
    model = pictures()
    seen = []
    model.network.enter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, -2:]))
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    energies = [m.energy(x, level=4) for m in (model, model.given(x=0.375, y=0.625))]
    assert energies[0] != energies[1]
    assert (seen[0] == 0).all()
    assert (seen[1][1] == 1).all()
    assert seen[1][0].argmax() == 2 * 4 + 1, "x to the right, y down, at half resolution"
    assert seen[1][0].max() == 1
    assert str(model.given(x=0.25, y=0.75)) == "pictures[0.25, 0.75]"
    with pytest.warns(ConditionWarning, match=r"from 0\.2 to 0\.8") as caught:
        model.given(x=0.05, y=0.5)
    assert caught[0].filename == __file__
    model.given(x=0.199, y=0.8)  # within the precision to which the bounds are printed: no warning
    assert parse(dump(Positions(0, 1))) == Positions(0.0, 1.0)


def test_positions_of_one_network_are_one_call():
    model = pictures()
    parts = [model.given(x=0.3, y=0.4), model.given(x=0.7, y=0.6), model]
    x, rows = points(5, (3, 8, 8)), []
    model.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    together = conjunction(parts[:2], parts[2]).value_and_grad(x, level=3)
    assert rows == [15]
    for i in (0, 1):
        alone = [part.value_and_grad(x, level=3)[i] for part in parts]
        torch.testing.assert_close(together[i], alone[0] + alone[1] - alone[2])


def test_one_network_in_two_energies_is_evaluated_as_both():
    """Only conditions of one energy share a call: another form or reference makes a different energy."""
    one = mlp()
    parts = [one]
    for form, reference in (("inner_product", one.reference), ("squared_norm", (5.0, 0.1))):
        parts.append(EnergyModel(one.network, form=form, schedule=SCHEDULE, event_shape=(2,), reference=reference))
    x = torch.randn(3, 2, dtype=torch.float64)
    apart = sum(part.energy(x, level=3) for part in parts)
    torch.testing.assert_close((parts[0] * parts[1] * parts[2]).energy(x, level=3), apart)


def test_convolutions_on_cuda_are_alike_every_time():
    """The caller's cuDNN settings are restored; they can be tested on a machine without CUDA."""
    convolutions = torch.backends.cudnn
    before = convolutions.deterministic, convolutions.benchmark
    for asked in (True, False):
        convolutions.deterministic, convolutions.benchmark = not asked, asked
        try:
            with precise(torch.device("cuda")):
                assert (convolutions.deterministic, convolutions.benchmark) == (True, False)
            assert (convolutions.deterministic, convolutions.benchmark) == (not asked, asked)
        finally:
            convolutions.deterministic, convolutions.benchmark = before


def test_convolutions_are_not_rounded_unless_asked_for():
    """TF32 is disabled on CUDA; the settings can be tested on a machine without CUDA."""
    cuda, convolutions, products = torch.device("cuda"), torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32, products.allow_tf32 = True, False
        with precise(cuda):
            assert not convolutions.allow_tf32
        assert convolutions.allow_tf32
        with precise(torch.device("cpu")):
            assert convolutions.allow_tf32
        products.allow_tf32 = True
        with precise(cuda):
            assert convolutions.allow_tf32
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


@pytest.mark.long
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has only the older switches")
@pytest.mark.parametrize(
    ("switch", "value"),
    [("cudnn.conv.fp32_precision", "tf32"), ("cudnn.rnn.fp32_precision", "ieee"), ("fp32_precision", "tf32")],
)
def test_torchs_newer_switches_are_heeded_too(switch, value):
    """In a separate process, because after setting the newer switches torch refuses to read the older ones."""
    code = f"""
import torch
from ppl_diffusion import load
from ppl_diffusion.devices.chunks import precise
torch.backends.{switch} = "{value}"
load("ring").energy(torch.zeros(1, 2), level=0)
convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
with precise(torch.device("cuda")):
    assert (convolutions.fp32_precision == "tf32") == (products.fp32_precision == "tf32")
assert convolutions.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_level_that_is_a_tensor_is_nan_outside_the_schedule():
    """A level in GPU memory need not be copied to the host to be checked."""
    model, x = mlp(), points()
    assert model.level_arrays
    for level, there in ((-1, False), (0, True), (19, True), (20, False)):
        ((energy, gradient),) = model.evaluate_group([model], [x], torch.tensor([level]))
        assert energy.isnan().all() != there
        assert gradient.isnan().all() != there
        if there:
            expected = model.value_and_grad(x, level=level)
            assert torch.equal(energy, expected[0])
            assert torch.equal(gradient, expected[1])


def test_expressions_of_networks_take_a_level_that_is_a_tensor():
    """An expression takes a level tensor if all of its leaves do."""
    model, x = pictures(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, two = model.given(x=0.25, y=0.75), model.given(x=0.5, y=0.5)
    expressions = [one * two, conjunction([one, two], model), mixture([one, two * model]), 2.0 * one]
    expressions += [tapestry([one, two], (3, 8, 8), [(0, 0), (0, 0)])]
    for target in expressions:
        assert target.level_arrays
        ((energy, gradient),) = evaluate_each([target], [x], torch.tensor([3]))
        expected = target.value_and_grad(x, level=3)
        assert torch.equal(energy, expected[0])
        assert torch.equal(gradient, expected[1])
    plain = EnergyFunction(
        lambda x, level: (x**2).sum((1, 2, 3)), schedule=model.schedule, event_shape=(3, 8, 8), backend="torch"
    )
    assert not (plain * one).level_arrays


def test_threads_share_the_switches_of_exact_convolutions():
    """The first context to be entered sets the switches, the last one to be left restores them."""
    switches, cuda = torch.backends.cudnn, torch.device("cuda")
    before = switches.deterministic
    first, second = precise(cuda), precise(cuda)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switches.deterministic
    second.__exit__(None, None, None)
    assert switches.deterministic == before


def test_a_condition_belongs_to_the_network_that_gets_it():
    """A network that modifies its condition in place does not affect later calls."""

    class Spoils(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_network("unet", shape=[1, 8, 8], widths=[8, 8], blocks=1, positions=True)

        def forward(self, x, log_snr, condition):
            condition[:, :2] -= 0.5
            return self.inner(x, log_snr, condition)

    own = {"form": "squared_norm", "schedule": SCHEDULE, "event_shape": (1, 8, 8), "conditions": Positions(0.1, 0.9)}
    model, x = EnergyModel(Spoils(), **own), torch.zeros(1, 8, 8)
    energies = [float(model.given(x=0.3, y=0.6).energy(x, level=3)) for _ in range(3)]
    assert len(set(energies)) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # warnings raised inside torch.compile
def test_torch_compiles_what_calls_a_model():
    model, x = mlp(), points()
    compiled = torch.compile(lambda x: model.energy(x, level=4), backend="eager")
    assert torch.equal(compiled(x), model.energy(x, level=4))
    compiled = torch.compile(lambda x: model.value_and_grad(x, level=4)[1], backend="eager")
    assert torch.equal(compiled(x), model.value_and_grad(x, level=4)[1])


class Table(torch.nn.Module):
    """Negative control: a level embedding that is constant between whole numbers of the log-SNR."""

    def __init__(self, width, *, classes):
        super().__init__()
        self.rows = torch.nn.Embedding(40, width)

    def forward(self, log_snr, label):
        return self.rows((log_snr + 20).long())


@pytest.mark.parametrize("embedding", [LevelEmbedding, Table])
def test_features_of_the_noise_level_are_smooth(embedding):
    """Smaller steps of the log-SNR change the features less; importance weights between rungs rely on it."""
    torch.manual_seed(0)
    features = embedding(32, classes=0)
    jumps = [features(torch.linspace(-10, 10, n), None).diff(dim=0).norm(dim=1).max() for n in (500, 5000)]
    assert (jumps[1] < jumps[0] / 5) == (embedding is LevelEmbedding)


def test_a_unet_takes_images_with_and_without_a_channel_axis():
    torch.manual_seed(0)
    network = EnergyUNet((1, 8, 8), widths=(8, 16), blocks=1)
    plain = EnergyModel(network, form="squared_distance", schedule=SCHEDULE, event_shape=(8, 8))
    value, gradient = plain.value_and_grad(points(3, (8, 8)), level=2)
    assert value.shape == (3,)
    assert value.dtype == torch.float64
    assert gradient.shape == (3, 8, 8)
    colour = EnergyModel(
        EnergyUNet((3, 8, 8), widths=(8, 16), blocks=1), form="inner_product", schedule=SCHEDULE, event_shape=(3, 8, 8)
    )
    assert colour.energy(points(5, (3, 8, 8)), level=0).shape == (5,)


def in_training(model, module=0):
    list(model.network.modules())[module].train()
    return model


REFUSED = {
    "unknown form": (lambda: mlp(form="norm"), ValueError, "squared_distance"),
    "no classes": (lambda: mlp().given(1), ValueError, "not conditional"),
    "no such class": (lambda: mlp(classes=3).given(3), ValueError, r"\.given\(2\)"),
    "half a class": (lambda: mlp(classes=3).given(0.5), TypeError, "integer"),
    "a class by name": (lambda: mlp(classes=3).given(x=0.5, y=0.5), TypeError, "one class"),
    "a position by class": (lambda: pictures().given(3), TypeError, r"given\(x=0.3, y=0.6\)"),
    "half a position": (lambda: pictures().given(x=0.3), TypeError, r"given\(x=0.3, y=0.6\)"),
    "a position in pixels": (lambda: pictures().given(x=0.3, y=19), ValueError, "share of the picture"),
    "odd sides": (lambda: EnergyUNet((1, 9, 9)), ValueError, "divisible"),
    "a width of ten": (lambda: EnergyUNet((1, 8, 8), widths=(8, 10)), ValueError, "multiples of 8"),
    "unknown network": (lambda: build_network("transformer"), ValueError, "mlp, unet"),
    "unknown option": (lambda: build_network("mlp", size=2, depth=3), ValueError, "depth"),
    "another device": (lambda: mlp().energy(points().to("meta"), level=0), ValueError, r"x\.to\('cpu'\)"),
    "a device that is not there": (lambda: mlp().to("nowhere"), ValueError, "cannot be moved to nowhere"),
    "in training": (lambda: in_training(mlp()).energy(points(), level=0), ValueError, r"call network\.eval\(\)"),
    "a part in training": (lambda: in_training(mlp(), -1).energy(points(), level=0), ValueError, "or a part of it"),
    "no conditions": (
        lambda: EnergyModel(pictures().network, form="squared_norm", schedule=SCHEDULE, event_shape=(3, 8, 8)),
        ValueError,
        "conditions=",
    ),
    "a number as shape": (
        lambda: EnergyModel(mlp().network, form="squared_norm", schedule=SCHEDULE, event_shape=2),
        TypeError,
        r"event_shape=\(2,\)",
    ),
    "a picture without channels": (lambda: EnergyUNet((8, 8)), ValueError, "gray pictures have one channel"),
    "a conditioned model": (lambda: save_weights(mlp(classes=3).given(1), "w.safetensors"), ValueError, "conditioned"),
    "unknown model": (lambda: load("cubes9"), ValueError, "digits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    act, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_weights_come_back_as_they_went(tmp_path):
    model = mlp(classes=2)
    described = {
        "name": "small",
        "network": json.dumps({"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 2, "classes": 2}),
    }
    model = EnergyModel(
        model.network.float(),
        form=model.form,
        schedule=SCHEDULE,
        event_shape=(2,),
        conditions=Classes(2),
        reference=model.reference,
        name="small",
        info=described,
    )
    loaded = load(save_weights(model, tmp_path / "small.safetensors"))
    x = points().float()
    torch.testing.assert_close(loaded.given(1).energy(x, level=3), model.given(1).energy(x, level=3), rtol=0, atol=0)
    assert loaded.schedule == SCHEDULE
    assert str(loaded) == "small"


def test_weights_keep_their_name_and_precision_whatever_torchs_default_is(tmp_path):
    ring = load("ring")
    ring.network.double()
    own = EnergyModel(
        ring.network,
        form=ring.form,
        schedule=ring.schedule,
        event_shape=(2,),
        reference=ring.reference,
        name="own",
        info=ring.info,
    )
    path, x = save_weights(own, tmp_path / "own.safetensors"), points()
    before = torch.get_default_dtype()
    try:
        for default in (torch.float32, torch.float64, torch.float16):
            torch.set_default_dtype(default)
            assert next(load("ring").network.parameters()).dtype == torch.float32
            again = load(path)
            assert (again.name, next(again.network.parameters()).dtype) == ("own", torch.float64)
            torch.testing.assert_close(again.energy(x, level=3), own.energy(x, level=3), rtol=0, atol=0)
    finally:
        torch.set_default_dtype(before)
    others = path.stat().st_mode & 0o777
    (tmp_path / "plain").write_text("")
    assert others == (tmp_path / "plain").stat().st_mode & 0o777, "as readable as any other file"


def test_autocast_does_not_round_energies():
    model, x = load("ring"), points().float()
    value, gradient = model.value_and_grad(x, level=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.network(x, model.schedule.log_snr(torch.tensor([3])).float(), None)
        energy, (again, slope) = model.energy(x, level=3), model.value_and_grad(x, level=3)
    assert rounded.dtype == torch.bfloat16, "autocast was on"
    for one, other in ((value, energy), (value, again), (gradient, slope)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_weights_that_could_not_be_loaded_are_not_written(tmp_path):
    model = mlp()
    with pytest.raises(ValueError, match="how its network is built"):
        save_weights(model, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
    options = {"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 2, "classes": 0}
    known = EnergyModel(
        build_network(**options),
        form="squared_norm",
        schedule=SCHEDULE,
        event_shape=(2,),
        reference=(np.zeros(2), np.ones(2)),
        name="mine",
        info={"network": json.dumps(options)},
    )
    again = load(save_weights(known, tmp_path / "w.safetensors"))
    assert again.name == "mine"
    x = np.zeros((1, 2), dtype=np.float32)
    torch.testing.assert_close(again.energy(x, level=3), known.energy(x, level=3))


def test_damaged_weights_are_refused_in_one_line(tmp_path):
    source = save_weights(load("ring"), tmp_path / "ring.safetensors")
    content = source.read_bytes()
    cases = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"weights", "pickle": b"\x80\x04." * 50}
    for name, damaged in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|not a weight file") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not written by ppl-diffusion"):
        load(tmp_path / "foreign.safetensors")
    tensors = load_file(source)
    del tensors[next(iter(tensors))]
    copy_header(tensors, source, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match="get the file again"):
        load(tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match=r"there is no file .*missing\.safetensors.*give the path of a weight file"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="there is no model 'rign': use one of"):
        load("rign")


def copy_header(tensors, source, path):
    from safetensors import safe_open

    with safe_open(source, framework="pt") as stored:
        save_file(tensors, path, metadata=stored.metadata())


def test_weights_kept_in_half_precision_compute_in_single(tmp_path):
    model = load("ring")
    x, exact = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double(), load("ring")
    model.network.half()
    loaded = load(save_weights(model, tmp_path / "half.safetensors"))
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.energy(x, level=50), exact.energy(x, level=50), rtol=1e-2, atol=0)
    assert not torch.equal(loaded.energy(x, level=50), exact.energy(x, level=50)), "they are rounded"


def test_the_zoo_holds_what_it_lists():
    pictures = {"digits", "digits_classifier", "cubes", "cubes64", "captions", "cifar", "cifar_classifier"}
    assert set(names()) == {*NAMES, *pictures}
    for card in cards():
        model = load(card.name)
        assert model.event_shape == card.event_shape
        assert str(model.conditions) == card.conditions
        assert card.command.startswith(f"ppl-diffusion train {card.name}")
        assert {"loss", "steps", "versions", "config"} <= set(model.info)
        assert model.schedule == NoiseSchedule.cosine(100)
    assert load("digits").event_shape == (28, 28)


@pytest.mark.parametrize("name", NAMES)
def test_planar_models_have_learned_their_densities(name):
    """The score has a small root mean square error, in units of the noise, and energies agree up to a constant."""
    model, truth = load(name), exact(name, backend="torch")
    for level, tolerance in ((0, 0.08), (10, 0.05), (60, 0.02)):
        x = torch.from_numpy(truth.sample(2000, level=level, seed=3))
        (energy, gradient), (exact_energy, exact_gradient) = (m.value_and_grad(x, level=level) for m in (model, truth))
        error = (gradient - exact_gradient).square().mean().sqrt() * model.schedule.sigma(level)
        assert float(error) < tolerance
        assert float((energy - exact_energy).std()) < (0.8 if level == 0 else 0.1)


@pytest.mark.long
def test_digits_are_recognised_by_the_score_of_their_class():
    """The noise added to a sampled digit is estimated best under the class that it was sampled from."""
    model = load("digits")
    ladder = Ladder.spaced(model.schedule, rungs=25, steps=4)
    drawn = np.concatenate(
        [
            anneal(model.given(label), HMC(), ladder=ladder, chains=3, seed=label, reverse_step=True).positions[:, 0]
            for label in (0, 3, 8)
        ]
    )
    alpha, sigma = model.schedule.alpha(60), model.schedule.sigma(60)
    noise = np.random.default_rng(0).standard_normal((20, *drawn.shape))
    x = alpha * drawn + sigma * noise
    estimates = [sigma * model.given(label).value_and_grad(x, level=60)[1].numpy() for label in (0, 3, 8)]
    errors = np.stack([((estimate - noise) ** 2).mean((0, 2, 3)) for estimate in estimates])
    np.testing.assert_array_equal(errors.argmin(0), np.repeat([0, 1, 2], 3))


@pytest.mark.slow
def test_float32_networks_move_acceptance_probabilities_by_less_than_a_thousandth():
    """Compare acceptance probabilities of the same trajectories with a float32 and a float64 network."""
    model = load("digits").given(3)
    double = EnergyModel(
        load("digits").network.double(),
        form=model.form,
        schedule=model.schedule,
        event_shape=(28, 28),
        conditions=model.conditions,
        token=3,
    )
    ladder = Ladder(levels=(99, 60, 30), steps=2)
    x = anneal(model, HMC(), ladder=ladder, chains=8, seed=0, reverse_step=True).positions[:, 0]
    rng = np.random.default_rng(0)
    worst = 0.0
    for level, step in ((60, 0.3), (30, 0.15), (5, 0.05)):
        momentum = rng.standard_normal(x.shape)
        rates = []
        for potential in (model, double):
            position, p = torch.from_numpy(x.copy()), torch.from_numpy(momentum)
            begin, gradient = potential.value_and_grad(position, level=level)
            kinetic = 0.5 * (p**2).sum((1, 2))
            for _ in range(3):
                p = p - 0.5 * step * gradient
                position = position + step * p
                end, gradient = potential.value_and_grad(position, level=level)
                p = p - 0.5 * step * gradient
            rates.append(torch.exp(torch.clamp(begin - end + kinetic - 0.5 * (p**2).sum((1, 2)), max=0.0)))
        worst = max(worst, float((rates[0] - rates[1]).abs().max()))
    assert worst < 1e-3


def test_energies_are_float64_under_jax_too():
    from bridges.torch_jax import to_jax

    with jax.enable_x64(True):
        value, _ = to_jax(load("digits")).value_and_grad(np.zeros((2, 28, 28)), level=50)
    assert value.dtype == np.float64


def test_numpy_points_go_where_the_networks_are():
    """The device "meta" stands for a GPU: it stores no values, but tensors have to be on it."""
    model = pictures().to("meta")
    window = tapestry([model, model.given(x=0.25, y=0.75)], (3, 8, 12), [(0, 0), (0, 4)])
    mine = EnergyFunction(
        lambda x, level: (x**2).sum((1, 2, 3)),
        schedule=model.schedule,
        event_shape=model.event_shape,
        backend="torch",
        device="meta",
    )
    for target in (
        model,
        mine * model,
        conjunction([model.given(x=0.25, y=0.75)] * 2, model),
        mixture([model, model]),
        window,
    ):
        assert target.device.type == "meta"
        x = np.zeros((2, *target.event_shape))
        assert all(value.device.type == "meta" for value in target.value_and_grad(x, level=3))
        with pytest.raises(ValueError, match=r"pass x\.to\('meta'\)"):
            target.value_and_grad(torch.zeros(2, *target.event_shape), level=3)
    assert mine.value_and_grad(np.zeros((2, *mine.event_shape)), level=3)[0].device.type == "meta"


class OneArgument(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Timed(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(x)


class Keywords(torch.nn.Linear):
    def forward(self, x, *, log_snr, condition):
        return super().forward(x)


class Four(torch.nn.Linear):
    def forward(self, x, log_snr, condition, mask):
        return super().forward(x)


class Lenient(torch.nn.Linear):
    def forward(self, x, *others, scale=1.0):
        return super().forward(x)


SIGNATURES = [OneArgument(2, 2), Timed(2, 2), Keywords(2, 2), Four(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))]


@pytest.mark.parametrize("network", SIGNATURES, ids=lambda network: type(network).__name__)
def test_a_network_of_another_signature_is_told_which_is_needed(network):
    name = type(network).__name__
    words = rf"forward\(\) of {name} is called as forward\(x, log_snr, condition\), and takes \("
    with pytest.raises(TypeError, match=words) as caught:
        EnergyModel(network, form="inner_product", schedule=SCHEDULE, event_shape=(2,))
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=words):
        denoising_loss(network, "inner_product", SCHEDULE, torch.zeros(3, 2), generator=torch.Generator())


def test_a_network_that_can_be_called_is_taken_and_its_own_errors_are_told_as_they_are():
    class Broken(Lenient):
        def forward(self, x, log_snr, condition):
            return len(3)

    own = {"form": "inner_product", "schedule": SCHEDULE, "event_shape": (2,)}
    assert EnergyModel(Lenient(2, 2), **own).energy(np.zeros((3, 2)), level=0).shape == (3,)
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        EnergyModel(Broken(2, 2), **own).energy(np.zeros((3, 2)), level=0)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble, object, "U3", "M8[s]", np.int64, bool, complex])
def test_points_of_other_types_are_refused_with_what_to_type(backend, dtype):
    target = load("wide") if backend == "torch" else exact("wide", backend="jax")
    with pytest.raises(TypeError, match=r"takes floating points, got .*: pass x\.astype\('float64'\)") as caught:
        target.energy(np.zeros((3, 2)).astype(dtype), level=0)
    assert "\n" not in str(caught.value)
