"""Kernels that accept by the work of the score sample what they would by the energy, and wrong rules are rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blackjax.mcmc import integrators
from checks import ACCEPTANCE_WINDOW, ALPHA, invariance

import bridges.blackjax.trajectories as trajectories
from bridges.arviz import diagnose
from bridges.blackjax import HMC, MALA, UHMC, ULA
from bridges.blackjax.line_integral import LineIntegral, WorkDensity, init_state, velocity_verlet
from bridges.torch_jax import to_jax
from bridges.torch_jax.convert import crossings
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal, reverse_diffusion
from ppl_diffusion.potentials.circulation import circulation
from ppl_diffusion.potentials.score import ScoreLeaf

SCHEDULE = NoiseSchedule.cosine(100)
LEVEL = 30
MODES = GaussianMixture(
    [[-1.2, 0.3], [1.0, -0.5], [0.4, 1.6]],
    [[0.3, 0.6], [0.5, 0.2], [0.4, 0.4]],
    weights=[0.2, 0.5, 0.3],
    schedule=SCHEDULE,
    backend="jax",
)
OTHER = GaussianMixture([[0.5, 0.5], [-0.5, 0.0]], [0.8, 1.0], schedule=SCHEDULE, backend="jax", name="other")
MODES_IN_TORCH, OTHER_IN_TORCH = (
    GaussianMixture(p.means, np.sqrt(p.variances), weights=p.weights, schedule=SCHEDULE, backend="torch")
    for p in (MODES, OTHER)
)
"""For walks, which compile faster with them."""


class ScoreOf(ScoreLeaf):
    """The score of a density, with a rotation added; calls are counted where they are traced with concrete values."""

    def __init__(self, potential, *, rotation=0.0):
        self.potential, self.rotation = potential, rotation
        self.backend, self.schedule = potential.backend, potential.schedule
        self.event_shape, self.name = potential.event_shape, f"score of {potential}"

    def _gradient(self, x, level):
        gradient = self.potential._evaluate(x, level)[1]
        if not self.rotation:
            return gradient
        return gradient + self.rotation * torch.stack([-x[..., 1], x[..., 0]], -1)


class Turning(ScoreOf):
    """With a rotation, in JAX."""

    def _gradient(self, x, level):
        return super()._gradient(x, level) + 0.5 * jnp.stack([-x[..., 1], x[..., 0]], -1)


class Judged(ScoreOf):
    """With the energy that tests compare by; walks do not ask for it."""

    def energy(self, x, *, level):
        return self.potential.energy(x, level=level)


def exact(draws, seed):
    return MODES.sample(draws, level=LEVEL, seed=seed)


def density(target, level=LEVEL):
    return WorkDensity(LineIntegral(target), jnp.asarray(level), jnp.ones(target.event_shape))


def kinetic(momentum):
    return 0.5 * jnp.sum(momentum**2)


def work_errors(rule, steps, *, length=None, count=200):
    """Root mean square error of the work, beside the difference of log-density, for leapfrogs of several sizes."""
    errors = []
    with jax.enable_x64(True):
        x = jnp.asarray(exact(count, 0))
        p = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
        leapfrog = velocity_verlet(density(ScoreOf(MODES)), kinetic, rule)
        for step in steps:

            def error(x, p, step=step):
                state = init_state(density(ScoreOf(MODES)), x, p)
                for _ in range(1 if length is None else round(length / step)):
                    state = leapfrog(state, step)
                gain = MODES.energy(x, level=LEVEL) - MODES.energy(state.position, level=LEVEL)
                return state.logdensity - gain

            errors.append(float(jnp.sqrt(jnp.mean(jax.jit(jax.vmap(error))(x, p) ** 2))))
    return errors


@pytest.mark.parametrize(("rule", "local", "along"), [("trapezoid", 3, 2), ("simpson", 5, 4)])
def test_the_error_of_the_work_falls_at_its_order(rule, local, along):
    steps = np.array([0.01, 0.02, 0.04])
    slope = np.polyfit(np.log(steps), np.log(work_errors(rule, steps)), 1)[0]
    assert abs(slope - local) < 0.25
    slope = np.polyfit(np.log(steps), np.log(work_errors(rule, steps, length=0.16)), 1)[0]
    assert abs(slope - along) < 0.1


def test_the_proposal_is_blackjaxs_and_the_reversed_work_changes_its_sign():
    with jax.enable_x64(True):
        x, p = jnp.array([0.3, -0.2]), jnp.array([1.1, 0.4])
        plain = integrators.velocity_verlet(lambda x: -MODES.energy(x, level=LEVEL), kinetic)
        theirs = integrators.new_integrator_state(lambda x: -MODES.energy(x, level=LEVEL), x, p)
        target = Turning(MODES)
        for rule in ("trapezoid", "simpson"):
            leapfrog = velocity_verlet(density(ScoreOf(MODES)), kinetic, rule)
            ours, state = init_state(density(ScoreOf(MODES)), x, p), theirs
            for _ in range(5):
                ours, state = leapfrog(ours, 0.3), plain(state, 0.3)
            np.testing.assert_allclose(ours.position, state.position, rtol=1e-12)
            np.testing.assert_allclose(ours.momentum, state.momentum, rtol=1e-12)
            turning = velocity_verlet(density(target), kinetic, rule)  # holds for any score
            begun = init_state(density(target), x, p)
            ended = turning(turning(begun, 0.3), 0.3)
            back = turning(turning(ended._replace(momentum=-ended.momentum), 0.3), 0.3)
            np.testing.assert_allclose(back.position, x, atol=1e-12)
            np.testing.assert_allclose(back.logdensity_grad.work, 0.0, atol=1e-12)
            assert abs(float(ended.logdensity_grad.work)) > 0.01


def test_the_trapezoid_leaves_the_change_of_squared_scores():
    """Kinetic energy plus work of the trapezoid change by ``step^2 / 8`` times the change of the squared score."""
    with jax.enable_x64(True):
        x, p, step = jnp.array([0.3, -0.2]), jnp.array([1.1, 0.4]), 0.4
        begun = init_state(density(ScoreOf(MODES)), x, p)
        ended = velocity_verlet(density(ScoreOf(MODES)), kinetic, "trapezoid")(begun, step)
        change = kinetic(ended.momentum) - ended.logdensity - kinetic(p)
        squares = [float(jnp.sum(state.logdensity_grad.gradient**2)) for state in (begun, ended)]
        np.testing.assert_allclose(change, step**2 / 8 * (squares[1] - squares[0]), rtol=1e-10)


@pytest.mark.parametrize("kernel", [HMC(step=0.7), MALA(step=0.7), HMC(step=0.7, refreshment=0.3)], ids=str)
def test_acceptance_by_work_leaves_the_density_invariant(kernel):
    found = invariance(kernel, Judged(MODES), exact, level=LEVEL)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.moved > 0.99
    assert found.smallest > ALPHA, found


def test_the_energy_of_other_factors_enters_exactly():
    """With a step at which the trapezoid is biased, a factor with a nearly flat score does no harm."""
    with jax.enable_x64(True):
        target, x = MODES * ScoreOf(OTHER), jnp.asarray(exact(50, 0))
        found = LineIntegral(target).forces(x, LEVEL)
        energy, gradient = MODES.value_and_grad(x, level=LEVEL)
        rest = OTHER.value_and_grad(x, level=LEVEL)[1]
        for value, due in zip(found, (energy, gradient + rest, rest), strict=True):
            np.testing.assert_allclose(value, due, rtol=1e-12)
        state = init_state(density(target), x[0], x[1])
        ended = velocity_verlet(density(target), kinetic, "simpson")(state, 0.4)
        gain = MODES.energy(x[0], level=LEVEL) - MODES.energy(ended.position, level=LEVEL)
        np.testing.assert_allclose(ended.logdensity - state.logdensity, gain + ended.logdensity_grad.work, rtol=1e-12)


def test_factors_with_an_energy_stay_known_when_a_product_is_converted():
    product = MODES_IN_TORCH * ScoreOf(OTHER_IN_TORCH)
    for target in (product, to_jax(product), to_jax(product) * OTHER):
        found = LineIntegral(target)
        assert "score" in str(found.rest)
        assert "score" not in str(found.exact)
        assert len(list(crossings(found))) == 2


def wrong_verlet(change):
    def velocity(density, kinetic, rule):
        leapfrog = velocity_verlet(density, kinetic, rule)

        def wrong(state, step):
            ended = leapfrog(state, step)
            forces = ended.logdensity_grad
            work = change(density, state, ended)
            return ended._replace(
                logdensity=state.logdensity + work,
                logdensity_grad=forces._replace(work=state.logdensity_grad.work + work),
            )

        return wrong

    return velocity


def without_weights(density, state, ended):
    """Simpson's rule with the three scores weighed alike."""
    line = ended.position - state.position
    middle = density.rest_at(state.position + line / 2)
    return jnp.dot((state.logdensity_grad.rest + middle + ended.logdensity_grad.rest) / 3, line)


