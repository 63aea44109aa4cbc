"""Classifiers as factors: exact gradients, the exact posterior of a mixture, one call for several labels, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import moment_errors
from torch import nn

from bridges.blackjax import HMC
from bridges.torch_jax import to_jax
from ppl_diffusion import (
    EnergyModel,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    ScorePotential,
    anneal,
    classifier_potential,
    mixture,
    tapestry,
)
from ppl_diffusion.models.conditions import Classes, ConditionWarning
from ppl_diffusion.models.estimate import clean_estimate
from ppl_diffusion.models.networks import ClassifierCNN, EnergyUNet

SCHEDULE = NoiseSchedule.cosine(30)
MEANS, SCALES, WEIGHTS = [[-1.0, 0.3], [1.0, -0.5], [0.2, 1.5]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2]


def gaussians(*which):
    weights = np.array([WEIGHTS[i] for i in which])
    return GaussianMixture(
        [MEANS[i] for i in which],
        [SCALES[i] for i in which],
        weights=list(weights / weights.sum()),
        schedule=SCHEDULE,
        backend="torch",
        name="".join(map(str, which)),
    )


class Bayes(nn.Module):
    """The exact classifier of the component that a noised point is from; times are levels plus 100."""

    def __init__(self, *, late=0):
        super().__init__()
        self.log_weights = nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float64).log())
        self.parts, self.late, self.calls = [gaussians(i) for i in range(3)], late, 0

    def forward(self, x, time):
        self.calls += 1
        assert len(time) == len(x)
        level = min(int(time[0]) - 100 + self.late, len(SCHEDULE) - 1)
        energies = torch.stack([part.energy(x, level=level) for part in self.parts], dim=1)
        return self.log_weights - energies + 7.0  # logits have a constant that does not count


def bayes(label, network=None, **given):
    times = [100 + level for level in range(len(SCHEDULE))]
    return classifier_potential(
        network or Bayes(), label, schedule=SCHEDULE, times=times, event_shape=(2,), name="bayes", **given
    )


class Clean(nn.Module):
    """A smooth classifier of clean points."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, x):
        return self.layers(x)


def points(count=40):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 2)))


def slopes(potential, x, level, step=1e-5):
    """Central differences of the energy."""
    shifts = step * torch.eye(2, dtype=x.dtype)
    energy = [[potential.energy(x + sign * shift, level=level) for sign in (1, -1)] for shift in shifts]
    return torch.stack([(above - below) / (2 * step) for above, below in energy], dim=-1)


@pytest.mark.parametrize("level", range(0, 30, 5))
def test_prior_times_exact_classifier_is_the_component(level):
    prior, x = gaussians(0, 1, 2), points()
    for label in range(3):
        posterior, part = prior * bayes(label), gaussians(label)
        found, due = posterior.value_and_grad(x, level=level), part.value_and_grad(x, level=level)
        torch.testing.assert_close(found[0] - due[0], torch.full((40,), -np.log(WEIGHTS[label]), dtype=torch.float64))
        torch.testing.assert_close(found[1], due[1], rtol=1e-9, atol=1e-9)
    late = (prior * bayes(0, Bayes(late=3))).value_and_grad(x, level=level)[1]
    assert (late - gaussians(0).value_and_grad(x, level=level)[1]).abs().max() > 0.02, "wrong twin: three levels late"


def test_several_classifiers_several_labels_and_labels_to_avoid_are_expressions():
    prior, network, x = gaussians(0, 1, 2), Bayes(), points()
    zero, one = bayes(0, network), bayes(1, network)
    apart = prior.energy(x, level=4), zero.energy(x, level=4), one.energy(x, level=4)
    torch.testing.assert_close((prior * zero / one).energy(x, level=4), apart[0] + apart[1] - apart[2])
    either = mixture([prior * zero, prior * one], log_weights=[0.0, 0.0])
    pair = gaussians(0, 1).energy(x, level=4) - np.log(WEIGHTS[0] + WEIGHTS[1])
    torch.testing.assert_close(either.energy(x, level=4), pair)
    assert str(prior * zero / one) == "012 * bayes[0] / bayes[1]"
    assert (prior * zero / one).exponent == 1
    assert either.has_energy
    assert either.exponent == 1


def test_a_scale_is_a_power():
    network, x = Bayes(), points()
    scaled, powered = bayes(2, network, scale=4.0), bayes(2, network) ** 4
    for found, due in zip(scaled.value_and_grad(x, level=3), powered.value_and_grad(x, level=3), strict=True):
        torch.testing.assert_close(found, due)
    assert str(scaled) == "bayes[2, scale=4]"
    assert scaled.identity != bayes(2, network).identity
    assert bayes(2, network).identity == bayes(2, network).identity != bayes(2).identity


