"""Features of Pyro models: masks, plates, missing data, deterministic sites, branches; densities equal Pyro's."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.contrib.autoname import name_count
from pyro.infer.reparam import LocScaleReparam
from scipy import stats
from scipy.special import betaln

import bridges.blackjax as batched
from bridges.arviz import diagnose, to_inference_data
from bridges.pyro import HMC, NUTS, DiffusionPrior, JointPotential, anneal_model, at_level, from_model
from bridges.pyro.coordinates import LogOdds
from bridges.torch_jax import to_jax
from ppl_diffusion import (
    EnergyFunction,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    Trace,
    anneal,
    load,
    mixture,
)
from ppl_diffusion.potentials.leaf import Leaf

SCHEDULE = NoiseSchedule.cosine(20)
PRIOR = GaussianMixture([[0.0, 0.0]], [1.0], schedule=SCHEDULE, backend="torch", name="prior")
WIDE = GaussianMixture([[0.0] * 20], [1.0], schedule=SCHEDULE, backend="torch", name="wide")
KEPT = torch.tensor([True, False])
Y = torch.tensor([0.5, 0.1])
QUICK = {"kernel": batched.HMC(), "ladder": Ladder((19, 10, 0), steps=2), "chains": 4, "seed": 0}


def masked_prior():
    x = pyro.sample("x", DiffusionPrior(PRIOR).mask(False))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)


def masked_rows():
    with pyro.plate("n", 2), poutine.mask(mask=KEPT):
        pyro.sample("x", DiffusionPrior(PRIOR).expand((2, 3)).to_event(1))


def scaled_rows():
    with pyro.plate("n", 3), poutine.scale(scale=torch.tensor([1.0, 0.5, 2.0])):
        x = pyro.sample("x", DiffusionPrior(PRIOR).expand((3, 3)).mask(torch.eye(3) > 0).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 0.5), obs=torch.tensor(0.3))


def nothing_seen():
    pyro.sample("x", DiffusionPrior(PRIOR))


@pytest.mark.parametrize("model", [masked_prior, masked_rows, scaled_rows, nothing_seen])
def test_energies_and_gradients_are_minus_what_pyro_sums(model):
    joint = JointPotential(model, likelihood="widened")
    (site,) = joint.sites
    flat = torch.randn(2, *joint.event_shape, dtype=torch.float64)
    energy, gradient = joint.value_and_grad(flat, level=0)
    for i, x in enumerate(flat.float()):
        conditioned = poutine.condition(model, {"x": x.reshape(site.shape)})
        total = poutine.trace(conditioned).get_trace().log_prob_sum()
        torch.testing.assert_close(-total.double(), energy[i], rtol=1e-4, atol=1e-4)
    rise = joint.energy(flat + 1e-4 * gradient, level=0) - joint.energy(flat - 1e-4 * gradient, level=0)
    torch.testing.assert_close(rise / 2e-4, (gradient**2).sum(1), rtol=2e-2, atol=1e-2)


def missing():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.deterministic("twice", 2 * x)
    with pyro.plate("d", 2):
        pyro.sample("y", dist.Normal(x, 0.5), obs=Y, obs_mask=KEPT)


def test_missing_data_are_not_reported_as_seen():
    trace = anneal_model(missing, **QUICK)
    assert set(trace.groups["observed_data"]) == set(trace.groups["log_likelihood"]) == {"y_observed"}
    likelihood = trace.groups["log_likelihood"]["y_observed"]
    assert np.all(likelihood[..., 0] != 0)
    assert np.all(np.isnan(likelihood[..., 1]))
    np.testing.assert_allclose(trace.sites["twice"], 2 * trace.sites["x"], rtol=1e-6)
    filled = np.where(KEPT, Y, trace.sites["y_unobserved"])
    np.testing.assert_allclose(trace.sites["y"], filled, rtol=1e-6)


@pytest.mark.slow
def test_recorded_values_are_sites_and_no_likelihoods():
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        with pyro.plate("d", 2):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x + b, 0.5), obs=Y)

    trace = anneal_model(poutine.reparam(model, config={"b": LocScaleReparam(0.0)}), **QUICK | {"chains": 8}, draws=30)
    assert {"x", "b", "b_decentered"} == set(trace.sites)
    np.testing.assert_allclose(trace.sites["b"], trace.sites["b_decentered"], rtol=1e-5)
    data = to_inference_data(trace)
    assert data["posterior"]["b"].dims == ("chain", "draw", "d")
    assert [*data["log_likelihood"]] == ["y"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "d")


@pytest.mark.slow
def test_a_sites_name_is_its_own(tmp_path):
    """Site names may equal those of scalar summaries of large events or of groups in a file."""

    def model():
        x = pyro.sample("x", DiffusionPrior(WIDE))
        mean = pyro.sample("mean", dist.Normal(5.0, 0.1))
        with pyro.plate("net/row", 2):
            pyro.sample("net/50%", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + mean, 0.5).to_event(1), obs=torch.full((20,), 5.0))

    trace = anneal_model(model, **QUICK, draws=25)
    posterior = to_inference_data(trace)["posterior"]
    np.testing.assert_array_equal(posterior["mean"], trace.sites["mean"])
    assert posterior["net.50%"].dims == ("chain", "draw", "net.row")
    assert "mean" in diagnose(trace).draws["variable"]
    trace.save(tmp_path / "run.nc")
    again = Trace.load(tmp_path / "run.nc")
    assert set(again.sites) == set(trace.sites)
    np.testing.assert_array_equal(again.sites["net/50%"], trace.sites["net/50%"])


def test_data_that_are_one_number_for_a_plate_are_not_filled_up():
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(x[0], 0.5), obs=torch.zeros(1))
            pyro.sample("z", dist.Normal(x[1], 0.5), obs=torch.zeros(3))

    data = to_inference_data(anneal_model(model, **QUICK))
    assert data["observed_data"]["y"].shape == (1,)
    assert data["log_likelihood"]["y"].shape == (4, 1, 3)
    assert data["observed_data"]["z"].dims == ("n",)


def branching():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.sample("y", dist.Normal(x[0] if x[0].item() > 0 else -x[0], 0.5), obs=Y[0])


def test_pyros_kernels_walk_on_models_that_branch():
    trace = anneal_model(branching, **QUICK | {"kernel": HMC()}, draws=4)
    assert np.all(np.isfinite(trace.sites["x"]))
    assert trace.stats.acceptance_rate.mean() > 0.3


def seen_through_noise():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=Y)


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kernel", [batched.HMC(), HMC()])
def test_gradients_are_taken_where_the_caller_wants_none(kernel, surroundings):
    expected = anneal_model(seen_through_noise, **QUICK | {"kernel": kernel})
    with surroundings():
        trace = anneal_model(seen_through_noise, **QUICK | {"kernel": kernel})
        made_inside = torch.randn(3, 2)
        energy, gradient = load("ring").value_and_grad(made_inside, level=3)
    np.testing.assert_array_equal(trace.positions, expected.positions)
    assert not energy.requires_grad
    torch.testing.assert_close(gradient, load("ring").value_and_grad(made_inside, level=3)[1])  # outside of it too


class OnAnAccelerator(Leaf):
    """A flat density that requires points on its device, as a network on a GPU does."""

    backend, event_shape, schedule, name = "torch", (2,), SCHEDULE, "elsewhere"
    device = torch.device("meta")

    def _evaluate(self, x, level):
        return self._evaluate_energy(x, level), torch.zeros(x.shape, dtype=x.dtype)

    def _evaluate_energy(self, x, level):
        assert x.device == self.device
        return torch.zeros(x.shape[:-1], dtype=torch.float64)


@pytest.mark.parametrize("kernel", [batched.HMC(), HMC()])
def test_models_run_on_the_cpu_wherever_the_networks_of_their_priors_are(kernel):
    def model(y):
        x = pyro.sample("x", DiffusionPrior(OnAnAccelerator()))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    trace = anneal_model(model, (Y,), **QUICK | {"kernel": kernel}, draws=2)
    assert np.all(np.isfinite(trace.sites["x"]))
    with pytest.raises(ValueError, match=r"data of y are on meta.*give y\.cpu\(\)"):
        anneal_model(model, (Y.to("meta"),), **QUICK | {"kernel": kernel})


def test_a_prior_elsewhere_takes_points_from_here():
    assert DiffusionPrior(OnAnAccelerator()).log_prob(torch.zeros(3, 2)).tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [batched.HMC(), HMC()])
def test_the_default_device_of_torch_is_not_where_models_run(kernel):
    def model(y):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        noise = pyro.sample("noise", dist.HalfNormal(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    def likelihood(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        pyro.sample("y", dist.Normal(x, torch.tensor(0.5)).to_event(1), obs=y)

    def walks():
        of_model = anneal_model(model, (Y,), **QUICK | {"kernel": kernel})
        factor = from_model(likelihood, (Y,), schedule=PRIOR.schedule)
        return of_model.positions, anneal(PRIOR * factor, **QUICK | {"kernel": kernel}).positions

    as_usual = walks()
    torch.set_default_device("meta")
    try:
        elsewhere = walks()
    finally:
        torch.set_default_device(None)
    np.testing.assert_array_equal(elsewhere[0], as_usual[0])
    np.testing.assert_array_equal(elsewhere[1], as_usual[1])


LINE = GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="torch")
THREE, GAPS = torch.tensor([0.3, 0.9, -0.4]), torch.tensor([True, False, True])
OUTER = torch.tensor([True, True, False])


def start_weights(model, level=0, likelihood="rescaled"):
    """Return the initial log-weights of a hundred chains."""
    joint = JointPotential(model, (), likelihood=likelihood)
    x, log_density = joint.start(level, chains=100, rng=np.random.default_rng(0))
    return -joint.energy(torch.from_numpy(x), level=level).numpy() - log_density


def gaps(*, unit=lambda x: dist.Normal(x, 1.0), outer=True, times=1):
    """A model of three values around ``x``; the second is missing, and ``outer`` masks further ones."""

    def model():
        x = pyro.sample("x", DiffusionPrior(LINE))
        for i in range(times):
            with pyro.plate(f"d{i}", 3), poutine.mask(mask=outer):
                pyro.sample("y", unit(x[0]), obs=THREE, obs_mask=GAPS)

    return model


def values(kept):
    """A model of only the values around ``x`` with the indices ``kept``."""

    def model():
        x = pyro.sample("x", DiffusionPrior(LINE))
        pyro.sample("y", dist.Normal(x[0].expand(len(kept)), 1.0).to_event(1), obs=THREE[kept])

    return model


@pytest.mark.long
def test_missing_data_leave_the_evidence_as_it_is_without_them():
    # Two values of variance 1 around x, whose variance includes the noise of level 0: a two-dimensional Gaussian.
    variance = SCHEDULE.alpha(0) ** 2 + SCHEDULE.sigma(0) ** 2
    covariance = torch.eye(2) + variance
    exact = float(dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.tensor([0.3, -0.4])))
    found = [
        anneal_model(gaps(), kernel=batched.HMC(), ladder=Ladder.full(SCHEDULE, steps=2), chains=300, seed=seed)
        for seed in range(4)
    ]
    assert min(float(trace.stats.ess[0]) for trace in found) > 290
    evidence = np.array([trace.log_normaliser for trace in found])
    assert abs(evidence.mean() - exact) < 4 * max(evidence.std(ddof=1) / 2, 0.01), (evidence, exact)


GAPPED = {
    "plain": (gaps(), [0, 2]),
    "an outer mask": (gaps(outer=OUTER), [0]),
    "a mask of its own": (gaps(unit=lambda x: dist.Normal(x.expand(3), 1.0).mask(OUTER)), [0]),
    "reparametrised": (poutine.reparam(gaps(), {"y_unobserved": LocScaleReparam(0.0)}), [0, 2]),
    "renamed": (name_count(gaps(times=2)), [0, 2, 0, 2]),
}


@pytest.mark.parametrize("level", [0, 10])
@pytest.mark.parametrize("kind", GAPPED)
def test_chains_weigh_with_gaps_what_they_weigh_without_the_missing_values(kind, level):
    model, kept = GAPPED[kind]
    np.testing.assert_allclose(start_weights(model, level), start_weights(values(kept), level), atol=1e-7)


@pytest.mark.slow
def test_values_that_are_seen_leave_the_weights_of_every_path_alone():
    """Fillers of observed values do not depend on the level, so the weights lose nothing by them."""
    options = {"kernel": batched.HMC(), "ladder": Ladder.full(SCHEDULE, steps=1), "chains": 100, "seed": 0}

    def model():
        x = pyro.sample("x", DiffusionPrior(LINE))
        with pyro.plate("d", 3):
            pyro.sample("y", dist.Normal(x[0], 1.0), obs=THREE, obs_mask=torch.ones(3, dtype=torch.bool))

    found = anneal_model(model, **options, likelihood="tempered")
    assert float(found.stats.ess.min()) > 50


@pytest.mark.parametrize("likelihood", ["tempered", "rescaled", "tweedie", "widened"])
@pytest.mark.parametrize("dependent", [True, False])
def test_priors_that_depend_on_x_are_told_of_where_they_have_no_path(likelihood, dependent):
    def model():
        x = pyro.sample("x", DiffusionPrior(LINE))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        u = pyro.sample("u", dist.Normal(x[0] if dependent else 0.0, scale))
        pyro.sample("y", dist.Normal(u + x[0], 1.0), obs=torch.tensor(0.7))

    notes = JointPotential(model, likelihood=likelihood).notes
    assert ["depend on x (u)" in note for note in notes] == [True] * (dependent and likelihood != "widened")


def test_sites_that_are_named_as_missing_data_are_what_they_are():
    def model(name):
        x = pyro.sample("x", DiffusionPrior(LINE))
        u = pyro.sample(name, dist.Normal(0.0, 1.0))
        pyro.sample("z_observed", dist.Normal(u + x[0], 1.0), obs=torch.tensor(2.0))

    named, plain = (start_weights(lambda name=name: model(name)) for name in ("z_unobserved", "u"))
    np.testing.assert_array_equal(named, plain)


@pytest.mark.parametrize("powers", [[0.1] * 3, [0.5] * 10, [3.0, 0.02]])
def test_bounded_sites_start_as_they_are_distributed(powers):
    """Without data the start density is the target, so weights are 1 even for values close to an edge."""

    def model():
        pyro.sample("x", DiffusionPrior(LINE))
        with pyro.plate("n", 2):
            pyro.sample("q", dist.Dirichlet(torch.tensor(powers)))
            pyro.sample("p", dist.Beta(*torch.tensor(powers[-2:])))
        pyro.sample("r", dist.Beta(torch.full((2,), powers[0]), powers[1]).to_event(1))

    np.testing.assert_allclose(start_weights(model, level=19), 0, atol=1e-6)


def test_log_odds_are_those_of_pyros_distributions():
    """Compare density and Jacobian where float64 suffices, and the means and variances of draws."""
    torch.manual_seed(0)
    for fn in (
        dist.Beta(torch.tensor([0.7, 3.0]).double(), 2.0),
        dist.Dirichlet(torch.tensor([0.7, 3.0, 1.0]).double()),
    ):
        odds, transform = LogOdds(fn), torch.distributions.biject_to(fn.support)
        u = odds.sample((20_000,))
        value = transform(u)
        torch.testing.assert_close(odds.log_prob(u[:9]), fn.log_prob(value[:9]))
        torch.testing.assert_close(odds.log_jacobian(u[:9]), transform.log_abs_det_jacobian(u[:9], value[:9]))
        error = value.std(0) / len(value) ** 0.5
        assert ((value.mean(0) - fn.mean).abs() < 4.5 * error).all()
        assert ((value.var(0) / fn.variance - 1).abs() < 0.05).all()


@pytest.mark.slow
def test_mass_close_to_one_is_not_lost():
    """A tenth of Beta(.1, .1) rounds to 1 in float32, but is resolved in unconstrained coordinates."""

    def model():
        x = pyro.sample("x", DiffusionPrior(LINE))
        p = pyro.sample("p", dist.Beta(0.1, 0.1))
        pyro.sample("y", dist.Normal(x[0] + 2 * p, 0.5), obs=torch.tensor(1.4))

    u = np.linspace(-300, 300, 60_001)
    variance = SCHEDULE.alpha(0) ** 2 + SCHEDULE.sigma(0) ** 2 + 0.25
    log_p = -0.1 * (np.logaddexp(0, u) + np.logaddexp(0, -u)) - betaln(0.1, 0.1)
    density = np.exp(log_p) * stats.norm(2 / (1 + np.exp(-u)), np.sqrt(variance)).pdf(1.4) * (u[1] - u[0])
    ladder = Ladder.full(SCHEDULE, steps=4)
    trace = anneal_model(model, kernel=batched.HMC(), ladder=ladder, chains=1000, draws=1, seed=0)
    found = trace.positions[:, 0, 1]
    for edge in (7.0, 14.0):
        share = density[u > edge].sum() / density.sum()
        error = np.sqrt(share * (1 - share) / len(found))
        assert abs(np.mean(found > edge) - share) < 4 * error, (edge, np.mean(found > edge), share)
    error = np.sqrt((1000 / float(trace.stats.ess[0]) - 1) / 1000)
    assert abs(trace.log_normaliser - np.log(density.sum())) < 4 * error


@pytest.mark.parametrize("kernel", [HMC(), pytest.param(NUTS(max_doublings=3), marks=pytest.mark.long)])
def test_chains_that_stand_where_the_density_is_zero_end_no_run(kernel):
    line = GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="torch")

    def model():
        x = pyro.sample("x", DiffusionPrior(line))
        pyro.sample("y", dist.Uniform(x[0], x[0] + 2.0), obs=torch.tensor(0.5))

    trace = anneal_model(model, kernel=kernel, ladder=Ladder.full(SCHEDULE, steps=2), chains=20, draws=2, seed=0)
    energies = np.stack([trace.stats.energy_arrival, trace.stats.energy])
    assert np.isinf(energies).any(), "some chains were there"
    assert not (energies[np.isfinite(energies)] > 1e100).any()


def test_a_single_number_is_an_event():
    def energy(x, level):
        return 0.5 * x**2

    number = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(), backend="torch")
    for kernel in (HMC(), batched.HMC()):
        trace = anneal(number, kernel, ladder=Ladder((19, 0), steps=2), chains=3, draws=2, seed=0)
        assert trace.positions.shape == (3, 2)


def test_a_plate_is_no_latent_site_of_a_factor():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        with pyro.plate("d", 2):
            pyro.sample("y", dist.Normal(x, 0.5), obs=Y)

    factor = from_model(model, schedule=SCHEDULE)
    x = torch.zeros(1, 2, dtype=torch.float64)
    torch.testing.assert_close(factor.energy(x, level=0)[0], -dist.Normal(0.0, 0.5).log_prob(Y).sum().double())


def test_a_factor_is_a_density_of_real_numbers():
    def positive():
        x = pyro.sample("x", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)

    with pytest.raises(ValueError, match=r"support .*transform it in the model"):
        from_model(positive, schedule=SCHEDULE)


def test_a_factor_is_real_however_its_events_are_nested():
    def model():
        rows = dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand([3]).to_event(1)
        x = pyro.sample("x", rows)
        pyro.sample("y", dist.Normal(x, 0.3).to_event(2), obs=torch.zeros(3, 2))

    expected = 6 * stats.norm(scale=0.3).logpdf(0) + 6 * stats.norm().logpdf(0)
    np.testing.assert_allclose(
        from_model(model, schedule=SCHEDULE).energy(np.zeros((3, 2)), level=0), -expected, rtol=1e-6
    )


def ordinal():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    pyro.sample("y", dist.OrderedLogistic(x[0], torch.tensor([-1.0, 0.0, 1.0])), obs=torch.tensor(2))


def branched():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    pyro.sample("y", dist.Normal(x if x[0] > 0 else -x, 0.3).to_event(1), obs=Y)


@pytest.mark.parametrize("model", [ordinal, branched])
def test_a_factor_that_cannot_be_batched_runs_chain_by_chain(model):
    with pytest.warns(SamplingWarning, match=f"{model.__name__} cannot be batched and runs chain by chain"):
        factor = from_model(model, schedule=SCHEDULE)
    x = torch.tensor([[0.5, 0.2], [-1.0, 0.3], [1.5, -2.0]], dtype=torch.float64)
    energy, gradient = factor.value_and_grad(x, level=0)
    for i in range(3):
        leaf = x[i].float().requires_grad_()
        node = poutine.trace(poutine.condition(model, {"x": leaf})).get_trace().nodes["y"]
        expected = -node["fn"].log_prob(node["value"]).sum()
        torch.testing.assert_close(energy[i].float(), expected.detach())
        torch.testing.assert_close(gradient[i].float(), torch.autograd.grad(expected, leaf)[0])


def test_a_factor_is_refused_what_a_model_is_refused():
    def random():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        pyro.sample("y", dist.Normal(x + torch.randn(2), 0.3).to_event(1), obs=Y)

    def rows(a, b):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        pyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=a)

    with pytest.raises(ValueError, match="random draws random numbers"):
        from_model(random, schedule=SCHEDULE)
    with pytest.raises(TypeError, match=r"give \(y,\) for one argument y"):
        from_model(rows, torch.ones(2, 2), schedule=SCHEDULE)
    with pytest.raises(TypeError, match=r"give \(y,\) for one argument y"):
        JointPotential(rows, torch.ones(2, 2), likelihood="widened")


def measured(y, scale=0.5):
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    s = pyro.sample("s", dist.HalfNormal(scale))
    pyro.sample("y", dist.Normal(x, s).to_event(1), obs=y)


def sized(rows):
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    with pyro.plate("n", rows):
        pyro.sample("b", dist.Normal(x[0], 0.5))


@pytest.mark.slow
def test_other_data_take_what_was_compiled_for_the_first():
    joint, other = JointPotential(measured, (Y,), likelihood="widened"), torch.tensor([-1.0, 2.0])
    first = anneal_model(joint, **QUICK)
    walker = QUICK["kernel"].bind(joint)
    found = anneal_model(joint, (other,), {"scale": 2.0}, **QUICK)
    assert QUICK["kernel"].bind(joint) is walker
    assert walker._arrive_compiled._cache_size() == walker._move_compiled._cache_size() == 1
    for trace, args in ((first, (Y,)), (found, (other, 2.0))):
        expected = anneal_model(measured, args, **QUICK)
        np.testing.assert_array_equal(trace.positions, expected.positions)
        np.testing.assert_array_equal(trace.groups["observed_data"]["y"], args[0])
    with pytest.raises(ValueError, match="likelihood='widened': give the same here"):
        anneal_model(joint, (Y,), likelihood="tempered", **QUICK)
    with pytest.raises(ValueError, match="other latent sites: make a new JointPotential"):
        JointPotential(sized, (2,), likelihood="widened").update((3,))


def tuned():
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=Y)


def fixed():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.sample("y", dist.Normal(x, 0.01).to_event(1), obs=Y)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_parameters_keep_their_values_also_in_other_processes(workers):
    quick = QUICK | {"kernel": HMC()}
    expected = anneal_model(fixed, **quick).positions
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(0.01), constraint=dist.constraints.positive)
        with pytest.warns(SamplingWarning, match="the parameters scale, which keep their present values"):
            found = anneal_model(tuned, **quick, workers=workers).positions
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_parameters_that_are_trained_on_are_taken_when_they_are_asked_for():
    with pyro.get_param_store().scope():
        offset = pyro.param("offset", torch.zeros(2))

        def shifted():
            x = pyro.sample("x", DiffusionPrior(PRIOR))
            pyro.sample("y", dist.Normal(x + pyro.param("offset"), 0.5).to_event(1), obs=Y)

        joint, point = JointPotential(shifted, likelihood="widened"), np.zeros((1, 2))
        before = joint.energy(point, level=0)
        with torch.no_grad():
            offset += 1.0
        torch.testing.assert_close(joint.energy(point, level=0), before)
        joint.update(())
        assert not torch.allclose(joint.energy(point, level=0), before)


def test_networks_of_a_model_stay_as_they_are():
    network = torch.nn.Linear(2, 2)

    def learned():
        pyro.module("net", network, update_module_params=True)
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(network(x), 0.5).to_event(1), obs=Y)

    with pyro.get_param_store().scope(), pytest.warns(SamplingWarning, match=r"net\$\$\$weight"):
        anneal_model(learned, **QUICK)
    assert network.weight.requires_grad


@pytest.mark.slow
def test_starts_and_leaps_know_the_exponents_of_a_prior():
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR**2))
        s = pyro.sample("s", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(x, s).to_event(1), obs=Y)

    np.testing.assert_array_equal(JointPotential(model, likelihood="widened").exponent, [2.0, 2.0, 1.0])
    ladder = Ladder(tuple(range(19, -1, -1)), steps=1)
    with pytest.warns(SamplingWarning, match="throws chains far out"):
        anneal_model(model, **QUICK | {"ladder": ladder}, resample=0.5, reverse_step=True)


def test_a_scaled_prior_starts_as_its_power_does():
    """A prior at a scale is its power, whose starting density is wider; where a mask leaves it out, it stays."""

    def model(prior, handler):
        with handler, pyro.plate("n", 2):
            x = pyro.sample("x", DiffusionPrior(prior))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=torch.ones(2, 2))

    scaled = JointPotential(model, (PRIOR, poutine.scale(scale=0.3)), likelihood="widened")
    power = JointPotential(model, (PRIOR**0.3, poutine.scale(scale=1.0)), likelihood="widened")
    np.testing.assert_allclose(scaled.exponent, power.exponent)
    starts = [joint.start(19, chains=5, rng=np.random.default_rng(0)) for joint in (scaled, power)]
    for one, other in zip(*starts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    rows = JointPotential(model, (PRIOR, poutine.scale(scale=torch.tensor([0.3, 2.0]))), likelihood="widened")
    np.testing.assert_allclose(rows.exponent, [0.3, 0.3, 2.0, 2.0])
    masked = JointPotential(model, (PRIOR, poutine.mask(mask=KEPT)), likelihood="widened")
    np.testing.assert_array_equal(masked.exponent, np.ones(4))


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (poutine.scale(scale=torch.tensor([0.5, 2.0])), r"scale of shape \(2,\) around x .* outside of poutine\.scale"),
        (poutine.mask(mask=KEPT), r"mask of shape \(2,\) around x .* outside of poutine\.mask"),
        (at_level(7), r"noise level 7, but annealing sets the level: .*Ladder\(levels=\(\.\.\., 7\)\)"),
    ],
)
def test_what_would_count_a_prior_twice_or_at_another_level_is_refused(handler, words):
    def model():
        with handler:
            x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)

    with pytest.raises(ValueError, match=words) as caught:
        JointPotential(model, likelihood="widened")
    assert "\n" not in str(caught.value)


def test_a_likelihood_is_tempered_by_the_share_of_the_signal_whatever_the_schedule():
    """An exploding schedule with the same signal-to-noise ratios tempers as the preserving one does."""
    preserving = NoiseSchedule.cosine(20)
    exploding = NoiseSchedule([1.0] * 20, np.array(preserving.sigmas) / np.array(preserving.alphas))
    found = []
    for schedule, scale in ((preserving, preserving.alpha(15)), (exploding, 1.0)):
        prior = GaussianMixture([[0.0, 0.0]], [1.0], schedule=schedule, backend="torch")

        def model(prior=prior):
            x = pyro.sample("x", DiffusionPrior(prior))
            pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)

        x = scale * torch.tensor([[0.3, -0.2]], dtype=torch.float64)
        joint = JointPotential(model, likelihood="tempered")
        found.append(joint.energy(x, level=15) - prior.energy(x, level=15))
        clean = -dist.Normal(x / scale, 0.5).to_event(1).log_prob(Y)
        torch.testing.assert_close(found[-1], preserving.alpha(15) ** 2 * clean)


def test_a_network_that_depends_on_no_latent_site_has_a_gradient_of_zero():
    network = torch.nn.Linear(1, 2)

    def unused():
        pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(network(torch.ones(1)), 0.3).to_event(1), obs=Y)

    points = np.random.default_rng(0).standard_normal((3, 2))
    _, gradient = JointPotential(unused, likelihood="widened").value_and_grad(points, level=0)
    np.testing.assert_allclose(gradient, PRIOR.value_and_grad(points, level=0)[1])


def test_a_run_goes_on_from_the_sites_of_a_trace():
    first = anneal_model(missing, **QUICK)
    last = {name: values[:, -1] for name, values in first.sites.items()}
    assert "twice" in last, "a recorded site is no start, and is left out"
    joint = JointPotential(missing, likelihood="widened")
    np.testing.assert_allclose(joint.flatten(last), first.positions[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (lambda x: dist.Bernoulli(logits=x), [1.0, 2.0]),
        (lambda x: dist.Poisson(x.exp()), [1.5, 2.0]),
        (lambda x: dist.Exponential(x.exp()), [-3.0, 1.0]),
    ],
)
def test_data_outside_of_their_support_are_named(fn, value):
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", fn(x).to_event(1), obs=torch.tensor(value))

    (note,) = JointPotential(model, likelihood="widened").notes
    assert "some data of y in model lie outside the support" in note

    def masked():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", fn(x).mask(torch.tensor([False, False])).to_event(1), obs=torch.tensor(value))

    assert not JointPotential(masked, likelihood="widened").notes


NEAR, FAR = (GaussianMixture([[v, v]], [0.5], schedule=SCHEDULE, backend="torch") for v in (-2.0, 2.0))


def scaled_prior():
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))

    def energy(x, level):
        return (0.5 * (x / tau) ** 2 + torch.log(tau)).sum(-1)

    prior = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    pyro.sample("y", dist.Normal(pyro.sample("x", DiffusionPrior(prior)), 0.5).to_event(1), obs=Y)


def power_prior():
    with poutine.scale(scale=pyro.sample("a", dist.Beta(2.0, 2.0))):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)


def either_prior():
    x = pyro.sample("x", DiffusionPrior(NEAR if pyro.sample("z", dist.Normal(0.0, 1.0)) > 0 else FAR))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)


def chained_prior():
    first = pyro.sample("first", DiffusionPrior(PRIOR))
    pyro.sample("x", DiffusionPrior(NEAR if first[0] > 0 else FAR))


@pytest.mark.parametrize("likelihood", ["widened", "tempered"])
@pytest.mark.parametrize("model", [scaled_prior, power_prior, either_prior, chained_prior])
def test_a_prior_that_depends_on_other_sites_is_refused(model, likelihood):
    """The prior is taken from the first run of the model, and would be another density in other runs."""
    with pytest.raises(ValueError, match=r"the prior of x in .* depends on other latent sites"):
        anneal_model(model, **QUICK | {"kernel": HMC()}, likelihood=likelihood)


def test_a_prior_that_is_built_anew_in_every_run_is_the_same_prior():
    ring, digits = load("ring"), load("digits")

    def model():
        x = pyro.sample("x", DiffusionPrior(ring**1.5 / ring.to("cpu") ** 0.5))
        picture = pyro.sample("picture", DiffusionPrior(digits.given(3) * digits.given(8) ** 0.5))
        pyro.sample("y", dist.Normal(x.sum() + picture.mean(), 0.5), obs=torch.tensor(0.1))

    joint = JointPotential(model, likelihood="tempered")
    calls = []
    for network in (ring.network, digits.network):
        network.register_forward_hook(lambda *_: calls.append(1))
    joint.start(99, chains=4, rng=np.random.default_rng(0))
    assert not calls, "no network is asked"

    def loads():
        pyro.sample("x", DiffusionPrior(load("ring")))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"load\('ring'\) in a model runs at every evaluation: load it outside"):
        anneal_model(loads, **QUICK | {"ladder": Ladder((99, 0), steps=1)})


@pytest.mark.parametrize("chains", [1, 3])
def test_random_numbers_that_are_no_sites_are_refused(chains):
    def noisy():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x + torch.randn(2), 0.5).to_event(1), obs=Y)

    def hidden():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        with poutine.block():
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + shift, 0.5).to_event(1), obs=Y)

    for model in (noisy, hidden):
        with pytest.raises(ValueError, match="draws random numbers that are no sites of it"):
            anneal_model(model, **QUICK | {"kernel": HMC(), "chains": chains})


@pytest.mark.long
def test_a_masked_site_starts_where_it_is_drawn_and_not_where_it_counts():
    """With a flat density of b the evidence is 1 for every y."""

    def flat():
        b = pyro.sample("b", dist.Normal(0.0, 3.0).mask(False))
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x.sum() + b, 1.0), obs=torch.tensor(0.7))

    found = [
        anneal_model(
            flat, kernel=batched.HMC(), ladder=Ladder.full(SCHEDULE, steps=2), chains=500, seed=seed
        ).log_normaliser
        for seed in range(3)
    ]
    assert abs(np.mean(found)) < 0.15


def test_images_are_seen_in_double_precision():
    """In float32 the sum over pixels would change acceptance probabilities by more than 1e-3."""
    shape, scale = (3, 32, 32), 0.02
    free = EnergyFunction(
        lambda x, level: 0.0 * x.double().sum((-1, -2, -3)), schedule=SCHEDULE, event_shape=shape, backend="torch"
    )
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.uniform(-1, 1, shape)).float()

    def model():
        x = pyro.sample("x", DiffusionPrior(free))
        pyro.sample("y", dist.Normal(x, scale).to_event(3), obs=y)

    joint, size = JointPotential(model, likelihood="widened"), y.numel()
    x = y.double().flatten() + scale * torch.from_numpy(rng.standard_normal((40, size)))
    moved = x + 0.05 * scale * torch.from_numpy(rng.standard_normal((40, size)))
    exact = [0.5 * (((z.float().double() - y.double().flatten()) / scale) ** 2).sum(1) for z in (x, moved)]
    error = (joint.energy(moved, level=0) - joint.energy(x, level=0)) - (exact[1] - exact[0])
    assert float(error.std()) < 2e-4


def test_second_derivatives_of_jax_are_not_made_up():
    prior = GaussianMixture([[0.0, 0.0], [1.0, 1.0]], [1.0, 0.5], schedule=SCHEDULE, backend="jax")

    def model():
        x = pyro.sample("x", DiffusionPrior(prior))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)

    with pytest.raises(ValueError, match="second derivatives of likelihood='tweedie'"):
        JointPotential(model, likelihood="tweedie")
    with pytest.raises(ValueError, match=r"computes with JAX, .* use a kernel of bridges\.pyro"):
        anneal_model(model, **QUICK)


def test_a_support_that_cannot_be_unconstrained_is_refused_in_one_line():
    def model():
        parts = dist.Normal(torch.zeros(2), 1.0), dist.Categorical(logits=torch.zeros(2))
        m = pyro.sample("m", dist.MixtureSameFamily(parts[1], parts[0]))
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x + m, 0.5).to_event(1), obs=Y)

    with pytest.raises(ValueError, match="support of the latent site m of model") as caught:
        anneal_model(model, **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_chains_start_from_values_by_name():
    def model(y):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("y", dist.Normal(x * share[0], scale).to_event(1), obs=y)

    first = anneal_model(model, (Y,), **QUICK)
    init = {name: value[:, 0] for name, value in first.sites.items()}
    joint = JointPotential(model, (Y,), likelihood="widened")
    np.testing.assert_allclose(joint.flatten(init), first.positions[:, 0], atol=1e-5)
    flat, named = (anneal_model(model, (Y,), **QUICK, init=start).positions for start in (joint.flatten(init), init))
    np.testing.assert_array_equal(flat, named)
    for bad, words in (
        ({"x": init["x"]}, "give the latent sites, x, scale, share"),
        (init | {"scale": -init["scale"]}, "does not fit model"),
        (init | {"x": init["x"][:, :1]}, "does not fit model"),
        (init | {"x": init["x"][:1]}, r"different numbers of chains \(x 1, scale 4, share 4\)"),
        ({name: value[:2] for name, value in init.items()}, r"init has shape \(2, 5\)"),
    ):
        with pytest.raises(ValueError, match=words):
            anneal_model(model, (Y,), **QUICK, init=bad)


def test_what_is_passed_by_mistake_is_said():
    with pytest.raises(TypeError, match=r"give \(y,\) for one argument y"):
        anneal_model(lambda y: None, Y, **QUICK)

    def model(y):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(TypeError, match=r"give obs=torch\.as_tensor"):
        anneal_model(model, (Y.numpy(),), **QUICK)


@pytest.mark.slow
def test_a_joint_density_with_other_latent_sites_is_walked_on_alone():
    """A product would treat the other latent sites as if they were noised too."""

    def model(y):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        scale = pyro.sample("scale", dist.HalfNormal(0.5))
        pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    joint = JointPotential(model, (Y,), likelihood="widened")
    for compose in (lambda: joint * 2.0, lambda: joint**0.5, lambda: mixture([joint, joint])):
        with pytest.raises(TypeError, match="compose the priors inside the model"):
            compose()
    crossed = to_jax(joint)
    here, there = (p.start(19, chains=4, rng=np.random.default_rng(0)) for p in (joint, crossed))
    np.testing.assert_array_equal(here[0], there[0])
    options = {"ladder": Ladder((19, 0), steps=2), "chains": 4, "seed": 0}
    walked = [anneal(p, batched.HMC(), **options).positions for p in (joint, crossed)]
    np.testing.assert_array_equal(*walked)


def test_a_ladder_that_stops_early_is_no_posterior():
    with pytest.warns(SamplingWarning, match="ends at level 10") as caught:
        trace = anneal_model(masked_prior, **QUICK | {"ladder": Ladder((19, 10), steps=1)})
    assert {w.filename for w in caught if "ends at level" in str(w.message)} == {__file__}
    assert "log_likelihood" not in trace.groups
    assert any("level 10" in words for words in diagnose(trace).warnings)


def test_the_model_is_not_validated_where_no_chain_goes():
    """The model runs at ``x = 0`` and at estimates of ``x``, which need not be valid for it."""

    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        b = pyro.sample("b", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(0.0, x[0].abs()), obs=Y[0])
        pyro.sample("z", dist.Poisson(10 * b * (x[1] + 1)), obs=torch.tensor(3.0))

    JointPotential(model, likelihood="tempered").start(19, chains=4, rng=np.random.default_rng(0))


def subsampled():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    with pyro.plate("d", 2, subsample_size=1) as i:
        pyro.sample("y", dist.Normal(x.sum(), 0.5), obs=Y[i])


def longer():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    with pyro.plate("d", 3):
        pyro.sample("y", dist.Normal(x.sum(), 0.5), obs=torch.zeros(4))


def transformed():
    pyro.sample("x", dist.TransformedDistribution(DiffusionPrior(PRIOR), [dist.transforms.ExpTransform()]))


def improper():
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(x + b, 0.5).to_event(1), obs=Y)


def named(*sites, plate="n"):
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        with pyro.plate(plate, 3):
            pyro.sample("b", dist.Normal(x[0], 0.5))
        for name in sites:
            pyro.sample(name, dist.Normal(x[1], 0.5))
        pyro.sample("net/y", dist.Normal(x, 0.5).to_event(1), obs=Y)

    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (subsampled, "leave subsample_size out"),
        (longer, r"data of y have shape \(4,\), and longer draws it in shape \(3,\)"),
        (transformed, "inside a TransformedDistribution"),
        (improper, "proper prior"),
        (named("chain"), "'chain', which ArviZ calls a dimension"),
        (named(plate="draw"), "'draw', which ArviZ calls a dimension"),
        (named(""), "'', which no file can hold"),
        (named("/"), "'/', which no file can hold"),
        (named("a\0b"), "which no file can hold"),
        (named(plate="a\0b"), "which no file can hold"),
        (named("a/b", "a.b"), "'a/b' and 'a.b', one name"),
        (named("net.y"), "one name in ArviZ"),
        (named("x_dim_0"), "'x_dim_0' and 'x_dim_0', one name"),
        (named(plate="x_dim_0"), "'x_dim_0' and 'x_dim_0', one name"),
        (named("n.m", plate="n/m"), "'n.m' and 'n/m', one name"),
        (branching, "without branches"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(model, words):
    with pytest.raises(ValueError, match=words) as caught:
        anneal_model(model, **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_names_that_meet_nowhere_are_allowed():
    """Observed sites are in groups of their own, so their names may equal those of latent sites' dimensions."""
    trace = anneal_model(named("net/y_dim_0", "lp", "rung", "..", plate="level"), **QUICK)
    posterior = to_inference_data(trace)["posterior"]
    assert posterior["b"].dims == ("chain", "draw", "level")
    assert {"net.y_dim_0", "lp", "rung", ".."} <= set(posterior.data_vars)


