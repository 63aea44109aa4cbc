"""Observed sites that are not linear in ``x``: the ladder keeps all modes, and counts them right."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bridges.blackjax as batched
from bridges.pyro import HMC, DiffusionPrior, JointPotential, anneal_model, from_model
from bridges.pyro.curved import standard_points
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal

SCHEDULE = NoiseSchedule.cosine(100)
ONE = GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="torch", name="one")
THREE = GaussianMixture(
    [[-0.9], [0.3], [1.1]], [0.25, 0.4, 0.2], weights=[0.2, 0.3, 0.5], schedule=SCHEDULE, backend="torch", name="three"
)
GRID = np.linspace(-5, 5, 1501)[:, None]


@pytest.fixture(autouse=True)
def float64_models():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def observed(prior, see, y, scale, family=dist.Normal):
    def model():
        x = pyro.sample("x", DiffusionPrior(prior))
        pyro.sample("y", family(see(x), scale), obs=torch.as_tensor(y))

    return model


def overlaps(joint):
    """Effective share of each density of the ladder as a sample of the next, on a grid in one dimension."""
    log_p = [-joint.energy(GRID, level=level).numpy() for level in (0, 1, *range(2, 100, 3))]
    p = [np.exp(values - values.max()) for values in log_p]
    found = []
    for cleaner, noisier in itertools.pairwise(p):
        here = noisier > 0
        ratio = cleaner[here] / noisier[here]
        found.append((noisier[here] * ratio).sum() ** 2 / (noisier[here] * ratio**2).sum() / noisier.sum())
    return np.array(found)


CURVES = {
    "sin 4x": (THREE, lambda x: torch.sin(4 * x[0]), 0.6, 0.05),
    "sin 3x": (ONE, lambda x: torch.sin(3 * x[0]), 0.6, 0.1),
    "abs": (ONE, lambda x: x[0].abs(), 1.0, 0.15),
    "cubic": (THREE, lambda x: x[0] ** 3 - x[0], 0.1, 0.1),
    "bump": (THREE, lambda x: torch.exp(-((2 * x[0]) ** 2)), 0.3, 0.1),
    "tanh": (ONE, lambda x: torch.tanh(2 * x[0]), -0.4, 0.1),
    "three views": (ONE, lambda x: torch.stack([torch.sin(3 * x[0]), x[0] ** 2, x[0].abs()]), [0.6, 0.7, 0.8], 0.2),
    "a scale": (ONE, lambda x: 0 * x[0], 0.3, None),
}


@pytest.mark.parametrize("name", CURVES)
def test_neighbouring_densities_overlap(name):
    """Negative control: linearised at one point, a sine, a modulus and a bump decide early for one mode."""
    prior, see, y, scale = CURVES[name]
    model = observed(prior, see, y, scale)
    if scale is None:

        def model():
            x = pyro.sample("x", DiffusionPrior(prior))
            pyro.sample("y", dist.Normal(0.0, 0.05 + x[0].abs()), obs=torch.tensor(y))

    joint = JointPotential(model, likelihood="widened")
    assert joint.observations.curved.curved == ("y",)
    assert overlaps(joint).min() > 0.3
    if name in ("sin 4x", "sin 3x", "abs"):
        joint.observations.curved = None
        assert overlaps(joint).min() < 0.3, "the negative control"


@pytest.mark.parametrize("name", ["log", "sqrt", "a scale"])
def test_a_site_that_is_not_defined_everywhere_keeps_its_chains(name):
    """There is no mean over points of which some have none: the site is widened at one point, as before."""
    prior = GaussianMixture([[1.0]], [0.6], schedule=SCHEDULE, backend="torch")

    def model():
        x = pyro.sample("x", DiffusionPrior(prior))
        loc, scale = {"log": (x[0].log(), 0.1), "sqrt": (x[0].sqrt(), 0.1), "a scale": (x[0], 0.3 * x[0].sqrt())}[name]
        pyro.sample("y", dist.Normal(loc, scale, validate_args=False), obs=torch.tensor(0.2))
        pyro.sample("z", dist.Normal(torch.sin(2 * x[0]), 0.5), obs=torch.tensor(0.2))

    joint = JointPotential(model, likelihood="widened")
    assert joint.observations.curved.curved == ("z",)
    assert set(joint.observations.curved.inflations) == {"z"}
    for level in (99, 50, 20, 0):
        x = prior.sample(400, level=level, seed=0)
        inside = joint.energy(x, level=level).isfinite().double().mean()
        assert inside > 0.9, (level, inside)


@pytest.mark.parametrize("right", [True, False])
def test_modes_of_a_sine_hold_what_they_should(right):
    joint = JointPotential(observed(*CURVES["sin 3x"]), likelihood="widened")
    if not right:
        joint.observations.curved = None
    ladder = Ladder.spaced(SCHEDULE, rungs=25, steps=3)
    trace = anneal_model(joint, kernel=batched.HMC(), ladder=ladder, chains=800, seed=0, resample=0.5)
    x = trace.sites["x"][:, 0, 0]
    grid = np.linspace(-6, 6, 40001)
    density = np.exp(-joint.energy(grid[:, None], level=0).numpy())
    density /= density.sum()
    ess = float(np.asarray(trace.stats.ess)[-1])
    errors = []
    for low, high in ((-np.inf, -0.5), (-0.5, 0.4), (0.4, np.inf)):
        exact = density[(grid > low) & (grid <= high)].sum()
        errors.append(((x > low) & (x <= high)).mean() - exact)
        errors[-1] /= np.sqrt(exact * (1 - exact) / min(ess, 800))
    assert (np.abs(errors).max() < 4) == right, errors


def test_points_are_those_of_a_standard_normal():
    for size in (1, 2, 5, 40):
        z = standard_points(size)
        assert z.mean(0).abs().max() < 1e-12
        assert (z**2).mean(0).numpy() == pytest.approx(1.0)
        if size < 8:
            torch.testing.assert_close(z.T @ z / len(z), torch.eye(size))
    p = stats.kstest(standard_points(40).flatten().numpy(), "norm").pvalue
    assert p > 1e-3


def test_a_linear_site_beside_one_that_is_not_stays_exact():
    """Both are seen together: what the linear one says of ``x`` is the exact density of Gaussian data."""

    def model(far):
        x = pyro.sample("x", DiffusionPrior(ONE))
        pyro.sample("y", dist.Normal(2 * x, 0.3).to_event(1), obs=torch.tensor([0.4]))
        pyro.sample("z", dist.Normal(x[0] ** 2, far), obs=torch.tensor(0.4))

    level, x = 60, torch.linspace(-2, 2, 9)[:, None]
    found = JointPotential(model, (1e6,), likelihood="widened").energy(x, level=level)
    alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
    mean = alpha * x[:, 0]
    exact = 0.5 * x[:, 0] ** 2 - dist.Normal(2 * mean, (4 * sigma**2 + 0.3**2) ** 0.5).log_prob(torch.tensor(0.4))
    torch.testing.assert_close(found - found[0], exact - exact[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.Cauchy])
def test_energies_of_curved_sites_have_their_gradients(family):
    joint = JointPotential(observed(*CURVES["sin 3x"], family), likelihood="widened")
    x = torch.linspace(-2, 2, 5)[:, None]
    for level in (0, 3, 50):
        energy, gradient = joint.value_and_grad(x, level=level)
        slope = (joint.energy(x + 1e-5, level=level) - joint.energy(x - 1e-5, level=level)) / 2e-5
        torch.testing.assert_close(slope, gradient[:, 0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.stack([joint.energy(row, level=level) for row in x]), energy)


def test_a_factor_is_widened_as_a_model_is():
    _, see, y, scale = CURVES["sin 3x"]

    def factor():
        flat = dist.ImproperUniform(dist.constraints.real, (), (1,))
        x = pyro.sample("x", flat)
        pyro.sample("y", dist.Normal(see(x), scale), obs=torch.tensor(y))

    product = ONE * from_model(factor, schedule=SCHEDULE, reference=ONE.reference)
    joint = JointPotential(observed(*CURVES["sin 3x"]), likelihood="widened")
    x = torch.linspace(-2, 2, 9)[:, None]
    for level in (0, 40, 99):
        apart = product.energy(x, level=level) - joint.energy(x, level=level)
        torch.testing.assert_close(apart, apart[:1].expand(9))


@pytest.mark.parametrize(
    ("see", "resample", "words"),
    [
        (CURVES["sin 4x"][1], None, "y of model is not linear in x.*give resample=0.5"),
        (CURVES["sin 4x"][1], 0.5, "y of model is not linear in x.*more chains"),
        (lambda x: x[0], None, ""),
        (lambda x: x[0], 0.5, ""),
    ],
)
def test_a_walk_that_may_miscount_modes_names_the_site(see, resample, words):
    """Two rungs are too few; a site that is linear in ``x`` is not blamed."""
    given = {"ladder": Ladder((99, 0), steps=1), "chains": 40, "seed": 0, "resample": resample}
    model = observed(THREE, see, 0.6, 0.01)

    def told(act):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
        return [str(one.message) for one in caught if "not linear" in str(one.message)]

    for act in (
        lambda: anneal_model(model, kernel=HMC(), **given),
        lambda: anneal(JointPotential(model, likelihood="widened"), batched.HMC(), **given),
    ):
        notes = told(act)
        assert len(notes) == bool(words)
        assert all(re.search(words, note) for note in notes)