def test_labels_and_scales_of_one_network_are_one_call():
    network, x = Bayes(), points()
    expression = gaussians(0, 1, 2) * bayes(0, network) * bayes(1, network, scale=2.0) / bayes(2, network) ** 0.5
    alone = [bayes(i, network).value_and_grad(x, level=5) for i in range(3)]
    network.calls = 0
    energy, gradient = expression.value_and_grad(x, level=5)
    assert network.calls == 1
    prior = gaussians(0, 1, 2).value_and_grad(x, level=5)
    torch.testing.assert_close(energy, prior[0] + alone[0][0] + 2 * alone[1][0] - 0.5 * alone[2][0])
    torch.testing.assert_close(gradient, prior[1] + alone[0][1] + 2 * alone[1][1] - 0.5 * alone[2][1])
    other = bayes(0, Bayes())
    (expression * other).energy(x, level=5)
    assert (network.calls, other.network.calls) == (2, 2), "one of each; the door looked at the other one once"


def test_shapes_of_chains_and_levels_that_are_tensors():
    factor, x = bayes(1), points().reshape(2, 5, 4, 2)
    energy, gradient = factor.value_and_grad(x, level=3)
    assert (energy.shape, gradient.shape) == ((2, 5, 4), x.shape)
    assert energy.dtype == torch.float64
    for level in (-1, 0, 29, 30):
        ((found, slope),) = factor.evaluate_group([factor], [x], torch.tensor([level]))
        assert found.isnan().all() == slope.isnan().all() == (not 0 <= level < 30)
    torch.testing.assert_close(factor.evaluate_group([factor], [x], torch.tensor([3]))[0][1], gradient)


@pytest.mark.parametrize("level", [0, 2, 15, 29])
def test_gradients_are_those_of_the_energy(level):
    prior, x = gaussians(0, 1, 2), points(10)
    for factor in (bayes(1), classifier_potential(Clean(), 1, schedule=SCHEDULE, denoised=prior, scale=2.0)):
        found = factor.value_and_grad(x, level=level)
        torch.testing.assert_close(found[0], factor.energy(x, level=level))
        torch.testing.assert_close(found[1], slopes(factor, x, level), rtol=1e-6, atol=1e-7)


def test_a_gradient_that_forgets_the_estimate_is_wrong():
    """Wrong twin: the gradient at the estimate, as if the estimate moved as x / alpha does."""
    prior, x, network = gaussians(0, 1, 2), points(10), Clean()
    factor = classifier_potential(network, 1, schedule=SCHEDULE, denoised=prior)
    clean = clean_estimate(prior, x, 15).detach().requires_grad_()
    (slope,) = torch.autograd.grad(-torch.log_softmax(network(clean), 1)[:, 1].sum(), clean)
    assert (slope / SCHEDULE.alpha(15) - factor.value_and_grad(x, level=15)[1]).abs().max() > 0.1


def test_a_classifier_of_clean_points_is_evaluated_at_the_mean_clean_point():
    """For one Gaussian the mean is linear in x; at level 0 the classifier is evaluated at the point itself."""
    prior, x, network = gaussians(1), points(), Clean()
    factor = classifier_potential(network, 2, schedule=SCHEDULE, denoised=prior)
    for level in (0, 8, 29):
        alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
        share = alpha * SCALES[1] ** 2 / (alpha**2 * SCALES[1] ** 2 + sigma**2)
        mean = torch.tensor(MEANS[1], dtype=torch.float64)
        clean = mean + share * (x - alpha * mean)
        torch.testing.assert_close(clean_estimate(prior, x, level).detach(), clean)
        due = -torch.log_softmax(network(x if level == 0 else clean), 1)[:, 2]
        torch.testing.assert_close(factor.energy(x, level=level), due)
    assert factor.reference == prior.reference
    assert not factor.energy(x, level=8).requires_grad
    assert factor.energy(x.clone().requires_grad_(), level=8).requires_grad


def test_an_estimate_by_a_network_has_exact_gradients_too():
    torch.manual_seed(0)
    unet = EnergyUNet((1, 8, 8), widths=(8,), blocks=1).double()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    prior = EnergyModel(unet, form="squared_norm", schedule=SCHEDULE, event_shape=(8, 8))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    factor = classifier_potential(network, 0, schedule=SCHEDULE, denoised=prior)
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    direction = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    energy, gradient = factor.value_and_grad(x, level=12)
    above, below = (factor.energy(x + step * direction, level=12) for step in (1e-5, -1e-5))
    torch.testing.assert_close((above - below) / 2e-5, (gradient * direction).sum((1, 2)), rtol=1e-6, atol=1e-8)
    assert energy.shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("twin", [False, True])
