"""Denoising networks of every kind of prediction give the exact score, and are refused where an energy is needed."""

import blackjax
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bridges.blackjax import HMC, NUTS, from_blackjax
from bridges.pyro import HMC as PyroHMC
from bridges.pyro import DiffusionPrior, anneal_model
from ppl_diffusion import (
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    ScorePotential,
    anneal,
    guidance,
    mixture,
    observation,
    reverse_diffusion,
    tapestry,
)
from ppl_diffusion.models.conditions import Classes

SCHEDULES = {
    "cosine": NoiseSchedule.cosine(30),
    "exploding": NoiseSchedule.edm(20, sigma_max=20.0),
    "flow": NoiseSchedule(tuple(np.linspace(0.98, 0.02, 20)), tuple(np.linspace(0.02, 0.98, 20))),
}
SCHEDULE = SCHEDULES["cosine"]
KINDS = ("noise", "velocity", "sample", "score", "flow")


def modes(schedule=SCHEDULE, shift=0.0):
    means = [[-1.2 + shift, 0.3], [1.0, -0.5]]
    return GaussianMixture(
        means, [[0.3, 0.6], [0.5, 0.2]], weights=[0.3, 0.7], schedule=schedule, backend="torch", name="modes"
    )


class Exact(nn.Module):
    """The exact prediction for Gaussian mixtures, one for each condition; times are levels plus 100."""

    def __init__(self, kind, densities):
        super().__init__()
        self.kind, self.densities, self.calls = kind, densities, 0
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, time, condition=None):
        self.calls += 1
        assert len(time) == len(x)
        level = int(time[0]) - 100
        scores = torch.stack([p.score(x, level=level) for p in self.densities])
        score = scores[0 if condition is None else condition, torch.arange(len(x))]
        alpha, sigma = (scale(level) for scale in (self.densities[0].schedule.alpha, self.densities[0].schedule.sigma))
        noise = -sigma * score
        clean = (x - sigma * noise) / alpha
        return {
            "noise": noise,
            "velocity": alpha * noise - sigma * clean,
            "sample": clean,
            "score": score,
            "flow": noise - clean,
        }[self.kind]


