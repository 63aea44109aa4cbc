"""Distillation: an energy learns a teacher's noise, and what of that is no gradient is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from bridges.diffusers.load import Labels
from ppl_diffusion import Config, NoiseSchedule, ScorePotential, UniformBox, load, mixture, save_weights, train
from ppl_diffusion.models.conditions import Classes
from ppl_diffusion.models.networks import EnergyMLP
from ppl_diffusion.potentials import planar

SCHEDULE = NoiseSchedule.cosine(20)
LOG_SNR = [float(SCHEDULE.log_snr(level)) for level in range(len(SCHEDULE))]
NETWORK = {"width": 16, "hidden": 16, "blocks": 1}
CONFIG = Config(
    name="taught", data="left", network={"kind": "mlp", "size": 2, **NETWORK}, form="inner_product", steps=5, batch=32
)


class Exact(nn.Module):
    """The noise that is expected in points of a planar density, with a rotation added."""

    def __init__(self, density, rotation=0.0):
        super().__init__()
        self.density = density
        self.rotation = nn.Parameter(torch.tensor(rotation))

    def forward(self, x, time):
        found = torch.empty_like(x)
        for level in time.unique().tolist():
            at = time == level
            sigma = self.density.schedule.sigma(level)
            found[at] = sigma * self.density.value_and_grad(x[at].double(), level=level)[1].to(x.dtype)
        return found + self.rotation * torch.stack([-x[:, 1], x[:, 0]], 1)


def exact_teacher(rotation=0.0):
    density = UniformBox(*planar.BOXES["left"], schedule=SCHEDULE, backend="torch")
    return ScorePotential(Exact(density, rotation), predicts="noise", schedule=SCHEDULE, event_shape=(2,))


def network_teacher(conditions=None, width=16):
    torch.manual_seed(0)
    count = 0 if conditions is None else conditions.count
    network = EnergyMLP(2, **NETWORK | {"width": width}, classes=count)
    given = {"conditions": conditions, "times": LOG_SNR, "schedule": SCHEDULE, "event_shape": (2,)}
    return ScorePotential(network, predicts="noise", **given)


def labelled(tmp_path, count=3):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % count
    path = tmp_path / "points.npz"
    np.savez(path, x_train=rng.standard_normal((60, 2)).astype(np.float32) + labels[:, None], y_train=labels)
    return path


def weights(model):
    return torch.cat([p.flatten() for p in model.network.state_dict().values()])


@pytest.mark.slow
def test_the_energy_of_an_exact_teacher_is_the_density(tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=500, learning_rate=5e-3, network=CONFIG.network | {"width": 32, "hidden": 64}
    )
    teacher = exact_teacher()
    model = train(config, checkpoint=tmp_path / "c.safetensors", teacher=teacher)
    density = teacher.network.density
    for level in (2, 8, 15):
        x = density.sample(500, level=level, seed=1)
        mine, theirs = (np.asarray(p.score(x, level=level)) for p in (model, density))
        assert np.mean((mine - theirs) ** 2) < 0.1 * np.mean(theirs**2)
    assert float(model.info["loss"]) < 0.1  # noise itself is not known to that error: .3 and more of it remains
    assert max(json.loads(model.info["circulation"]).values()) < 1e-3
    assert mixture([model, model]).has_energy


def test_how_much_of_a_teacher_is_no_gradient_is_told(tmp_path):
    shares = {}
    for rotation in (0.0, 0.5):
        model = train(CONFIG, checkpoint=tmp_path / f"{rotation}.safetensors", teacher=exact_teacher(rotation))
        shares[rotation] = json.loads(model.info["circulation"])
    assert max(shares[0.0].values()) < 1e-3
    assert min(shares[0.5].values()) > 0.01
    saved = load(save_weights(model, tmp_path / "taught.safetensors"))
    assert saved.info["teacher"] == "theirs"
    assert json.loads(saved.info["circulation"]) == shares[0.5]
    assert saved.schedule == SCHEDULE


def test_an_energy_teaches_another_and_turns_nowhere(tmp_path):
    teacher = train(dataclasses.replace(CONFIG, levels=20), checkpoint=tmp_path / "a.safetensors")
    again = train(CONFIG, checkpoint=tmp_path / "b.safetensors", teacher=teacher)
    assert again.info["circulation"] == "{}"
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0, 3, 9, 19])
    found = teacher.estimate_noise(x, level, torch.zeros(1, dtype=torch.long))
    for one, at, due in zip(x, level.tolist(), found, strict=True):
        torch.testing.assert_close(due, -SCHEDULE.sigma(at) * teacher.score(one, level=at).double())


def test_points_may_each_have_their_level():
    teacher = network_teacher()
    x, level = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 9, 19])
    found = teacher.estimate_noise(x, level)
    for one, at, due in zip(x, level.tolist(), found, strict=True):
        torch.testing.assert_close(due.float(), -SCHEDULE.sigma(at) * teacher.score(one, level=at))


def test_training_starts_from_the_weights_of_a_teacher_of_its_architecture(tmp_path):
    still = dataclasses.replace(CONFIG, steps=1, learning_rate=1e-12, seed=1)
    teacher = network_teacher()
    started = train(still, checkpoint=tmp_path / "a.safetensors", teacher=teacher)
    torch.testing.assert_close(weights(started), weights(teacher))
    for other in (network_teacher(width=24), exact_teacher()):
        model = train(still, checkpoint=tmp_path / f"{len(weights(other))}.safetensors", teacher=other)
        assert not torch.allclose(weights(model), weights(teacher))
    assert all(not p.requires_grad for p in teacher.network.parameters())


def test_an_interrupted_lesson_goes_on_and_another_teacher_is_refused(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    config = dataclasses.replace(CONFIG, steps=15)
    whole = train(config, checkpoint=tmp_path / "long.safetensors", teacher=network_teacher())
    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoint=tmp_path / "cut.safetensors", teacher=network_teacher(), every=5, progress=stop)
    resumed = train(config, checkpoint=tmp_path / "cut.safetensors", teacher=network_teacher())
    assert torch.equal(weights(whole), weights(resumed))
    for other in (exact_teacher(), None):
        with pytest.raises(ValueError, match="on other data, or by another teacher"):
            train(config, checkpoint=tmp_path / "cut.safetensors", teacher=other)


class Seen(nn.Module):
    """A network that keeps the classes that it is asked for."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.labels = set()

    def forward(self, x, time, condition):
        self.labels |= set(condition.tolist())
        return self.one * x


