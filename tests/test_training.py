"""Training: resumes bit for bit, keeps nothing global, refuses what it cannot use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ppl_diffusion import load, load_config, save_weights, train
from ppl_diffusion.condition import Classes, Positions
from ppl_diffusion.data import image_data, planar_data
from ppl_diffusion.energy import denoising_loss
from ppl_diffusion.networks import build_network
from ppl_diffusion.training import Config

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


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    whole = train(SMALL, checkpoint=tmp_path / "whole.safetensors")

    def stop(progress):
        if progress.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, checkpoint=tmp_path / "cut.safetensors", every=10, progress=stop)
    steps = []
    resumed = train(SMALL, checkpoint=tmp_path / "cut.safetensors", progress=lambda p: steps.append(p.step))
    assert steps == [20, 30], "it went on from the last checkpoint"
    assert torch.equal(weights(whole), weights(resumed))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


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
    with pytest.raises(ValueError, match="at least one for each picture"):
        np.savez(path, x_train=np.zeros((2, 3, 8, 8), np.uint8), places=np.full((2, 1, 2), np.nan))
        image_data(path, **options)


def test_what_cannot_be_used_is_refused_in_one_line(images, tmp_path):
    kept = tmp_path / "c.safetensors"
    train(SMALL, checkpoint=kept)
    other = dataclasses.replace(SMALL, seed=1)
    floats, keyless, damaged = tmp_path / "floats.npz", tmp_path / "keyless.npz", tmp_path / "damaged.safetensors"
    np.savez(floats, x_train=np.zeros((5, 8, 8)), y_train=np.zeros(5, dtype=int))
    np.savez(keyless, images=np.zeros(3))
    damaged.write_bytes(kept.read_bytes()[:500])
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "extra.toml").write_text('name = "x"\ndata = "ring"\nlearning_rat = 1\n[network]\nkind = "mlp"')
    (tmp_path / "less.toml").write_text('name = "x"')
    cases = [
        (lambda: train(other, checkpoint=kept), "another configuration"),
        (lambda: train(SMALL, checkpoint=damaged), "damaged"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=None), "--data"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=tmp_path / "none.npz"), "--data"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=floats), "uint8"),
        (lambda: train(PICTURES, checkpoint=tmp_path / "n", data=keyless), "lacks"),
        (lambda: train(SMALL, checkpoint=tmp_path / "a" / "c"), "mkdir -p"),
        (lambda: train(dataclasses.replace(SMALL, data="circle"), checkpoint=tmp_path / "n"), "circle"),
        (lambda: dataclasses.replace(SMALL, steps=0), "steps"),
        (lambda: dataclasses.replace(SMALL, form="x"), "unknown form"),
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