def score_potential(kind="noise", schedule=SCHEDULE, *, shifts=(0.0,), says=None, **given):
    network = Exact(kind, [modes(schedule, shift) for shift in shifts])
    times = [100 + level for level in range(len(schedule))]
    return ScorePotential(
        network, predicts=says or kind, schedule=schedule, event_shape=(2,), times=times, name="theirs", **given
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_gives_the_exact_gradient_at_every_level(kind, schedule):
    exact, mine = modes(SCHEDULES[schedule]), score_potential(kind, SCHEDULES[schedule])
    x = np.random.default_rng(0).standard_normal((5, 10, 2))
    for level in range(len(mine.schedule)):
        due = exact.value_and_grad(x, level=level)[1]
        energy, found = mine.value_and_grad(x, level=level)
        assert energy.shape == (5, 10)
        assert not energy.any()
        torch.testing.assert_close(found, due, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.score(x, level=level), -due, rtol=1e-6, atol=1e-6)


def test_a_prediction_taken_for_another_kind_is_not_exact():
    """Negative control of the check above."""
    x = np.random.default_rng(0).standard_normal((10, 2))
    wrong = score_potential("velocity", says="noise").score(x, level=10)
    assert (wrong - modes().score(x, level=10)).abs().max() > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wrong_kind_of_prediction_is_noticed(schedule):
    schedule = SCHEDULES[schedule]
    for kind in KINDS:
        assert not score_potential(kind, schedule).complaints()
    assert "try predicts='noise'" in score_potential("noise", schedule, says="sample").complaints()[0] or (
        schedule is SCHEDULES["flow"]
    )
    assert score_potential("score", schedule, says="noise").complaints()
    assert score_potential("sample", schedule, says="noise").complaints()


def test_the_walk_tells_of_a_wrong_kind_of_prediction():
    with pytest.warns(SamplingWarning, match=r"is said to predict sample, .*try predicts='noise'"):
        reverse_diffusion(score_potential("noise", says="sample"), chains=5, seed=0)


def test_conditions_share_one_network_call():
    model = score_potential(shifts=(0.0, 0.5, 1.0), conditions=Classes(2))
    composed = model.given(0) * model.given(1) / model
    x = np.random.default_rng(0).standard_normal((7, 2))
    found = composed.score(x, level=5)
    assert model.network.calls == 1
    exact = [modes(shift=shift).score(x, level=5) for shift in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(found, exact[0] + exact[1] - exact[2])
    assert str(guidance(model.given(1), model, scale=2.0)) == "theirs[1]**2 / theirs"
    assert (model.given(0) / model.given(0)).exponents == (0.0,)
    assert model.given(1).identity != model.given(0).identity


def test_compositions_combine_the_scores_of_their_factors():
    theirs, exact, x = score_potential(), modes(), np.random.default_rng(0).standard_normal((7, 2))
    seen = observation(np.array([0.3, 0.1]), scale=0.2, schedule=SCHEDULE, backend="torch")
    energy, gradient = (theirs**2 * seen).value_and_grad(x, level=3)
    torch.testing.assert_close(gradient, (exact**2 * seen).value_and_grad(x, level=3)[1])
    torch.testing.assert_close(energy, seen.energy(x, level=3))  # of the factors that have one
    assert not (theirs * seen).has_energy


class Pictures(nn.Module):
    """Predicts the noise of standard normal pixels, which is alpha^2 v + sigma^2 = 1 times sigma x."""

    def __init__(self):
        super().__init__()
        self.sigmas = nn.Parameter(torch.tensor(SCHEDULE.sigmas, dtype=torch.float64))

    def forward(self, x, time):
        assert x.shape[1:] == (1, 4, 4)  # a picture of one channel has the channel's axis
        return self.sigmas[time].reshape(-1, 1, 1, 1) * x


def test_pictures_and_tapestries():
    theirs = ScorePotential(Pictures(), predicts="noise", schedule=SCHEDULE, event_shape=(4, 4))
    canvas = tapestry([theirs, theirs], (4, 6), [(0, 0), (0, 2)])
    x = np.random.default_rng(0).standard_normal((3, 4, 6))
    energy, gradient = canvas.value_and_grad(x, level=7)
    due = x.copy()
    due[..., 2:4] *= 2
    np.testing.assert_allclose(gradient, due)
    assert not canvas.has_energy
    assert not energy.any()


def test_what_needs_an_energy_is_refused_by_name_with_the_remedy():
    theirs = score_potential()
    ladder = Ladder.spaced(SCHEDULE, rungs=3, steps=1)
    walk = {"ladder": ladder, "chains": 4, "seed": 0}
    remedy = r"train\(config, teacher=\.\.\.\)"
    with pytest.raises(TypeError, match=rf"^theirs has no energy, .*score\(x, level=\.\.\.\).*{remedy}"):
        theirs.energy(np.zeros((1, 2)), level=0)
    with pytest.raises(TypeError, match=f"^theirs has no energy, .*{remedy}"):
        (theirs * modes())._evaluate_energy(torch.zeros(1, 2), 0)
    with pytest.raises(TypeError, match=f"mixtures need differences of energies.*theirs.*{remedy}"):
        mixture([theirs, modes()])
    with pytest.raises(TypeError, match=f"mixtures need differences of energies.*{remedy}"):
        0.5 * theirs**2 + 0.5 * modes()
    with pytest.raises(TypeError, match=f"weights need differences of energies.*{remedy}"):
        anneal(theirs, HMC(), resample=0.5, **walk)
    with pytest.raises(TypeError, match=f"NUTS.*need differences of energies.*{remedy}"):
        anneal(theirs, NUTS(), **walk)
    with pytest.raises(TypeError, match=f"NUTS.*need differences of energies.*{remedy}"):
        NUTS().bind(theirs)
    with pytest.raises(TypeError, match=f"need differences of energies.*{remedy}"):
        anneal(theirs, from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, step_size=0.1), **walk)
    with pytest.raises(TypeError, match=f"HMC.*need differences of energies.*{remedy}"):
        anneal(theirs, PyroHMC(), **walk)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"predicts": "eps"}, ValueError, "unknown prediction 'eps': use one of noise, velocity"),
        ({"times": range(1000)}, ValueError, r"times has the shape \(1000,\) for a schedule of 30 levels"),
        ({"event_shape": 2}, TypeError, r"try event_shape=\(2,\)"),
        ({"schedule": 30}, TypeError, "schedule must be a NoiseSchedule"),
        ({"network": lambda x, t: x}, TypeError, "network must be a torch module with parameters"),
        ({"network": nn.Identity()}, TypeError, "network must be a torch module with parameters"),
    ],
)
def test_bad_arguments_say_what_to_type(given, error, words):
    good = {"network": Exact("noise", [modes()]), "predicts": "noise", "schedule": SCHEDULE, "event_shape": (2,)}
    with pytest.raises(error, match=words):
        ScorePotential(**(good | given))


def test_a_network_of_another_shape_or_in_training_is_refused():
    class Tuple(nn.Linear):
        def forward(self, x, time):
            return (x,)

    model = ScorePotential(Tuple(2, 2), predicts="noise", schedule=SCHEDULE, event_shape=(2,))
    with pytest.raises(ValueError, match=r"the network must return the shape of its points, .*it returned tuple: wrap"):
        model.score(np.zeros((1, 2)), level=0)
    narrow = ScorePotential(Tuple(3, 3), predicts="noise", schedule=SCHEDULE, event_shape=(28, 28))
    narrow.network.forward = lambda x, time: nn.Linear(3, 3)(x)
    with pytest.raises(RuntimeError) as caught:
        narrow.score(np.zeros((2, 28, 28)), level=0)
    assert "called with points of shape (2, 1, 28, 28)" in caught.value.__notes__[0]
    model.network.train()
    with pytest.raises(ValueError, match=r"in training mode.*call network.eval\(\)"):
        model.score(np.zeros((1, 2)), level=0)
    with pytest.raises(ValueError, match="theirs is not conditional"):
        score_potential().given(3)


def test_a_pyro_model_takes_it_as_a_prior():
    """By the same proposals, chains go where they go by the energy; the acceptance differs by Simpson's error."""

    def run(prior):
        def model(y):
            x = pyro.sample("x", DiffusionPrior(prior))
            noise = pyro.sample("noise", dist.HalfNormal(0.5))
            pyro.sample("y", dist.Normal(x[..., 0], noise), obs=y)

        ladder = Ladder((0,), steps=3)  # from rung to rung, length scales would depend on all chains
        return anneal_model(model, (torch.tensor(0.4),), kernel=HMC(step=0.03), ladder=ladder, chains=20, seed=0)

    by_energy, by_score = run(modes()), run(score_potential())
    same = np.isclose(by_energy.positions, by_score.positions).all((1, 2))
    assert same.mean() > 0.8
    assert np.isnan(by_score.log_normaliser)