def test_conditions_of_the_data_are_asked_of_the_teacher(tmp_path):
    data = labelled(tmp_path)
    config = dataclasses.replace(CONFIG, data="npz", label_dropout=0.3, steps=10)

    def asked(teacher, name, config=config):
        train(config, checkpoint=tmp_path / f"{name}.safetensors", data=data, teacher=teacher)
        return teacher.network.labels

    given = {"predicts": "noise", "schedule": SCHEDULE, "event_shape": (2,)}
    for conditions in (Classes(3), Labels(4, 3)):
        assert asked(ScorePotential(Seen(), conditions=conditions, **given), type(conditions).__name__) == {0, 1, 2, 3}
    always = dataclasses.replace(config, label_dropout=0)
    assert asked(ScorePotential(Seen(), conditions=Labels(3, None), **given), "always", always) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"has no label for any class, .* set label_dropout = 0"):
        asked(ScorePotential(Seen(), conditions=Labels(3, None), **given), "never")
    with pytest.raises(ValueError, match=r"leave them out, labels = ''"):
        asked(ScorePotential(Seen(), conditions=Labels(4, 0), **given), "another")
    with pytest.raises(ValueError, match=r"leave them out, labels = ''"):
        asked(ScorePotential(Seen(), conditions=Classes(4), **given), "more")
    with pytest.raises(ValueError, match="has a condition of its own"):
        asked(ScorePotential(Seen(), conditions=Classes(3), **given).given(1), "one")
    without = dataclasses.replace(config, labels="")
    assert asked(ScorePotential(Seen(), conditions=Classes(3), **given).given(1), "fixed", without) == {1}
    assert asked(ScorePotential(Seen(), conditions=Classes(3), **given), "any", without) == {3}


def test_a_lesson_under_another_condition_or_prediction_is_another(tmp_path):
    data = labelled(tmp_path)
    config = dataclasses.replace(CONFIG, data="npz", labels="", steps=2)
    given = {"schedule": SCHEDULE, "event_shape": (2,), "conditions": Classes(3)}
    network = Seen()
    first = ScorePotential(network, predicts="noise", **given).given(0)
    train(config, checkpoint=tmp_path / "c.safetensors", data=data, teacher=first)
    for other in (
        ScorePotential(network, predicts="noise", **given).given(1),
        ScorePotential(network, predicts="velocity", **given).given(0),
        ScorePotential(network, predicts="noise", times=LOG_SNR, **given).given(0),
    ):
        with pytest.raises(ValueError, match="by another teacher"):
            train(dataclasses.replace(config), checkpoint=tmp_path / "c.safetensors", data=data, teacher=other)
    network.train()
    with pytest.raises(ValueError, match="is in training mode"):
        train(config, checkpoint=tmp_path / "d.safetensors", data=data, teacher=first)


def test_what_cannot_teach_is_refused(tmp_path):
    given = {"checkpoint": tmp_path / "c.safetensors"}
    with pytest.raises(TypeError, match="a teacher is one model, got theirs"):
        train(CONFIG, teacher=exact_teacher() ** 2, **given)
    other = ScorePotential(nn.Linear(3, 3), predicts="noise", schedule=SCHEDULE, event_shape=(3,))
    with pytest.raises(ValueError, match=r"points of shape \(3,\), the data of \(2,\)"):
        train(CONFIG, teacher=other, **given)
    with pytest.raises(ValueError, match="set agreement = 0"):
        train(dataclasses.replace(CONFIG, agreement=1.0), teacher=exact_teacher(), **given)
    assert not (tmp_path / "c.safetensors").exists()