def test_annealed_hmc_samples_the_component(twin):
    """By the same calls as without the classifier. The wrong twin takes the classifier for one of noisier points."""
    network = Bayes(late=15 if twin else 0)
    posterior, ladder = gaussians(0, 1, 2) * bayes(1, network), Ladder.full(SCHEDULE, steps=4)
    network.calls = 0
    trace = anneal(posterior, HMC(leapfrogs=3), ladder=ladder, chains=2000, draws=1, seed=0)
    assert network.calls == trace.gradient_calls == len(ladder) + 3 * (4 * len(ladder) + 1)
    x = trace.positions[:, -1]
    alpha, sigma = SCHEDULE.alpha(0), SCHEDULE.sigma(0)
    covariance = (alpha**2 * SCALES[1] ** 2 + sigma**2) * np.eye(2)
    worst = np.abs(moment_errors(x, alpha * np.array(MEANS[1]), covariance)).max()
    assert (worst > 6) if twin else (worst < 4), worst


def test_it_crosses_to_jax():
    prior, factor, x = gaussians(0, 1, 2), bayes(1), points().numpy()
    there = to_jax(prior * factor).value_and_grad(x.astype(np.float32), level=3)
    here = (prior * factor).value_and_grad(x.astype(np.float32), level=3)
    for found, due in zip(there, here, strict=True):
        np.testing.assert_allclose(np.asarray(found), due.numpy(), rtol=1e-4, atol=1e-4)


def test_pictures_without_a_channel_axis_get_one():
    torch.manual_seed(0)
    network, seen = ClassifierCNN((1, 8, 8), widths=(8,), classes=4), []
    network.register_forward_hook(lambda module, inputs, output: seen.append([tuple(i.shape) for i in inputs]))
    times = [SCHEDULE.log_snr(level) for level in range(30)]
    factor = classifier_potential(network, 3, schedule=SCHEDULE, times=times, event_shape=(8, 8))
    factor.energy(torch.zeros(5, 8, 8), level=4)
    assert seen[-1] == [(5, 1, 8, 8), (5,)]


def labelled(label=None):
    torch.manual_seed(0)
    model = EnergyModel(
        ClassifierCNN((1, 8, 8), widths=(8,), classes=4),
        form="classifier",
        schedule=SCHEDULE,
        event_shape=(8, 8),
        conditions=Classes(4),
        name="judge",
    )
    return model if label is None else model.given(label)


def test_a_classifier_of_this_library_is_the_same_factor():
    x = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    mine = labelled(3)
    times = [SCHEDULE.log_snr(level) for level in range(30)]
    theirs = classifier_potential(mine.network, 3, schedule=SCHEDULE, times=times, event_shape=(8, 8))
    for level in (0, 20):
        for found, due in zip(mine.value_and_grad(x, level=level), theirs.value_and_grad(x, level=level), strict=True):
            torch.testing.assert_close(found, due, rtol=1e-6, atol=1e-7)
    total = torch.stack([labelled(i).energy(x, level=5) for i in range(4)]).neg().exp().sum(0)
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64))
    assert (mine.exponent, str(mine), mine.has_energy) == (0, "judge[3]", True)
    assert not labelled().energy(x, level=5).any(), "any label has probability one"
    with pytest.warns(ConditionWarning, match=r"judge without a label is a factor of one: .*judge\.given\(0\)"):
        labelled() * mine


