"""Distances of pictures in features: closed forms, limits, and sets that must be told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.pictures.fidelity import frechet_distance, precision, precision_and_recall
from benchmarks.pictures.judge import Judge, fit, load_judge, look
from benchmarks.pictures.photographs import decoded


def gaussian(count, mean, scales, seed):
    return np.random.default_rng(seed).normal(mean, scales, size=(count, len(scales)))


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    one, other = gaussian(200_000, 0.0, [1.0, 2.0, 0.5], 0), gaussian(200_000, 0.3, [1.5, 1.0, 0.5], 1)
    exact = 3 * 0.3**2 + 0.5**2 + 1.0**2
    assert frechet_distance(one, other) == pytest.approx(exact, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other), rel=1e-6)


def test_precision_and_recall_tell_what_is_false_from_what_is_missing():
    real = gaussian(300, 0.0, [1.0] * 4, 0)
    same, few, far = gaussian(100, 0.0, [1.0] * 4, 1), 0.1 * gaussian(100, 0.0, [1.0] * 4, 2), real[:100] + 20.0
    found = {name: precision_and_recall(x, real) for name, x in (("same", same), ("few", few), ("far", far))}
    assert found["same"][0] > 0.6
    assert found["same"][1] > 0.6
    assert found["few"][0] > 0.9, "all are true ones"
    assert found["few"][1] < 0.1, "but most are missing"
    assert found["far"] == (0.0, 0.0)
    assert precision(real, real) == 1
    with pytest.raises(ValueError, match="give more than 3"):
        precision_and_recall(real[:3], real)


def test_precision_is_that_of_the_paper_in_a_case_by_hand():
    """On a line, the radius about a point is the distance to its third neighbour."""
    real = np.array([[0.0], [1.0], [2.0], [4.0], [10.0]])  # radii 4, 3, 2, 4, 9
    assert precision(np.array([[-4.0], [-4.1], [19.0], [19.1]]), real) == 0.5


def blobs(count, seed):
    """Digits of a kind: a bright square whose place is the label."""
    rng = np.random.default_rng(seed)
    pictures, labels = np.full((count, 28, 28), -1.0, np.float32), np.arange(count) % 10
    for x, label in zip(pictures, labels, strict=True):
        row, column = 4 + 14 * (label // 5), 2 + 5 * (label % 5)
        x[row : row + 5, column : column + 4] = rng.uniform(0.5, 1.0)
    return pictures, labels


@pytest.mark.long
def test_a_judge_learns():
    judge = fit(*blobs(640, 0), epochs=8, batch=64)
    pictures, labels = blobs(100, 1)
    assert float(np.mean(look(judge, pictures)[0] == labels)) > 0.9
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert float(np.mean(look(Judge().eval(), pictures)[0] == labels)) < 0.5, "untrained"


def test_the_shipped_judge_is_ready_and_clips():
    judge = load_judge()
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    x = np.random.default_rng(0).normal(size=(3, 28, 28)).astype(np.float32)
    labels, features = look(judge, 3 * x)
    assert (labels.shape, features.shape) == ((3,), (3, 32))
    np.testing.assert_array_equal(features, look(judge, np.clip(3 * x, -1, 1))[1])


def test_photographs_are_decoded_in_order():
    import io

    from PIL import Image

    files = []
    for value in (10, 200):
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file, "JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    found = decoded(np.concatenate(files), np.cumsum([0, *map(len, files)]))
    assert found.shape == (2, 3, 32, 32)
    assert [int(picture.mean()) for picture in found] == [10, 200]