def test_missing_values_are_named_and_not_blamed_on_the_start():
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.tensor([0.5, torch.nan]))

    with pytest.warns(SamplingWarning, match="not finite for any chain"):
        anneal_model(model, **QUICK)


def seen_with_gaps(kind, see):
    y = torch.tensor([0.5, torch.nan, 0.2])

    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        if kind == "wrapper":
            loc = see(x[0]).expand(3)
            return pyro.sample("y", dist.Normal(loc, 0.5).mask(~y.isnan()).to_event(1), obs=y)
        if kind == "gone":
            y_seen = y[~y.isnan()]
            return pyro.sample("y", dist.Normal(see(x[0]), 0.5).expand([2]).to_event(1), obs=y_seen)
        with pyro.plate("rows", 3), poutine.mask(mask=~y.isnan()):
            return pyro.sample("y", dist.Normal(see(x[0]), 0.5), obs=y)

    return model


@pytest.mark.parametrize("see", [lambda x: 2 * x, torch.sin], ids=["linear", "sine"])
@pytest.mark.parametrize("kind", ["handler", "wrapper"])
def test_a_missing_value_under_a_mask_changes_nothing(kind, see):
    """The energy of NaN under a mask is right, and its gradient was NaN."""
    found, without = (JointPotential(seen_with_gaps(k, see), likelihood="widened") for k in (kind, "gone"))
    x = torch.linspace(-1, 1, 5)[:, None].expand(5, *PRIOR.event_shape)
    for one, other in zip(found.value_and_grad(x, level=0), without.value_and_grad(x, level=0), strict=True):
        torch.testing.assert_close(one, other)
    for values in found.value_and_grad(x, level=5):
        assert values.isfinite().all()
    likelihood = found.report(x.numpy()[:, None].astype(float))[1]["log_likelihood"]["y"]
    if kind == "handler":
        assert np.isnan(likelihood).all((0, 1)).tolist() == [False, True, False]
    else:
        assert np.isfinite(likelihood).all(), "one event, the seen part of which counts"


