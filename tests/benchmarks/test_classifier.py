"""The benchmark of classifier guidance: its targets, its figures, and a small run of it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.harness import Record
from benchmarks.pictures import classifier, photo_judge
from benchmarks.pictures.classifier import (
    GIVEN,
    MERITS,
    above_reverse,
    digits,
    judged,
    main,
    means,
    photographs,
    scaled,
)
from benchmarks.pictures.tables import classifier as tabled
from ppl_diffusion import EnergyModel, NoiseSchedule, save_weights
from ppl_diffusion.models.classifier import ClassifierPotential
from ppl_diffusion.models.conditions import Classes
from ppl_diffusion.models.networks import build_network


def test_targets_are_the_unconditional_model_times_the_classifier(tmp_path):
    subject = digits(fake_mnist(tmp_path / "m.npz"))
    steered, given = subject.target("scale 4", 3), subject.target(GIVEN, 3)
    assert [str(steered), str(given)] == ["digits * classifier[3, scale=4]", "digits[3]"]
    prior, factor = steered.factors
    assert prior.token == subject.prior.conditions.anything
    assert isinstance(factor, ClassifierPotential)
    x = np.random.default_rng(0).normal(size=(2, 28, 28)).astype(np.float32)
    same = subject.prior * subject.classifier.given(3) ** 4
    for found, due in zip(steered.value_and_grad(x, level=30), same.value_and_grad(x, level=30), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-5, atol=1e-4)
    for kind in ("scale 4", GIVEN):
        finer, coarse = (subject.target(kind, 3, finer=times) for times in (2, 1))
        assert len(finer.schedule) == 2 * len(coarse.schedule) - 1
        due = coarse.value_and_grad(x, level=30)[1]
        np.testing.assert_allclose(finer.value_and_grad(x, level=60)[1], due, rtol=1e-3, atol=1e-3)


def test_figures_are_means_over_labels():
    rows = {str(i): dict.fromkeys(MERITS, float(i)) | {"evaluations": 200, "ancestors": 4 + i} for i in (1, 3)}
    row = means(rows)
    assert row["accuracy"] == {"mean": 2.0, "se": pytest.approx(1.0)}
    assert (row["evaluations"], row["ancestors"], row["labels"]) == (200, 6.0, 2)
    unadjusted = means({key: each | {"acceptance": None} for key, each in rows.items()})
    assert "acceptance" not in unadjusted
    content = {"scale 1, HMC": row, "scale 1, ULA": unadjusted, "real pictures": {**unadjusted, "labels": 7}}
    table = tabled({"chains": 6, "rows": content}).splitlines()
    assert table[0].startswith("| 7 labels, 6 pictures each | sampler |")
    assert table[2] == "| scale 1 | HMC | 200 | 2.00 | 2.0 ± 1.0 |  | " + "2.0 ± 1.0 | " * 3 + " |"
    assert table[3].startswith("| scale 1 | ULA | 200 |  |")
    resampled = tabled({"chains": 50, "rows": content}).splitlines()
    assert resampled[2].endswith("| 6.0 |")


def test_samplers_are_compared_with_reverse_diffusion_label_by_label():
    found = {
        "scale 1, reverse": {"0": {"accuracy": 0.2}, "1": {"accuracy": 0.8}, "2": {"accuracy": 0.5}},
        "scale 1, HMC": {"0": {"accuracy": 0.3}, "1": {"accuracy": 1.0}},
        "scale 4, HMC": {"0": {"accuracy": 0.3}},
    }
    row = above_reverse(found, "scale 1, HMC")["above reverse"]
    assert row == {"mean": pytest.approx(0.15), "se": pytest.approx(0.05)}, "the spread of labels does not count"
    assert not above_reverse(found, "scale 1, reverse")
    assert not above_reverse(found, "scale 4, HMC")


def fake_mnist(path, each=12):
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 255, (10 * each, 28, 28), dtype=np.uint8), np.repeat(np.arange(10), each)
    np.savez(path, x_test=pictures, y_test=labels, x_train=pictures, y_train=labels)
    return path


@pytest.mark.long
def test_a_small_run_gives_figures_and_is_resumed(tmp_path, monkeypatch):
    record, drawn = Record(tmp_path / "results", tmp_path / "runs"), []
    act = classifier.draw
    monkeypatch.setattr(classifier, "draw", lambda *given, **options: drawn.append(given[1:]) or act(*given, **options))
    options = {"mnist": fake_mnist(tmp_path / "m.npz"), "labels": [3], "scales": [1.0], "chains": 4, "every": 50}
    main(record, samplers=["HMC"], **options)
    main(record, samplers=["MALA", "HMC"], **options)
    assert [given[:2] for given in drawn] == [("scale 1", "HMC"), (GIVEN, "HMC"), ("scale 1", "MALA")]
    rows = record.read("classifier")["rows"]
    assert rows["scale 1, HMC"]["evaluations"] == 2 + 3 * 3
    assert 0 <= rows["scale 1, HMC"]["acceptance"]["mean"] <= 1
    assert rows["real pictures"]["labels"] == 1
    assert (tmp_path / "results" / "classifier.png").is_file()
    main(record, samplers=["HMC"], **{**options, "labels": [4]})
    rows = record.read("classifier")["rows"]
    assert [rows[name]["labels"] for name in ("scale 1, HMC", "scale 1, MALA")] == [2, 1], "of both runs"
    record.forget()
    main(record, samplers=["HMC"], **{**options, "labels": [4], "chains": 5})
    assert record.read("classifier")["rows"]["scale 1, HMC"]["labels"] == 1, "another setting begins anew"


def test_figures_of_blank_pictures_are_bad(tmp_path):
    subject = digits(fake_mnist(tmp_path / "m.npz"))
    real, drawn = np.random.default_rng(0).normal(size=(40, 32)), np.full((5, 28, 28), -1.0, np.float32)
    row = judged(subject, drawn, 3, real)
    assert (row["recall"], row["precision"]) == (0, 0)
    assert scaled([[0, 255]]).tolist() == [[-1.0, 1.0]]


def coloured(count, seed):
    """Pictures of four colours, which are their labels."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 4
    hues = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])[labels]
    noise = 0.3 * rng.normal(size=(count, 3, 32, 32))
    return (0.6 * hues[:, :, None, None] + noise).astype(np.float32), labels


