"""Class shares: their errors are those of families, and the probabilities those of the classifier."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.posteriors.shares import described, probabilities
from ppl_diffusion import load


def test_errors_are_those_of_families():
    values = np.repeat(np.random.default_rng(0).random((50, 3)), 4, axis=0)
    row, alone, single = (
        described(values, family, gradients=7) for family in (np.arange(200) // 4, np.arange(200), np.zeros(200, int))
    )
    np.testing.assert_allclose(row["errors"], values.std(0) / 50**0.5, rtol=0.02)
    assert np.all(np.array(alone["errors"]) < 0.6 * np.array(row["errors"])), "relatives taken for independent"
    assert single["errors"] == [1.0] * 3
    assert (row["shares"], row["gradients"]) == (values.mean(0).tolist(), 7)


def test_probabilities_are_those_of_the_network():
    classifier, x = load("digits_classifier"), np.random.default_rng(1).normal(size=(5, 28, 28))
    found = probabilities(classifier, x, 60)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    with torch.no_grad():
        energies = [float(classifier.given(7).energy(torch.from_numpy(point), level=60)) for point in x]
    np.testing.assert_allclose(found[:, 7], np.exp(-np.array(energies)), rtol=1e-4)