class Other(nn.Linear):
    """Returns what it is told to."""

    def __init__(self, act=lambda logits: logits, classes=3):
        super().__init__(2, classes)
        self.act = act

    def forward(self, x, time):
        return self.act(super().forward(x))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"network": lambda x, t: x}, TypeError, "network must be a torch module with parameters"),
        ({"network": nn.Identity()}, TypeError, "network must be a torch module with parameters"),
        ({"network": Clean()}, TypeError, r"called as forward\(x, time\), and takes \(x\).* give denoised=prior if"),
        ({"denoised": gaussians(0)}, TypeError, r"called as forward\(x\), and takes \(x, time\)"),
        ({"network": Clean(), "denoised": gaussians(0), "times": range(30)}, ValueError, "takes no time"),
        ({"network": Clean(), "denoised": "prior"}, TypeError, "denoised must be a torch potential"),
        ({"network": Clean(), "denoised": gaussians(0), "event_shape": (3,)}, ValueError, "leave it out"),
        ({"schedule": 30}, TypeError, "schedule must be a NoiseSchedule.*prior.schedule"),
        ({"times": range(1000)}, ValueError, r"times has the shape \(1000,\) for a schedule of 30 levels"),
        ({"event_shape": 2}, TypeError, r"try event_shape=\(2,\)"),
        ({"event_shape": None}, ValueError, r"give event_shape=prior\.event_shape"),
        ({"label": 3}, ValueError, "the network has no label 3: use 0 to 2"),
        ({"label": -1}, ValueError, "the network has no label -1: use 0 to 2"),
        ({"label": "cat"}, TypeError, "a label is a whole number, got 'cat'"),
        ({"label": True}, TypeError, "a label is a whole number"),
        ({"scale": 0.0}, ValueError, r"scale must be a positive number.*prior / classifier"),
        ({"scale": -1.0}, ValueError, r"scale must be a positive number.*prior / classifier"),
        ({"scale": "4"}, ValueError, "scale must be a positive number"),
        ({"network": Other(lambda y: (y,))}, ValueError, r"must return logits \(2, classes\).*it returned tuple"),
        ({"network": Other(lambda y: y.sum(1))}, ValueError, r"must return logits.*it returned \(2,\): wrap"),
        ({"network": Other(classes=1), "label": 0}, ValueError, "at least two classes"),
        ({"network": Other(lambda y: y.softmax(1))}, ValueError, "returns probabilities.*leave the softmax out"),
    ],
)
def test_bad_arguments_say_what_to_type(given, error, words):
    good = {"network": Other(), "label": 1, "schedule": SCHEDULE, "event_shape": (2,)}
    with pytest.raises(error, match=words) as caught:
        classifier_potential(**(good | given))
    assert "\n" not in str(caught.value)
    assert classifier_potential(**good).energy(torch.zeros(1, 2), level=0).shape == (1,)


class Noise(nn.Module):
    """A smooth network that predicts the noise; it is no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers, self.calls = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double(), 0

    def forward(self, x, time, condition):
        self.calls += 1
        given = condition.to(x.dtype).expand(len(x))[:, None]
        return 0.7 * x + self.layers(torch.cat([x, given + time[:, None] / 30], dim=1))


def theirs(network=None):
    return ScorePotential(
        network or Noise(), predicts="noise", schedule=SCHEDULE, event_shape=(2,), conditions=Classes(2), name="theirs"
    )


@pytest.mark.parametrize("level", [0, 8, 29])
def test_a_prior_of_which_only_the_score_is_known_gives_estimates_too(level):
    """Also guided, and times a density with an energy; each network is called once."""
    model, x = theirs(), points(6)
    for prior in (model, model.given(1) ** 2 / model, model.given(0) * model.given(1) / model * gaussians(0)):
        factor = classifier_potential(Clean(), 1, schedule=SCHEDULE, denoised=prior)
        model.network.calls = 0
        energy, gradient = factor.value_and_grad(x, level=level)
        assert model.network.calls == (level > 0)
        torch.testing.assert_close(gradient, slopes(factor, x, level), rtol=3e-5, atol=1e-7)
        due = x if level == 0 else clean_estimate(prior, x, level)
        torch.testing.assert_close(energy, -torch.log_softmax(Clean()(due), 1)[:, 1].detach())
        assert factor.has_energy
        assert not (prior * factor).has_energy
    clean = (x - SCHEDULE.sigma(8) ** 2 * model.value_and_grad(x, level=8)[1]) / SCHEDULE.alpha(8)
    torch.testing.assert_close(clean_estimate(model, x, 8).detach(), clean)


def test_priors_without_a_derivative_or_of_another_schedule_are_refused():
    class Blind(Noise):
        @torch.no_grad()
        def forward(self, x, time, condition):
            return super().forward(x, time, condition)

    blind = classifier_potential(Clean(), 1, schedule=SCHEDULE, denoised=theirs(Blind()))
    with pytest.raises(ValueError, match=r"the prediction of Blind is not differentiable.*leave torch.no_grad\(\) out"):
        blind.value_and_grad(points(), level=3)
    picture = ScorePotential(Blind(), predicts="noise", schedule=SCHEDULE, event_shape=(1, 2), conditions=Classes(2))
    canvas = tapestry([picture, picture], (2, 2), [(0, 0), (1, 0)])
    with pytest.raises(TypeError, match=r"the derivative of the score of .* is not known, only of energies"):
        classifier_potential(Clean(), 1, schedule=SCHEDULE, denoised=canvas)
    with pytest.raises(ValueError, match=r"012 has another schedule: give schedule=012\.schedule"):
        classifier_potential(Clean(), 1, schedule=NoiseSchedule.cosine(20), denoised=gaussians(0, 1, 2))


def test_a_network_in_training_is_refused():
    factor = bayes(1)
    factor.network.train()
    with pytest.raises(ValueError, match=r"bayes\[1\].*in training mode.*call network\.eval\(\)"):
        factor.energy(points(), level=0)