def test_the_judge_of_photographs_learns_from_features():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 40, 7, stride=4), nn.ReLU()).requires_grad_(False)
    judge = photo_judge.fit(*coloured(200, 0), lambda x: layers(x).mean((2, 3)))
    pictures, labels = coloured(60, 1)
    found, features = judge.look(pictures)
    assert float(np.mean(found == labels)) > 0.95
    assert features.shape == (60, photo_judge.COMPONENTS)
    assert float(np.mean(judge.look(pictures[:, ::-1].copy())[0] == labels)) < 0.7, "colours swapped"
    np.testing.assert_array_equal(judge.look(2 * pictures)[0], judge.look(np.clip(2 * pictures, -1, 1))[0])


def test_photographs_need_files_and_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"to judge photographs: pip install 'ppl-diffusion\[photographs\]'"):
        photo_judge.load_network()
    with pytest.raises(ValueError, match="give --photographs FILE"):
        photographs(tmp_path / "none.npz", "cifar", "cifar_classifier")


@pytest.mark.slow
def test_photographs_are_drawn_and_judged(tmp_path, monkeypatch):
    """With untrained models and features: whether all parts fit together."""
    torch.manual_seed(0)
    common = {"schedule": NoiseSchedule.cosine(100), "event_shape": (3, 32, 32), "conditions": Classes(4)}
    options = {"kind": "unet", "shape": [3, 32, 32], "widths": [8], "blocks": 1, "classes": 4}
    judge_options = {**options, "kind": "cnn"}
    for name, form, given in (("prior", "inner_product", options), ("judge", "classifier", judge_options)):
        info = {"network": json.dumps(given), "description": "", "command": ""}
        model = EnergyModel(build_network(**given), form=form, name=name, info=info, **common)
        save_weights(model, tmp_path / f"{name}.safetensors")
    layers = nn.Conv2d(3, 40, 7, stride=8).requires_grad_(False)
    monkeypatch.setattr(classifier, "load_network", lambda: lambda x: layers(x).mean((2, 3)))
    monkeypatch.setattr(classifier, "LEARNED", 40)
    pictures, labels = (values[np.argsort(coloured(80, 0)[1], kind="stable")] for values in coloured(80, 0))
    shown = ((np.clip(pictures, -1, 1) + 1) * 127.5).astype(np.uint8)
    np.savez(tmp_path / "p.npz", x_train=shown, y_train=labels, x_test=shown, y_test=labels)
    record, files = (
        Record(tmp_path / "results", tmp_path / "runs"),
        [str(tmp_path / f"{n}.safetensors") for n in ("prior", "judge")],
    )
    walk = {"labels": [3], "scales": [1.0], "samplers": ["MALA"], "chains": 4, "every": 50}
    main(record, photos=tmp_path / "p.npz", model=files[0], classifier=files[1], **walk)
    rows = record.read("steered_photographs")["rows"]
    assert rows["scale 1, MALA"]["evaluations"] == 2 + 2 * 3 + 1
    assert rows["real pictures"]["accuracy"]["mean"] == 1, "also of data that are sorted by class"
    assert (tmp_path / "results" / "steered_photographs.png").is_file()