def test_a_network_for_batches_is_said_to_be_one():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(PRIOR.event_shape)), 3))

    def model(see):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Categorical(logits=see(x)), obs=torch.tensor(1))

    for kernel in (HMC(), batched.HMC()):
        with pytest.raises(ValueError, match=r"written for batches of x.*x\[None\]"):
            anneal_model(model, (network,), **QUICK | {"kernel": kernel})
        with pytest.raises(IndexError):  # fails for a batch too: its own error
            anneal_model(model, (lambda x: network(x)[5],), **QUICK | {"kernel": kernel})
    anneal_model(model, (lambda x: network(x[None])[0],), **QUICK)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_refreshed_sites_stay_where_the_density_is_finite(value):
    """Proposals of non-finite energy are rejected; a chain that leaves such a point reports a change of -inf."""

    def model():
        pyro.sample("x", DiffusionPrior(PRIOR))
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.factor("edge", torch.where(s > 0.5, value, 0.0 * s))

    joint = JointPotential(model, likelihood="widened")
    begun = np.zeros((400, 3))
    begun[::2, 2] = 1.0
    moved, change = joint.refresh(begun, 5, rng=np.random.default_rng(0))
    assert np.all(moved[1::2, 2] <= 0.5)
    assert np.all(np.isfinite(change[1::2]))
    back = moved[::2, 2] <= 0.5
    assert 0 < back.mean() < 1
    assert np.all(change[::2] == np.where(back, -np.inf, 0.0))


