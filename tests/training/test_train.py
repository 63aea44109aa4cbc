"""Training: resuming is exact to the bit, no global state changes, and unusable input is rejected."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ppl_diffusion import conjunction, guidance, load, load_config, mixture, save_weights, train
from ppl_diffusion.models.conditions import Classes, ConditionWarning, Positions
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.schedule import NoiseSchedule
from ppl_diffusion.training import points
from ppl_diffusion.training import train as training
from ppl_diffusion.training.data import image_data, planar_data
from ppl_diffusion.training.objective import LEAST_ERROR, denoising_loss, gaussian_error, noised
from ppl_diffusion.training.train import Config

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
SMALL = Config(
    name="small",
    data="ring",
    network={"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 1},
    form="squared_norm",
    batch=64,
    steps=30,
    warm_up=5,
)


def weights(model):
    return torch.cat([p.flatten() for p in model.network.state_dict().values()])


@pytest.mark.parametrize("agreement", [0.0, 1.0])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, agreement, device):
    config = dataclasses.replace(SMALL, agreement=agreement)
    train = partial(training.train, device=device)
    whole = train(config, checkpoint=tmp_path / "whole.safetensors")

    def stop(progress):
        if progress.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoint=tmp_path / "cut.safetensors", every=10, progress=stop)
    steps = []
    resumed = train(config, checkpoint=tmp_path / "cut.safetensors", progress=lambda p: steps.append(p.step))
    assert steps == [20, 30], "it went on from the last checkpoint"
    assert torch.equal(weights(whole), weights(resumed))
    stored = [load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(stored[0][key], stored[1][key]) for key in stored[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


@cuda
@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_recorded_steps_are_plain_ones(tmp_path, monkeypatch, agreement):
    config = dataclasses.replace(SMALL, agreement=agreement)
    replayed = train(config, checkpoint=tmp_path / "a.safetensors", device="cuda")
    monkeypatch.setattr(training, "RECORDED", 0)
    plain = train(config, checkpoint=tmp_path / "b.safetensors", device="cuda")
    assert torch.equal(weights(replayed), weights(plain))
    assert replayed.info["loss"] == plain.info["loss"]


def test_numbers_of_numpy_are_numbers(tmp_path):
    config = dataclasses.replace(SMALL, seed=np.int64(0), network=SMALL.network | {"width": np.int64(16)})
    assert config == SMALL
    train(dataclasses.replace(config, steps=2), checkpoint=tmp_path / "c.safetensors", every=1)


def test_training_goes_on_from_given_weights(tmp_path):
    first = train(SMALL, checkpoint=tmp_path / "a.safetensors")
    path = save_weights(first, tmp_path / "first.safetensors")
    gently = dataclasses.replace(SMALL, init=str(path), steps=1, learning_rate=1e-9)
    assert torch.allclose(weights(train(gently, checkpoint=tmp_path / "b.safetensors")), weights(first), atol=1e-6)
    shipped = dataclasses.replace(load_config("wide"), init="wide", steps=1, learning_rate=1e-9)
    assert torch.allclose(
        weights(train(shipped, checkpoint=tmp_path / "c.safetensors")), weights(load("wide")), atol=1e-6
    )
    for init in ("digits", "nothing", str(tmp_path / "none.safetensors")):
        with pytest.raises(ValueError, match="cannot be started from") as caught:
            train(dataclasses.replace(SMALL, init=init), checkpoint=tmp_path / "d.safetensors")
        assert "\n" not in str(caught.value)
    data = tmp_path / "three.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(30, 2)), y=np.arange(30) % 3)
    labelled = dataclasses.replace(SMALL, data="npz", images="x", labels="y", init=str(path))
    taught = train(dataclasses.replace(labelled, steps=1, learning_rate=1e-9), checkpoint=tmp_path / "e", data=data)
    assert torch.allclose(taught.network.enter.weight, first.network.enter.weight, atol=1e-6)
    wider = dataclasses.replace(labelled, network=SMALL.network | {"width": 24})
    words = r"\w+.\w+ has the size \[.*16.*\] there, \[.*24.*\] here, with - there and classes 0 to 2 here"
    with pytest.raises(ValueError, match=words):
        train(wider, checkpoint=tmp_path / "d.safetensors", data=data)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nowhere"])
def test_a_device_that_is_not_there_is_refused_in_one_line(tmp_path, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here.*--device cpu") as caught:
        train(SMALL, checkpoint=tmp_path / "c.safetensors", device=device)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_default_device_of_torch_is_not_where_models_are_trained(tmp_path):
    here = train(SMALL, checkpoint=tmp_path / "here.safetensors")
    torch.set_default_device("meta")
    try:
        there = train(SMALL, checkpoint=tmp_path / "there.safetensors")
        there.tune(8)
        shipped = load("wide")
    finally:
        torch.set_default_device(None)
    assert torch.equal(weights(there), weights(here))
    assert torch.equal(weights(shipped), weights(load("wide")))


def test_training_learns_and_touches_no_global_generator(tmp_path):
    before = torch.get_rng_state()
    config = dataclasses.replace(SMALL, data="inner_box", form="squared_distance", steps=600, learning_rate=5e-3)
    model = train(config, checkpoint=tmp_path / "c.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    clean, _ = planar_data("inner_box", batch=20_000, seed=0).draw(torch.Generator().manual_seed(9))
    untrained, trained = (
        float(
            denoising_loss(n, config.form, model.schedule, clean, generator=torch.Generator().manual_seed(1)).detach()
        )
        for n in (build_network(seed=config.seed, classes=0, **config.network), model.network)
    )
    assert trained < 0.8 * untrained
    loaded = load(save_weights(model, tmp_path / "w.safetensors"))
    x = np.zeros((1, 2), dtype=np.float32)
    torch.testing.assert_close(loaded.energy(x, level=5), model.energy(x, level=5), rtol=0, atol=0)
    assert loaded.reference[1] == pytest.approx([0.03, 0.03], rel=0.02), "variance of the box: .6**2 / 12"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, x_train=rng.integers(0, 255, (50, 8, 8), dtype=np.uint8), y_train=np.arange(50) % 4)
    return path


PICTURES = Config(
    name="pictures",
    data="npz",
    network={"kind": "unet", "shape": [1, 8, 8], "widths": [8], "blocks": 1},
    batch=8,
    steps=3,
    warm_up=1,
)


def test_images_are_scaled_and_labels_kept(images, tmp_path):
    model = train(PICTURES, checkpoint=tmp_path / "c.safetensors", data=images)
    assert model.event_shape == (8, 8)
    assert model.conditions == Classes(4)
    assert load(save_weights(model, tmp_path / "w.safetensors")).given(3).energy(
        np.zeros((2, 8, 8)), level=0
    ).shape == (2,)
    assert "--data" in model.info["command"]


def test_positions_are_shares_of_the_picture(tmp_path):
    path = tmp_path / "pixels.npz"
    pictures, places = np.zeros((4, 3, 8, 8), dtype=np.uint8), np.array([[[0.5, 3.0]]] * 4)
    np.savez(path, x=pictures, places=places)
    options = {"images": "x", "labels": "", "positions": "places", "batch": 4, "label_dropout": 0.1}
    with pytest.raises(ValueError, match=r"run from 0\.5 to 3: give shares of the picture from 0 to 1"):
        image_data(path, **options)


def test_positions_are_drawn_among_those_that_are_there(tmp_path):
    rng = np.random.default_rng(0)
    places = np.full((50, 3, 2), np.nan, dtype=np.float32)
    places[:, 0], places[::2, 1] = rng.uniform(0.2, 0.4, (50, 2)), rng.uniform(0.6, 0.8, (25, 2))
    path = tmp_path / "scenes.npz"
    np.savez(path, x_train=rng.integers(0, 255, (50, 3, 8, 8), dtype=np.uint8), places=places)
    options = {"images": "x_train", "labels": "", "positions": "places", "batch": 400, "label_dropout": 0.5}
    _, tokens = image_data(path, **options).draw(torch.Generator().manual_seed(0))
    given = tokens[tokens[:, 2] == 1]
    assert 0.4 < len(given) / 400 < 0.6
    assert not torch.isnan(tokens).any()
    assert (tokens[tokens[:, 2] == 0] == 0).all()
    assert 0.15 < float((given[:, 0] > 0.5).float().mean()) < 0.35, "half have a second one, drawn half the time"
    config = dataclasses.replace(PICTURES, positions="places", network={**PICTURES.network, "shape": [3, 8, 8]})
    model = train(config, checkpoint=tmp_path / "c.safetensors", data=path)
    loaded = load(save_weights(model, tmp_path / "w.safetensors"))
    x = np.zeros((1, 3, 8, 8), dtype=np.float32)
    one, other = (m.given(x=0.3, y=0.7).energy(x, level=2) for m in (model, loaded))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert isinstance(loaded.conditions, Positions)
    holed = places[:2].copy()
    holed[:, 1], holed[:, 2] = np.nan, 0.5
    for bad in (np.full((2, 1, 2), np.nan), holed):
        np.savez(path, x_train=np.zeros((2, 3, 8, 8), np.uint8), places=bad)
        with pytest.raises(ValueError, match="there first and then NaN, at least one for each picture"):
            image_data(path, **options)


def test_points_of_ones_own_are_trained_on_as_they_are(tmp_path):
    points = np.random.default_rng(0).normal([3.0, -1.0], [0.5, 0.1], (400, 2))
    np.savez(tmp_path / "points.npz", x=points, kind=np.arange(400) % 2)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="", steps=20)
    model = train(own, checkpoint=tmp_path / "c.safetensors", data=tmp_path / "points.npz")
    np.testing.assert_allclose(model.reference[0], points.mean(0), atol=0.01)
    np.testing.assert_allclose(model.reference[1], points.var(0), rtol=0.02)
    with pytest.raises(ValueError, match="not conditional"):
        model.given(1)
    source = image_data(tmp_path / "points.npz", images="x", labels="kind", positions=None, batch=64, label_dropout=0.5)
    drawn, tokens = source.draw(torch.Generator().manual_seed(0))
    rows = [np.flatnonzero(np.isclose(points.astype(np.float32), x, atol=1e-6).all(1))[0] for x in drawn.numpy()]
    kept = tokens.numpy() != source.conditions.anything
    assert 10 < kept.sum() < 54
    np.testing.assert_array_equal(np.array(rows)[kept] % 2, tokens.numpy()[kept])


def test_the_reference_is_that_of_a_file_that_is_sorted(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.repeat(np.uint8([0, 255]), 1500)[:, None, None], y=np.zeros(3000, int))
    options = {"images": "x", "labels": "y", "positions": None, "batch": 4, "label_dropout": 0.1}
    assert image_data(tmp_path / "x.npz", **options).reference == pytest.approx((0.0, 1.0), abs=2e-3)


@pytest.mark.parametrize("period", [2, 3, 7, 64, 1000])
@pytest.mark.parametrize("rows", [999, 5000])
def test_the_reference_is_that_of_all_points_in_whatever_order(period, rows, tmp_path):
    """A stride through the data would meet one class only, wherever the period divides it."""
    rng = np.random.default_rng(period)
    x = rng.normal(size=(rows, 2)) * 0.2
    x[:, 0] += np.arange(rows) % period
    pictures = np.uint8([0, 255])[np.arange(rows) % 2][:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, pictures=pictures)
    options = {"labels": "", "positions": None, "batch": 4, "label_dropout": 0.1}
    mean, variance = image_data(tmp_path / "x.npz", images="x", **options).reference
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, x.var(0, ddof=1), rtol=1e-5)
    mean, variance = image_data(tmp_path / "x.npz", images="pictures", **options).reference
    assert (mean, variance) == pytest.approx((0, 1), abs=2 / rows)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.arange(60, dtype=np.uint8).reshape(15, 2, 2) % 2, "bytes from 0 to 1, .*multiply them by 255"),
        (np.arange(60, dtype=np.float32).reshape(15, 2, 2) % 17, r"pictures from 0 to 16: scale them to \[-1, 1\]"),
        (np.arange(60, dtype=np.uint8).reshape(15, 2, 2) % 17, "bytes from 0 to 16, .*multiply them by 15"),
        (np.arange(60, dtype=np.uint8).reshape(15, 1, 2, 2) % 2 + 254, r"bytes from 254 to 255, .*\(x - 254\) / 1 - 1"),
        (-np.arange(60, dtype=np.float64).reshape(15, 2, 2) % 17 - 16, r"pictures from -16 to 0: scale them"),
        (np.arange(60, dtype=np.float32).reshape(15, 2, 2) / 6000, "less than the least noise"),
        (np.zeros((15, 2, 2), dtype=np.int64), r"int64 \(15, 2, 2\): store bytes .*points.astype\('uint8'\)"),
        (np.full((15, 2, 2), -3), r"int64 \(15, 2, 2\): store them as points.astype\('float32'\)"),
        (np.zeros((15, 2), dtype=bool), r"bool \(15, 2\): store them as points.astype\('float32'\)"),
        (np.zeros((15, 2), dtype=complex), r"complex128 \(15, 2\): store them as"),
        (np.zeros((15, 2), dtype=np.uint8), r"uint8 \(15, 2\): store them as points.astype\('float32'\)"),
        (np.zeros(15, dtype=int), r"points\[:, None\].astype\('float32'\)"),
        (np.zeros((15, 2), dtype=np.int64), r"int64 \(15, 2\): .*points.astype\('float32'\)"),
        (np.zeros(15), r"points of one coordinate are points\[:, None\]"),
        (np.zeros((15, 2), dtype=np.longdouble), r"points.astype\('float64'\)"),
        (np.array([["a"], ["b"]], dtype=object), "Python objects.*np.unique"),
    ],
)
def test_points_in_other_units_or_types_are_refused_with_what_to_type(points, words, tmp_path):
    np.savez(tmp_path / "x.npz", x=points)
    with pytest.raises(ValueError, match=words):
        image_data(tmp_path / "x.npz", images="x", labels="", positions=None, batch=4, label_dropout=0.1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64"])
@pytest.mark.parametrize("shape", [(40, 2), (40, 4, 4), (40, 1, 4, 4)])
def test_what_to_type_is_what_is_taken(dtype, shape, tmp_path):
    """The remedy of a refusal, typed, gives data that are taken."""
    points = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    options = {"images": "x", "labels": "", "positions": None, "batch": 4, "label_dropout": 0.1}
    np.savez(tmp_path / "x.npz", x=points)
    try:
        image_data(tmp_path / "x.npz", **options)
        assert dtype.startswith("float")
    except ValueError as error:
        assert not dtype.startswith("float")
        (remedy, *_) = re.findall(r"points\.astype\('(float32)'\)", str(error))
        np.savez(tmp_path / "x.npz", x=points.astype(remedy))
        image_data(tmp_path / "x.npz", **options)


def test_moments_are_exact_where_float32_sums_are_not(tmp_path, monkeypatch):
    """Also of large offsets, and whatever the blocks are; a float32 sum loses the digits."""
    x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(20_000, 2))).astype(np.float32)
    for coordinates in (1, 777, 10**6):
        monkeypatch.setattr(points, "BLOCK_COORDINATES", coordinates if coordinates > 1 else 2000)
        mean, variance = points.moments(x)
        np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(variance, x.var(0, dtype=np.float64, ddof=1), rtol=1e-9)
    wrong = (x**2).mean(0) - x.mean(0) ** 2
    assert (np.abs(wrong - variance) > np.array(variance)).all(), "negative control"


def test_after_a_loss_that_is_not_finite_training_goes_on_from_the_last_good_step(tmp_path):
    kept = tmp_path / "c.safetensors"
    wild = dataclasses.replace(SMALL, steps=60)

    def blow_up(progress):
        if progress.step == 30:
            vars(wild)["learning_rate"] = 1e30

    with pytest.raises(ValueError, match=r"is left as it was, lower learning_rate, with allow_changes=True"):
        train(wild, checkpoint=kept, every=10, progress=blow_up)
    calm, steps = dataclasses.replace(SMALL, steps=60, learning_rate=1e-4), []
    with pytest.raises(ValueError, match=r"learning_rate is .* there, 0\.0001 here.*--allow-changes"):
        train(calm, checkpoint=kept)
    model = train(calm, checkpoint=kept, allow_changes=True, progress=lambda p: steps.append(p.step))
    assert steps == [40, 50, 60], "from the last good step"
    assert torch.isfinite(model.energy(torch.zeros(3, 2), level=0)).all()
    assert torch.equal(weights(train(calm, checkpoint=kept)), weights(model)), "from now on it is the same run"
    with pytest.raises(ValueError, match=r"is nan: lower learning_rate, or look for") as caught:
        train(dataclasses.replace(SMALL, learning_rate=1e30), checkpoint=tmp_path / "none.safetensors")
    assert "left as it was" not in str(caught.value), "there was none"


def test_training_goes_on_with_other_data_and_another_seed_when_asked_to(tmp_path):
    rng, kept = np.random.default_rng(0), tmp_path / "c.safetensors"
    for name, classes in (("one", 2), ("two", 2), ("three", 3)):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(60, 2)), y=np.arange(60) % classes)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="y", steps=4)
    more = dataclasses.replace(own, steps=8)
    train(own, checkpoint=kept, data=tmp_path / "one.npz")
    begun = kept.read_bytes()

    def go_on(config, data="two"):
        kept.write_bytes(begun)
        return weights(train(config, checkpoint=kept, data=tmp_path / f"{data}.npz", allow_changes=True))

    assert torch.equal(go_on(more), go_on(more))
    assert not torch.equal(go_on(more), go_on(dataclasses.replace(more, seed=1)))
    with pytest.raises(ValueError, match=r"'classes 0 to 2', for which the network of .* is not made"):
        go_on(more, data="three")
    for change in ({"network": {**own.network, "width": 8}}, {"levels": 7}, {"form": "inner_product"}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} is .* there") as caught:
            go_on(dataclasses.replace(more, **change), data="one")
        assert "allow_changes" not in str(caught.value), "it would not help"


@pytest.mark.long
def test_two_modes_in_turn_have_half_of_the_mass_each(tmp_path):
    x = np.random.default_rng(0).normal(size=(2000, 2)) * 0.2
    x[0::2, 0] += 1
    x[1::2, 0] -= 1
    np.savez(tmp_path / "x.npz", x=x)
    small = {"kind": "mlp", "size": 2, "width": 32, "hidden": 64, "blocks": 2}
    config = dataclasses.replace(
        SMALL, data="npz", images="x", labels="", steps=1500, batch=128, warm_up=200, learning_rate=2e-3, network=small
    )
    model = train(config, checkpoint=tmp_path / "c.safetensors", data=tmp_path / "x.npz")
    np.testing.assert_allclose(model.reference[1], [1.04, 0.04], rtol=0.1)
    grid = np.stack(np.meshgrid(*[np.linspace(-2.5, 2.5, 201)] * 2, indexing="ij"), -1).reshape(-1, 2)
    mass = torch.softmax(-model.energy(grid, level=0), 0).numpy()
    assert 0.3 < mass[grid[:, 0] > 0].sum() < 0.7


def test_training_goes_on_with_another_rate_and_more_steps_only_when_asked_to(tmp_path):
    kept = tmp_path / "c.safetensors"
    train(SMALL, checkpoint=kept)
    more = dataclasses.replace(SMALL, steps=SMALL.steps + 3, learning_rate=1e-5)
    before = kept.read_bytes()
    with pytest.raises(ValueError, match=r"steps is .*allow_changes=True to go on from it"):
        train(more, checkpoint=kept)
    assert kept.read_bytes() == before
    assert train(more, checkpoint=kept, allow_changes=True).info["steps"] == str(more.steps)
    with pytest.raises(ValueError, match="form is"):
        train(dataclasses.replace(more, form="inner_product"), checkpoint=kept, allow_changes=True)


@pytest.mark.parametrize(("dropout", "warned"), [(0.0, "unconditional"), (0.15, ""), (1.0, "conditional")])
def test_conditions_that_were_never_trained_are_told_of(dropout, warned, tmp_path):
    points = np.random.default_rng(0).normal(size=(60, 2))
    np.savez(tmp_path / "x.npz", x=points, y=np.arange(60) % 3)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="y", steps=2, label_dropout=dropout)
    model = train(own, checkpoint=tmp_path / "c", data=tmp_path / "x.npz")
    save_weights(model, tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors")

    def words(act):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
        assert all(w.filename == __file__ for w in caught), "they point at the line of the user"
        return [str(w.message) for w in caught if issubclass(w.category, ConditionWarning)]

    assert any("label_dropout=1" in text for text in words(lambda: model.given(1))) == (warned == "conditional")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        one, two = model.given(1), model.given(2)
    compositions = (
        lambda: guidance(one, model, scale=1.5),
        lambda: conjunction([one, two], model),
        lambda: one + model,
        lambda: one / model,
        lambda: mixture([one, model]),
        lambda: model**0.5,
    )
    for act in compositions:
        assert any("label_dropout was 0" in text for text in words(act)) == (warned == "unconditional")
    assert not words(lambda: one * two)


def test_a_training_that_diverged_is_no_model_and_leaves_its_checkpoint_alone(tmp_path):
    kept = tmp_path / "c.safetensors"

    def blow_up(progress):
        if progress.step == 10:
            vars(config)["learning_rate"] = 1e30

    config = dataclasses.replace(SMALL)
    with pytest.raises(ValueError, match="lower learning_rate"):
        train(config, checkpoint=kept, every=10, progress=blow_up)
    assert all(bool(value.double().isfinite().all()) for value in load_file(kept).values())


def test_what_cannot_be_used_is_refused_in_one_line(images, tmp_path):
    kept = tmp_path / "c.safetensors"
    train(SMALL, checkpoint=kept)
    other = dataclasses.replace(SMALL, seed=1)
    holed = tmp_path / "holed.npz"
    floats, keyless, damaged = tmp_path / "floats.npz", tmp_path / "keyless.npz", tmp_path / "damaged.safetensors"
    np.savez(floats, x_train=np.zeros((5, 8, 8), int), y_train=np.zeros(5, dtype=int))
    np.savez(holed, x_train=np.full((5, 8, 8), np.nan), y_train=np.zeros(5, dtype=int))
    np.savez(keyless, images=np.zeros(3))
    large, empty = tmp_path / "large.npz", tmp_path / "empty.npz"
    for path, shape in ((large, (5, 9, 9)), (empty, (0, 8, 8))):
        np.savez(path, x_train=np.zeros(shape, np.uint8), y_train=np.zeros(shape[0], dtype=int))
    cut, array = tmp_path / "cut.npz", tmp_path / "array.npz"
    cut.write_bytes(keyless.read_bytes()[:-30])
    with array.open("wb") as stream:
        np.save(stream, np.zeros(3))
    others, own = tmp_path / "others.npz", tmp_path / "own.safetensors"
    np.savez(others, x_train=np.full((9, 8, 8), 200, np.uint8), y_train=np.zeros(9, dtype=int))
    train(PICTURES, checkpoint=own, data=images)
    damaged.write_bytes(kept.read_bytes()[:500])
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "extra.toml").write_text('name = "x"\ndata = "ring"\nlearning_rat = 1\n[network]\nkind = "mlp"')
    (tmp_path / "less.toml").write_text('name = "x"')
    cases = [
        (lambda: train(other, checkpoint=kept), "another configuration"),
        (lambda: train(SMALL, checkpoint=damaged), "damaged"),
        (lambda: train(PICTURES, checkpoint=own, data=others), "other data"),
        (lambda: train(SMALL, checkpoint=tmp_path / "n", every=0), "every"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=None), "--data"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=tmp_path / "none.npz"), "--data"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=floats), "uint8"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=keyless), "lacks"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=holed), "not finite"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=cut), "damaged"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=large), r"shape \(9, 9\), the network"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=empty), "uint8"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=array), "not an .npz"),
        (lambda: train(SMALL, checkpoint=tmp_path / "a" / "c"), "mkdir -p"),
        (lambda: train(dataclasses.replace(SMALL, data="circle"), checkpoint=tmp_path / "n"), "circle"),
        (lambda: dataclasses.replace(SMALL, steps=0), "steps"),
        (lambda: dataclasses.replace(SMALL, form="x"), "unknown form"),
        (lambda: dataclasses.replace(SMALL, agreement=-1.0), "agreement"),
        (lambda: dataclasses.replace(SMALL, agreement="a"), "agreement .* must be a number >= 0, got 'a'"),
        (lambda: dataclasses.replace(SMALL, network={"kind": print}), "holds numbers, text and tables"),
        (lambda: dataclasses.replace(SMALL, seed=-1), "seed .* must be a whole number >= 0, got -1"),
        (lambda: dataclasses.replace(SMALL, batch=True), "batch"),
        (lambda: dataclasses.replace(SMALL, ema=float("nan")), "ema .* must be a number from 0 to 1, got nan"),
        (lambda: dataclasses.replace(SMALL, network="unet"), r"write \[network\]"),
        (lambda: dataclasses.replace(SMALL, description=3), "must be text, got 3"),
        (lambda: load_config("nothing"), "no configuration nothing"),
        (lambda: load_config(tmp_path / "bad.toml"), "not TOML"),
        (lambda: load_config(tmp_path / "extra.toml"), "learning_rat"),
        (lambda: load_config(tmp_path / "less.toml"), "lacks the key"),
    ]
    for act, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ring", "bar", "left", "right", "box", "inner_box", "wide", "digits"])
def test_shipped_configurations_are_those_of_the_shipped_weights(name):
    import json

    assert Config(**json.loads(load(name).info["config"])) == load_config(name)


def test_a_checkpoint_belongs_to_its_data_labels_included(tmp_path):
    points, labels = np.random.default_rng(0).normal(size=(400, 2)), np.arange(400) % 2
    np.savez(tmp_path / "points.npz", x=points, y=labels)
    np.savez(tmp_path / "others.npz", x=points, y=1 - labels)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="y", steps=4)
    kept = tmp_path / "c.safetensors"
    train(own, checkpoint=kept, data=tmp_path / "points.npz")
    train(own, checkpoint=kept, data=tmp_path / "points.npz")
    with pytest.raises(ValueError, match="was trained on other data"):
        train(own, checkpoint=kept, data=tmp_path / "others.npz")
    with pytest.raises(ValueError, match=r"checkpoint of a training that has ended, not its weights.*save_weights"):
        load(kept)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.arange(40) % 2 + 1}, "2 different labels in .*, from 1 to 2: number them from 0 on"),
        ({"y": np.where(np.arange(40) < 5, 10**12, 0)}, "number them from 0 on without gaps"),
        ({"x": np.ones((40, 2))}, "do not vary"),
    ],
)
def test_data_that_cannot_be_learned_are_refused(tmp_path, arrays, words):
    data = {"x": np.random.default_rng(0).normal(size=(40, 2)), "y": np.arange(40) % 2} | arrays
    np.savez(tmp_path / "points.npz", **data)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="y", steps=4)
    with pytest.raises(ValueError, match=words):
        train(own, checkpoint=tmp_path / "c.safetensors", data=tmp_path / "points.npz")


def test_what_has_no_effect_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"draws its data, 'ring': leave .* out"):
        train(SMALL, checkpoint=tmp_path / "c", data=images)
    network = {**PICTURES.network, "classes": 7}
    with pytest.raises(ValueError, match=r"the data give classes = .*, not 7: leave it out"):
        train(dataclasses.replace(PICTURES, network=network), checkpoint=tmp_path / "c", data=images)


def test_pictures_of_floating_bytes_are_refused_and_byte_orders_are_not(tmp_path):
    x = np.random.default_rng(0).uniform(0, 255, (40, 8, 8))
    own = dataclasses.replace(PICTURES, labels="", images="x", steps=2)
    np.savez(tmp_path / "bytes.npz", x=x)
    with pytest.raises(ValueError, match=r"bytes by x / 127.5 - 1"):
        train(own, checkpoint=tmp_path / "c", data=tmp_path / "bytes.npz")
    np.savez(tmp_path / "scaled.npz", x=(x / 127.5 - 1).astype(">f4"))
    assert train(own, checkpoint=tmp_path / "c", data=tmp_path / "scaled.npz").event_shape == (8, 8)


def test_training_may_be_called_where_gradients_are_off(tmp_path):
    short = dataclasses.replace(SMALL, steps=4)
    plain = train(short, checkpoint=tmp_path / "plain")
    contexts = (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16))
    for i, context in enumerate(contexts):
        with context:
            model = train(short, checkpoint=tmp_path / f"{i}")
        for name, value in plain.network.state_dict().items():
            torch.testing.assert_close(model.network.state_dict()[name], value, rtol=0, atol=0)


def test_a_weight_file_is_no_checkpoint_and_need_not_be_removed(tmp_path):
    weights = save_weights(train(SMALL, checkpoint=tmp_path / "c"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is a weight file, not a checkpoint"):
        train(SMALL, checkpoint=weights)
    with pytest.raises(ValueError, match=r"another configuration \(seed is 0 there, 1 here\)"):
        train(dataclasses.replace(SMALL, seed=1), checkpoint=tmp_path / "c")


def test_labels_may_use_all_of_their_type(tmp_path):
    labels = np.arange(512, dtype=np.int64).astype(np.uint8)
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(512, 2)), y=labels)
    options = {"images": "x", "labels": "y", "positions": None, "batch": 4, "label_dropout": 0.1}
    assert image_data(tmp_path / "points.npz", **options).conditions.anything == 256


def test_a_coordinate_may_stand_still(tmp_path):
    points = np.random.default_rng(0).normal(size=(40, 2)) * [1.0, 0.0]
    np.savez(tmp_path / "points.npz", x=points)
    own = dataclasses.replace(SMALL, data="npz", images="x", labels="", steps=4)
    model = train(own, checkpoint=tmp_path / "c.safetensors", data=tmp_path / "points.npz")
    assert torch.isfinite(model.energy(torch.zeros(3, 2), level=0)).all()


REFUSED_TABLES = {
    "an option of another network": ({"kind": "mlp", "size": 2, "widths": [8]}, "'mlp' has no widths: use kind, size"),
    "no size": ({"kind": "mlp"}, r"'mlp' lacks size: write size = 2 under \[network\]"),
    "no shape": ({"kind": "unet"}, r"'unet' lacks shape: write shape = \[1, 28, 28\]"),
    "no kind": ({"size": 2}, r"write \[network\] and kind = \"unet\""),
    "another kind": ({"kind": "transformer"}, "unknown network 'transformer': use one of mlp, unet"),
    "a number as kind": ({"kind": 3}, "kind of the network must be text, got 3"),
    "text as size": ({"kind": "mlp", "size": "2"}, "size of the network must be whole numbers >= 1, got '2'"),
    "a number as shape": ({"kind": "unet", "shape": 8}, "shape of the network must be whole numbers >= 1, got 8"),
    "nothing as a side": ({"kind": "unet", "shape": [1, 0, 8]}, "shape of the network must be whole numbers"),
    "positions by number": ({"kind": "unet", "shape": [1, 8, 8], "positions": 1}, "must be true or false, got 1"),
}


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_tables_that_make_no_network_are_refused_in_one_line(case):
    table, words = REFUSED_TABLES[case]
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(SMALL, network=table)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is ValueError


def test_a_configuration_stores_what_was_written():
    assert SMALL.plain()["network"] == {"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 1}
    assert "conditions" not in SMALL.plain()
    assert Config(**SMALL.plain()) == SMALL
    assert dataclasses.replace(SMALL, learning_rate=1).learning_rate == 1.0
    with pytest.raises(ValueError, match="conditions in the configuration must be a table of texts"):
        dataclasses.replace(SMALL, conditions={"words": 3})


@pytest.mark.parametrize(
    "wrong", [{"blocks": -1}, {"width": 0}, {"hidden": 2.5}, {"width": float("inf")}, {"blocks": True}]
)
def test_numbers_that_make_no_network_are_refused(wrong):
    with pytest.raises(ValueError, match="of the network must be whole numbers >= 1"):
        dataclasses.replace(SMALL, network={**SMALL.network, **wrong})


def test_checkpoints_of_slow_training_are_a_minute_apart_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    kept, seen = tmp_path / "c.safetensors", []

    def look(progress):
        seen.append((progress.step, kept.exists()))

    train(dataclasses.replace(SMALL, steps=20), checkpoint=kept, progress=look)
    assert seen == [(10, True), (20, True)]


def test_weights_that_cannot_be_written_are_told_of(tmp_path):
    with pytest.raises(ValueError, match=r"save_weights\(model, 'm2.safetensors'\)"):
        save_weights(load("ring"), tmp_path / "m2")
    with pytest.raises(OSError, match=r"w\.safetensors cannot be written|No such file"):
        save_weights(load("ring"), tmp_path / "nowhere" / "w.safetensors")


def test_errors_count_relative_to_the_best_estimate_for_gaussian_data():
    schedule, variance = NoiseSchedule.cosine(100), 0.5
    levels, rng = torch.tensor([5, 30, 60]), torch.Generator().manual_seed(0)
    noise, clean = (torch.randn(20_000, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    x = schedule.alpha(levels) * variance**0.5 * clean + schedule.sigma(levels) * noise
    spread = schedule.alpha(levels) ** 2 * variance + schedule.sigma(levels) ** 2
    errors = (schedule.sigma(levels) / spread * x - noise) ** 2
    exact = gaussian_error(schedule, levels, (0.0, [variance, variance]))
    assert ((errors.mean(0) - exact).abs() < 4 * errors.std(0) / 20_000**0.5).all()
    assert gaussian_error(schedule, torch.tensor([99]), (0.0, variance)) == LEAST_ERROR


def test_a_relative_loss_is_the_weighted_mean_of_the_errors():
    network = build_network("mlp", size=2, width=16, hidden=16, blocks=1)
    schedule, clean = NoiseSchedule.cosine(100), torch.randn(64, 2, generator=torch.Generator().manual_seed(1))

    def loss(relative, points):
        generator = torch.Generator().manual_seed(2)
        given = {"reference": (0.0, 1.0), "relative": relative, "generator": generator}
        return float(denoising_loss(network, "squared_distance", schedule, points, **given).detach())

    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.zero_()  # the estimate of the noise is x itself
    generator = torch.Generator().manual_seed(2)
    level = torch.randint(100, (64,), generator=generator)
    x, noise = noised(schedule, clean, level, generator)
    errors = ((x - noise) ** 2).detach().mean(1)
    assert loss(False, clean) == pytest.approx(float(errors.mean()), rel=1e-5)
    weighted = errors / gaussian_error(schedule, level, (0.0, 1.0))
    assert loss(True, clean) == pytest.approx(float(weighted.mean()), rel=1e-5)
    assert loss(True, clean) > 1.5 * loss(False, clean)


def test_a_relative_loss_is_a_setting_that_is_kept_and_may_be_left_out(tmp_path):
    config = dataclasses.replace(SMALL, relative=True, steps=2)
    model = train(config, checkpoint=tmp_path / "c.safetensors")
    assert json.loads(model.info["config"])["relative"] is True
    assert "relative" not in SMALL.plain()
    with pytest.raises(ValueError, match="relative is True there, False here"):
        train(dataclasses.replace(config, relative=False), checkpoint=tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="relative in the configuration must be true or false, got 'yes'"):
        dataclasses.replace(SMALL, relative="yes")