def begun_only(density, state, ended):
    """The score where the leapfrog began, as if the work were of first order."""
    return jnp.dot(state.logdensity_grad.rest, ended.position - state.position)


def previous_level(density, state, ended):
    """The work of the score of another level."""
    other = density._replace(level=density.level + 6)
    line = ended.position - state.position
    scores = [other.rest_at(state.position + share * line) for share in (0.0, 0.5, 1.0)]
    return jnp.dot((scores[0] + 4 * scores[1] + scores[2]) / 6, line)


@pytest.mark.parametrize("change", [without_weights, begun_only, previous_level])
def test_wrong_works_are_rejected(change, monkeypatch):
    monkeypatch.setattr(trajectories, "velocity_verlet", wrong_verlet(change))
    found = invariance(HMC(step=0.7), Judged(MODES), exact, level=LEVEL)
    assert found.smallest < ALPHA, found


def test_the_trapezoid_is_told_from_the_exact_test_at_a_large_step():
    """The trapezoid's bias, which falls with the square of the step: Simpson passes the same check above."""
    found = invariance(HMC(step=0.7, work="trapezoid"), Judged(MODES), exact, level=LEVEL)
    assert found.smallest < ALPHA
    assert invariance(HMC(step=0.1, work="trapezoid"), Judged(MODES), exact, level=LEVEL).smallest > ALPHA