def test_a_model_that_fails_says_why_itself():
    def model():
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x @ torch.ones(3), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(RuntimeError, match=r"size mismatch|inconsistent tensor size"):
        anneal_model(model, **QUICK)


@pytest.mark.parametrize(("power", "told"), [(0.01, True), (1.0, False)])
def test_mass_that_single_precision_loses_is_told(power, told):
    def model():
        pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("s", dist.Gamma(power, power))

    notes = JointPotential(model, likelihood="widened").notes
    assert any("draws of the latent site s of model are one number" in note for note in notes) == told
    if told:
        with pytest.warns(SamplingWarning, match="are one number"):
            trace = anneal_model(model, **QUICK)
        assert notes[0] in trace.attributes["warnings"]


def test_sites_that_come_and_go_with_x_are_refused_on_the_way():
    apart = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.2], schedule=SCHEDULE, backend="torch")

    def vanishing():
        x = pyro.sample("x", DiffusionPrior(apart))
        if x[0] < 0.5:
            pyro.sample("z", dist.Normal(0.0, 0.1))

    def appearing():
        x = pyro.sample("x", DiffusionPrior(apart))
        if x[0] > 0.5:
            pyro.sample("z", dist.Normal(0.0, 0.1))

    for model in (vanishing, appearing):
        with pytest.raises(ValueError, match=f"{model.__name__} samples z in some of its runs only"):
            anneal_model(model, **QUICK | {"kernel": HMC(), "chains": 8})

    def ragged():
        x = pyro.sample("x", DiffusionPrior(apart))
        count = int(pyro.sample("n", dist.Normal(0.0, 1.0)) > 0) + 1
        pyro.sample("z", dist.Normal(x[:1].expand(count), 1.0).to_event(1))

    with pytest.raises(ValueError, match="z of ragged has another shape in some runs"):
        anneal_model(ragged, **QUICK)


