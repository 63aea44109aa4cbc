"""Class shares: their errors are those of families, and the probabilities those of the classifier."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.posteriors.shares import mean_of_families, probabilities
from ppl_diffusion import load


def test_errors_are_those_of_families():
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(50), 4)
    means = rng.normal(size=(400, 50, 1))
    found = [mean_of_families(np.repeat(one, 4, axis=0), families) for one in means]
    spread = np.std([mean[0] for mean, _ in found])
    told = np.sqrt(np.mean([error[0] ** 2 for _, error in found]))
    assert abs(told / spread - 1) < 0.15
    alone = np.arange(200)
    taken_apart = np.mean([mean_of_families(np.repeat(one, 4, axis=0), alone)[1][0] for one in means])
    assert taken_apart < 0.6 * spread, "the wrong twin, which takes relatives for independent"
    assert mean_of_families(means[0], np.zeros(50, dtype=int))[1] == 1


def test_probabilities_are_those_of_the_network():
    classifier, x = load("digits_classifier"), np.random.default_rng(1).normal(size=(5, 28, 28))
    found = probabilities(classifier, x, 60)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    with torch.no_grad():
        energies = [float(classifier.given(7).energy(torch.from_numpy(point), level=60)) for point in x]
    np.testing.assert_allclose(found[:, 7], np.exp(-np.array(energies)), rtol=1e-4)