@pytest.mark.parametrize("kernel", [ULA(step=0.1), UHMC(step=0.1)], ids=["ULA", "UHMC"])
def test_unadjusted_kernels_walk_as_they_do_with_the_energy(kernel):
    ladder = Ladder.spaced(SCHEDULE, rungs=4, steps=3)
    by_score, by_energy = (
        anneal(p, kernel, ladder=ladder, chains=6, draws=2, seed=0) for p in (ScoreOf(MODES_IN_TORCH), MODES_IN_TORCH)
    )
    np.testing.assert_allclose(by_score.positions, by_energy.positions, rtol=1e-10)


def test_reverse_diffusion_needs_the_score_only():
    ladder = Ladder.spaced(SCHEDULE, rungs=20)
    by_score, by_energy = (
        reverse_diffusion(p, ladder=ladder, chains=6, seed=0) for p in (ScoreOf(MODES_IN_TORCH), MODES_IN_TORCH)
    )
    np.testing.assert_allclose(by_score.positions, by_energy.positions)
    assert np.isnan(by_score.log_normaliser)
    assert by_score.attributes["circulation"] is None


def test_a_trace_by_work_says_what_it_knows():
    ladder = Ladder.spaced(SCHEDULE, rungs=4, steps=4)
    trace = anneal(ScoreOf(MODES_IN_TORCH), HMC(step=0.2), ladder=ladder, chains=8, draws=25, seed=0)
    assert trace.attributes["has_energy"] is False
    assert np.isnan(trace.log_normaliser)
    assert np.isnan(trace.stats.log_weight).all()
    assert not trace.stats.energy_arrival.any()  # counted from arrival
    gain = MODES.energy(trace.positions[:, -1], level=0) - MODES.energy(trace.positions[:, 0], level=0)
    work = trace.sample_stats.lp[:, 0] - trace.sample_stats.lp[:, -1]
    np.testing.assert_allclose(work, gain, atol=0.05)
    assert trace.attributes["circulation"]["nats"] < 1e-4
    text = str(diagnose(trace))
    assert "gradient" not in text
    assert "weights" not in text


def test_a_score_that_is_no_gradient_is_told_by_its_circulation():
    x = exact(50, 0)
    turning = ScoreOf(MODES_IN_TORCH, rotation=0.7)
    found = circulation(turning, x, level=LEVEL, step=0.5)
    a, b = 0.5 * np.random.default_rng(0).standard_normal((2, *x.shape))
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]  # by Stokes, the curl 2 * rotation times the area
    np.testing.assert_allclose(found.nats, 1.4 * np.sqrt(np.mean(area**2)), rtol=1e-3)
    assert 0.05 < found.share < 1
    still = circulation(ScoreOf(MODES_IN_TORCH), x, level=LEVEL, step=0.5)
    assert still.nats < 1e-4
    narrow = ScoreOf(GaussianMixture([[0.0, 0.0], [0.3, 0.1]], [0.1, 0.05], schedule=SCHEDULE, backend="torch"))
    assert circulation(narrow, narrow.potential.sample(50, level=0, seed=0), level=0, step=0.1).nats < 0.02
    trace = anneal(turning, MALA(), ladder=Ladder((LEVEL,), steps=30), chains=20, draws=25, seed=0)
    assert any("the score is not a gradient: its work round loops" in note for note in diagnose(trace).warnings)


def test_an_interrupted_walk_by_work_goes_on(tmp_path):
    target, kernel = ScoreOf(MODES_IN_TORCH) * OTHER_IN_TORCH, HMC(step=0.3)
    given = {"ladder": Ladder.spaced(SCHEDULE, rungs=3, steps=2), "chains": 4, "draws": 3, "seed": 0}
    whole = anneal(target, kernel, **given)

    def stop(progress):
        if progress.rung == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anneal(target, kernel, **given, checkpoint=tmp_path / "walk", progress=stop)
    resumed = anneal(target, kernel, **given, checkpoint=tmp_path / "walk")
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    other = ScoreOf(GaussianMixture([[0.0, 0.0]], [0.5], schedule=SCHEDULE, backend="torch")) * OTHER_IN_TORCH
    other.name = target.name
    with pytest.raises(ValueError, match="of another potential"):
        anneal(other, kernel, **given, checkpoint=tmp_path / "walk")