def test_sites_that_have_no_density_of_their_own_are_refused():
    def angle():
        pyro.sample("z", dist.VonMises(0.0, 0.5))

    def constant():
        pyro.sample("z", dist.Delta(torch.tensor(1.0)))

    def sometimes():
        if pyro.sample("z", dist.Normal(0.0, 1.0)) > 0:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    for part, words in (
        (angle, "z of model is an angle"),
        (constant, "has one value only, a Delta: use pyro.deterministic"),
        (sometimes, "model samples b in some of its runs only"),
    ):

        def model(part=part):
            pyro.sample("x", DiffusionPrior(PRIOR))
            part()

        with pytest.raises(ValueError, match=words):
            anneal_model(model, **QUICK)


def test_chains_of_a_plate_start_as_they_are_distributed():
    def rows():
        with pyro.plate("n", 3):
            pyro.sample("x", DiffusionPrior(PRIOR))

    joint = JointPotential(rows, likelihood="rescaled")
    x, log_density = joint.start(19, chains=20, rng=np.random.default_rng(0))
    np.testing.assert_allclose(-joint.energy(torch.from_numpy(x), level=19).numpy(), log_density, atol=1e-3)


@pytest.mark.parametrize(
    ("handler", "counted"), [(poutine.scale(scale=0.5), 0.5), (poutine.mask(mask=torch.tensor(False)), 0.0)]
)
def test_a_jacobian_is_neither_scaled_nor_masked(handler, counted):
    def scaled():
        pyro.sample("x", DiffusionPrior(PRIOR))
        with handler:
            pyro.sample("s", dist.HalfNormal(1.0))

    x = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 0.5]])
    log_p = counted * stats.halfnorm.logpdf(np.exp(x[:, 2])) + x[:, 2]
    found = JointPotential(scaled, likelihood="widened").energy(x, level=0).numpy()
    np.testing.assert_allclose(found[0] - found[1], log_p[1] - log_p[0], rtol=1e-5)
