"""The benchmark of classifier guidance: its targets, its figures, and a small run of it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness import Record
from benchmarks.pictures import classifier
from benchmarks.pictures.classifier import CLASSIFIER, DIGITS, GIVEN, MERITS, judged, main, means, scaled, target
from benchmarks.pictures.judge import load_judge
from benchmarks.report import classifier as tabled
from ppl_diffusion.models.classifier import ClassifierPotential


def test_targets_are_the_unconditional_model_times_the_classifier():
    steered, given = target("scale 4", 3), target(GIVEN, 3)
    assert [str(steered), str(given)] == ["digits * classifier[3, scale=4]", "digits[3]"]
    prior, factor = steered.factors
    assert prior.token == DIGITS.conditions.anything
    assert isinstance(factor, ClassifierPotential)
    x = np.random.default_rng(0).normal(size=(2, 28, 28)).astype(np.float32)
    same = DIGITS * CLASSIFIER.given(3) ** 4
    for found, due in zip(steered.value_and_grad(x, level=30), same.value_and_grad(x, level=30), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-5, atol=1e-4)


def test_figures_are_means_over_labels():
    rows = {str(i): dict.fromkeys(MERITS, float(i)) | {"evaluations": 200, "ancestors": 4 + i} for i in (1, 3)}
    row = means(rows)
    assert row["accuracy"] == {"mean": 2.0, "se": pytest.approx(1.0)}
    assert (row["evaluations"], row["ancestors"], row["labels"]) == (200, 6.0, 2)
    unadjusted = means({key: each | {"acceptance": None} for key, each in rows.items()})
    assert "acceptance" not in unadjusted
    table = tabled({"rows": {"scale 1, HMC": row, "scale 1, ULA": unadjusted}}).splitlines()
    assert table[2] == "| scale 1 | HMC | 200 | 2.00 | " + "2.0 ± 1.0 | " * 4 + "2 |"
    assert table[3].startswith("| scale 1 | ULA | 200 |  |")


def fake_mnist(path, each=12):
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 255, (10 * each, 28, 28), dtype=np.uint8), np.repeat(np.arange(10), each)
    np.savez(path, x_test=pictures, y_test=labels, x_train=pictures, y_train=labels)
    return path


@pytest.mark.slow
def test_a_small_run_gives_figures_and_is_resumed(tmp_path, monkeypatch):
    record, drawn = Record(tmp_path / "results", tmp_path / "runs"), []
    act = classifier.draw
    monkeypatch.setattr(classifier, "draw", lambda *given, **options: drawn.append(given) or act(*given, **options))
    options = {"mnist": fake_mnist(tmp_path / "m.npz"), "labels": [3], "scales": [1.0], "chains": 4, "every": 50}
    main(record, samplers=["reverse"], **options)
    main(record, samplers=["reverse", "HMC"], **options)
    assert [given[:2] for given in drawn] == [
        ("scale 1", "reverse"),
        (GIVEN, "reverse"),
        ("scale 1", "HMC"),
        (GIVEN, "HMC"),
    ]
    rows = record.read("classifier")["rows"]
    assert rows["scale 1, reverse"]["evaluations"] == 100
    assert rows["scale 1, HMC"]["evaluations"] == 2 + 3 * 3
    assert 0 <= rows["scale 1, HMC"]["acceptance"]["mean"] <= 1
    assert rows["real digits"]["labels"] == 1
    assert (tmp_path / "results" / "classifier.png").is_file()


def test_pictures_of_the_class_are_nearer_to_it_than_others():
    """The judge's figures tell pictures of the class from blank ones."""
    judge, rng = load_judge(), np.random.default_rng(0)
    real, drawn = rng.normal(size=(40, 32)), np.full((5, 28, 28), -1.0, np.float32)
    row = judged(drawn, 3, judge, real)
    assert row["recall"] == 0
    assert scaled([[0, 255]]).tolist() == [[-1.0, 1.0]]
