"""Training of classifiers: they learn labels at every noise level, resume to the bit, and are saved and loaded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from ppl_diffusion import Config, NoiseSchedule, load, load_config, save_weights, train
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.potentials.expression import parse
from ppl_diffusion.training.objective import classification_loss

NETWORK = {"kind": "cnn", "shape": [1, 8, 8], "widths": [8], "blocks": 1}
CONFIG = Config(
    name="judge", data="npz", form="classifier", network=NETWORK, batch=32, steps=150, warm_up=5, learning_rate=1e-2
)


def halves(count=200, seed=0):
    """Pictures whose left or upper half is bright, by label, and their labels."""
    rng = np.random.default_rng(seed)
    pictures, labels = rng.integers(0, 80, (count, 8, 8), dtype=np.uint8), np.arange(count) % 2
    pictures[labels == 0, :, :4] += 150
    pictures[labels == 1, :4, :] += 150
    return pictures, labels


@pytest.fixture
def data(tmp_path):
    pictures, labels = halves()
    np.savez(tmp_path / "halves.npz", x_train=pictures, y_train=labels)
    return tmp_path / "halves.npz"


def weights(model):
    return torch.cat([p.flatten() for p in model.network.state_dict().values()])


def test_a_classifier_learns_resumes_and_is_saved(tmp_path, data):
    whole = train(CONFIG, checkpoint=tmp_path / "a.safetensors", data=data)

    def stop(progress):
        if progress.step == 20:
            raise KeyboardInterrupt

    cut = tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, checkpoint=cut, data=data, every=10, progress=stop)
    resumed = train(CONFIG, checkpoint=cut, data=data)
    assert torch.equal(weights(whole), weights(resumed))
    loaded = load(save_weights(whole, tmp_path / "judge.safetensors"))
    pictures, labels = halves(seed=1)
    x = torch.from_numpy(pictures).float() / 127.5 - 1
    for model in (whole, loaded):
        energies = torch.stack([model.given(label).energy(x, level=0) for label in (0, 1)], dim=1)
        assert float((energies.argmin(1).numpy() == labels).mean()) > 0.95
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert float(loaded.given(0).energy(noise, level=99).std()) < 0.5, "at pure noise it does not know"
    assert (loaded.form, loaded.exponent, str(loaded.given(1))) == ("classifier", 0, "judge[1]")
    assert {"loss", "config", "command"} <= set(loaded.info)
    written = parse("judge[0] / judge[1]", load=lambda name: loaded, known=["judge"])
    torch.testing.assert_close(written.energy(x, level=3), energies_of(loaded, x, 3))


def energies_of(model, x, level):
    return model.given(0).energy(x, level=level) - model.given(1).energy(x, level=level)


def test_labels_are_not_dropped(tmp_path, data):
    """A classifier has no unconditional model: the share of labels left out does not count."""
    few = dataclasses.replace(CONFIG, steps=3)
    models = [
        train(dataclasses.replace(few, label_dropout=share), checkpoint=tmp_path / f"{share}.safetensors", data=data)
        for share in (0.0, 1.0)
    ]
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_the_loss_is_the_mean_surprise_over_the_levels():
    """A network that returns nothing is surprised by log(classes); the wrong label is worse than the true one."""
    schedule, clean = NoiseSchedule.cosine(20), torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(0))
    network = build_network(classes=3, **NETWORK)

    def loss(label):
        generator = torch.Generator().manual_seed(1)
        return float(classification_loss(network, schedule, clean, label=label, generator=generator).detach())

    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    assert loss(torch.zeros(64, dtype=torch.int64)) == pytest.approx(np.log(3))
    with torch.no_grad():
        network.head.bias[1] = 2.0
    right, wrong = (loss(torch.full((64,), label)) for label in (1, 0))
    assert right == pytest.approx(np.log(2 + np.exp(2)) - 2)
    assert wrong - right == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": "squared_norm"}, "form = 'squared_norm' is not for the network 'cnn'.*kind = 'cnn'"),
        ({"network": {"kind": "mlp", "size": 2}}, "form = 'classifier' is not for the network 'mlp'"),
        ({"labels": ""}, "a classifier learns labels: give labels = 'y_train'"),
        ({"positions": "places"}, "a classifier learns labels.*no other conditions"),
        ({"agreement": 1.0}, "agreement compares energies of levels"),
        ({"network": {**NETWORK, "positions": True}}, "the network 'cnn' has no positions: use kind, shape"),
    ],
)
def test_configurations_that_are_no_classifiers_are_refused_on_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(CONFIG, **changes)
    assert "\n" not in str(caught.value)


def test_a_classifier_has_no_teacher_and_is_none(tmp_path, data):
    judge = train(dataclasses.replace(CONFIG, steps=2), checkpoint=tmp_path / "a.safetensors", data=data)
    digits = Config(name="d", data="npz", network={**NETWORK, "kind": "unet"}, steps=2, batch=8)
    for config, teacher in ((CONFIG, load("digits")), (digits, judge)):
        with pytest.raises(ValueError, match="a classifier learns labels, and knows no noise: leave the teacher out"):
            train(config, checkpoint=tmp_path / "b.safetensors", data=data, teacher=teacher)


def test_one_class_is_refused(tmp_path, data):
    pictures, _ = halves(20)
    np.savez(tmp_path / "one.npz", x_train=pictures, y_train=np.zeros(20, dtype=int))
    with pytest.raises(ValueError, match="a classifier has at least two classes, got 1"):
        train(CONFIG, checkpoint=tmp_path / "c.safetensors", data=tmp_path / "one.npz")


@pytest.mark.parametrize("name", ["cifar", "cifar_classifier", "digits_classifier"])
def test_shipped_configurations_build_their_networks(name):
    config = load_config(name)
    shape = config.network["shape"]
    network = build_network(**config.network, classes=10)
    out = network(torch.zeros(2, *shape), torch.zeros(1), torch.tensor([3]))
    assert tuple(out.shape) == ((2, 10) if config.form == "classifier" else (2, *shape))


def test_the_shipped_classifier_knows_digits():
    """Its configuration is that of its weights; it knows digits drawn from the model of digits far above chance."""
    model = load("digits_classifier")
    assert json.loads(model.info["config"]).items() >= load_config("digits_classifier").plain().items()
    assert model.event_shape == load("digits").event_shape
    assert (load("digits") * model.given(3)).schedule == load("digits").schedule
