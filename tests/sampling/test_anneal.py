"""The annealing loop: seeds, starts, weights, recorded statistics, rejected arguments, and warnings."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from copy import deepcopy

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats

import bridges.pyro as pyro_bridge
from bridges.arviz import diagnose
from bridges.blackjax import HMC, MALA, NUTS, UHMC, ULA, from_blackjax
from bridges.pyro import DiffusionPrior, JointPotential
from bridges.torch_jax import to_jax, to_torch
from ppl_diffusion import (
    Adaptive,
    EnergyFunction,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    SigmaScaled,
    anneal,
    check_quotient,
    guidance,
    load,
    observation,
    reverse_diffusion,
)
from ppl_diffusion.potentials.planar import SCHEDULE, exact
from ppl_diffusion.sampling.advice import check_init, check_last_draws
from ppl_diffusion.sampling.step import block_scales

SHORT = Ladder.spaced(SCHEDULE, rungs=12, steps=2)
MODES = GaussianMixture([[-1.0, 0.0], [1.0, 0.3]], [0.2, 0.3], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")
GAUSS = GaussianMixture([[0.2, 0.1]], [0.5], schedule=SCHEDULE, backend="jax")
PRODUCT = MODES * GAUSS
KERNELS = {
    "HMC": HMC(),
    "refreshed": HMC(refreshment=0.3),
    "MALA": MALA(step=SigmaScaled(0.5)),
    "NUTS": NUTS(step=0.3, max_doublings=3),
    "UHMC": UHMC(),
    "ULA": ULA(step=0.1),
    "other": from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, step_size=0.01),
}


def walk(potential=PRODUCT, kernel=KERNELS["HMC"], **options):
    return anneal(potential, kernel, **{"ladder": SHORT, "chains": 50, "seed": 3, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "NUTS" else ()) for name in KERNELS]
)
def test_a_seed_gives_the_same_trace_and_another_seed_another(name):
    options = {"kernel": KERNELS[name], "draws": 3, "resample": 0.5}
    one, again, other = walk(**options), walk(**options), walk(**options, seed=4)
    np.testing.assert_array_equal(one.positions, again.positions)
    for statistic in one.stats:
        np.testing.assert_array_equal(one.stats[statistic], again.stats[statistic])
    assert not np.array_equal(one.positions, other.positions)
    assert one.positions.shape == (50, 3, 2)
    assert one.positions.dtype == np.float64


@pytest.mark.filterwarnings("ignore:the variance of the noise falls", "ignore:the exponents of")
def test_no_global_state_is_touched():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), jnp.zeros(1).dtype
    walk(draws=2, resample=0.5, reverse_step=True)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), jnp.zeros(1).dtype)
    assert not jax.config.jax_enable_x64


def test_64_bit_mode_ends_even_when_the_walk_is_interrupted():
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(progress=stop)
    assert jnp.zeros(1).dtype == jnp.float32


def test_progress_is_told_after_every_rung_and_block_of_draws():
    told = []
    walk(draws=50, progress=told.append)
    assert [p.rung for p in told[:12]] == list(range(1, 13))
    assert [p.level for p in told[:12]] == list(SHORT.levels)
    assert [p.draw for p in told[12:]] == [25, 50]
    assert all(0 <= p.acceptance_rate <= 1 for p in told)


@pytest.mark.slow
def test_chains_start_from_the_composed_density_of_pure_noise():
    top = Ladder(levels=(99,), steps=0)
    for potential, variance in ((PRODUCT, 1 / 2), (MODES / GAUSS**0.5, 2.0)):
        x = anneal(potential, MALA(), ladder=top, chains=4000, seed=0).positions[:, 0]
        assert stats.kstest(x.ravel() / np.sqrt(variance), "norm").pvalue > 1e-6
    seen = observation([0.1, 0.2], seen=[True, False], scale=0.1, schedule=SCHEDULE, backend="jax")
    x = anneal(MODES * seen, MALA(), ladder=Ladder(levels=(99,), steps=1), chains=4000, seed=0).positions[:, 0]
    assert np.var(x[:, 0]) == pytest.approx(0.5, rel=0.15)
    assert np.var(x[:, 1]) == pytest.approx(1.0, rel=0.15)


@pytest.mark.slow
def test_chains_start_as_wide_as_an_exploding_schedule():
    schedule = NoiseSchedule.edm(30)
    p = GaussianMixture([[1.0, 2.0]], [0.5], schedule=schedule, backend="jax")
    trace = anneal(p, HMC(), ladder=Ladder.full(schedule, steps=5), chains=2000, seed=0)
    x = trace.positions[:, 0]
    np.testing.assert_allclose(x.mean(0), [1, 2], atol=4 * 0.5 / np.sqrt(2000))
    np.testing.assert_allclose(x.std(0), 0.5, rtol=0.1)
    assert float(trace.stats.ess[0]) > 1900, "N(0, sigma^2 I) fits the noisiest level"


@pytest.mark.slow
def test_weights_are_differences_of_energies_at_the_same_positions():
    trace = walk(kernel=MALA(step=1e-9), chains=20)
    x = trace.positions[:, 0]
    with jax.enable_x64(True):
        energies = np.array([np.asarray(PRODUCT.energy(x, level=level)) for level in SHORT.levels])
    np.testing.assert_allclose(trace.stats.log_weight[1:], energies[:-1] - energies[1:], atol=1e-4)
    start = -energies[0] - stats.norm(scale=np.sqrt(0.5)).logpdf(x).sum(1)
    np.testing.assert_allclose(trace.stats.log_weight[0], start, atol=1e-4)


def test_weights_are_recorded_where_they_are_not_used():
    plain, init = walk(), np.random.default_rng(0).standard_normal((50, 2))
    assert not plain.stats.resampled.any()
    assert np.isfinite(plain.stats.log_weight).all()
    assert (plain.stats.ancestor == np.arange(50)).all()
    assert (walk(init=init).stats.log_weight[0] == 0).all()


def test_a_start_may_be_a_tensor_that_requires_a_gradient():
    begun = np.random.default_rng(0).standard_normal((50, 2))
    tensor = torch.tensor(begun, requires_grad=True)
    np.testing.assert_array_equal(walk(init=tensor).positions, walk(init=begun).positions)


@pytest.mark.slow
@pytest.mark.parametrize("potential", [PRODUCT, load("ring")], ids=["JAX", "torch"])
def test_walks_run_where_jax_refuses_to_promote_ranks(potential):
    with jax.numpy_rank_promotion("raise"):
        walk(potential, chains=5)


@pytest.mark.slow
def test_resampling_happens_below_the_threshold_and_on_arriving_at_the_last_rung():
    trace = walk(exact("ring", backend="jax") * exact("bar", backend="jax"), resample=0.9, chains=400)
    triggered = (trace.stats.ess < 360).to_numpy()
    triggered[-1] = True
    np.testing.assert_array_equal(trace.stats.resampled, triggered)
    assert triggered.sum() >= 2
    for rung in np.flatnonzero(triggered):
        ancestors = trace.stats.ancestor[int(rung)].to_numpy()
        assert len(np.unique(ancestors)) < 400
        np.testing.assert_array_equal(np.sort(ancestors), ancestors)


@pytest.mark.slow
def test_resampling_moves_chains_with_their_energies_and_momenta():
    kernel = HMC(step=0.2, refreshment=0.1)
    walker = kernel.bind(PRODUCT)
    state = walker.arrive(np.random.default_rng(0).standard_normal((5, 2)), 50, None, seed=0)
    state, _ = walker.move(state, 3, seed=1)
    chosen = walker.select(state, np.array([4, 4, 0, 1, 1]))
    np.testing.assert_array_equal(chosen.energy, state.energy[[4, 4, 0, 1, 1]])
    np.testing.assert_array_equal(chosen.carried.momentum, state.carried.momentum[np.array([4, 4, 0, 1, 1])])
    arrived = walker.arrive(chosen.positions, 49, chosen, seed=2)
    np.testing.assert_array_equal(arrived.carried.momentum, chosen.carried.momentum)
    with jax.enable_x64(True):
        np.testing.assert_allclose(arrived.energy, PRODUCT.energy(chosen.positions, level=49), rtol=1e-12)


@pytest.mark.slow
def test_energies_belong_to_the_level_where_chains_stand():
    trace = walk(chains=30, draws=4)
    with jax.enable_x64(True):
        energy = np.asarray(PRODUCT.energy(trace.positions, level=0))
    np.testing.assert_allclose(-trace.sample_stats.lp, energy, rtol=1e-10)


@pytest.mark.slow
def test_steps_adapt_along_the_ladder_and_are_frozen_for_draws():
    trace = walk(ladder=Ladder.full(SCHEDULE, steps=1), draws=30, chains=500)
    rates = trace.stats.acceptance_rate.mean("chain")[5:]
    assert 0.7 < float(rates.mean()) < 0.9
    assert float(np.abs(rates - 0.8).max()) < 0.2, "one step a rung is enough to stay near the target"
    assert np.unique(trace.sample_stats.step_size).size == 1
    assert float(trace.stats.step_size[0, 0]) > 2 * float(trace.stats.step_size[-1, 0])
    scaled = walk(kernel=HMC(step=SigmaScaled(0.5)))
    expected = [0.5 * SCHEDULE.sigma(level) for level in SHORT.levels]
    np.testing.assert_allclose(scaled.stats.step_size[:, 0], expected)
    assert np.all(walk(kernel=HMC(step=0.05)).stats.step_size == pytest.approx(0.05))


@pytest.mark.slow
def test_reverse_diffusion_is_right_for_a_single_model_and_wrong_for_a_product():
    single = reverse_diffusion(MODES, chains=4000, seed=0).positions[:, 0]
    assert np.mean(single[:, 0] < 0) == pytest.approx(0.3, abs=0.05)
    assert single.mean(0) == pytest.approx([0.4, 0.21], abs=0.1)
    ring_bar = exact("ring", backend="jax") * exact("bar", backend="jax")
    x = reverse_diffusion(ring_bar, chains=1000, seed=0).positions[:, 0]
    outside = np.minimum(*(np.linalg.norm(x - [0, y], axis=1) for y in (-0.5, 0.5))) > 0.12
    assert 0.3 < outside.mean() < 0.45, "the paper's failure, with exact scores"


def half_broken(value):
    """A Gaussian whose energy is ``value``, which is not finite, for x > 0.5."""

    def energy(x, level):
        return jnp.where(x[..., 0] > 0.5, value, 0.5 * (x**2).sum(-1))

    return EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="jax", name="broken")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in ("HMC", "UHMC") for value in (np.nan, np.inf, -np.inf)), ("NUTS", -np.inf)],
)
def test_energies_that_are_not_finite_are_refused_and_counted(name, value):
    init = np.random.default_rng(0).uniform(-1, 0.4, (200, 2))
    kernel = {"HMC": HMC, "NUTS": NUTS, "UHMC": UHMC}[name](step=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        trace = walk(half_broken(value), kernel, init=init, chains=200, draws=5)
    assert np.all(trace.positions[..., 0] <= 0.5)
    assert float(trace.stats.nonfinite.sum()) > 0
    assert np.all(np.isfinite(trace.sample_stats.lp))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 4 chains end")
@pytest.mark.parametrize("kernel", [HMC(), pyro_bridge.HMC()], ids=["BlackJAX", "Pyro"])
def test_a_chain_that_cannot_leave_zero_density_does_not_shorten_the_step_of_others(kernel):
    def walled(x, level):
        library = jnp if isinstance(x, jax.Array) else torch
        return library.where((abs(x) < 1).all(-1), 0.5 * (x**2).sum(-1), library.inf)

    backend = "jax" if isinstance(kernel, HMC) else "torch"
    wall = EnergyFunction(walled, schedule=SCHEDULE, event_shape=(2,), backend=backend)
    inside = np.array([[0.0, 0.0], [0.3, 0.1], [-0.2, 0.5]])
    settings = {"ladder": Ladder((20, 10, 0), steps=30)}
    alone = walk(wall, kernel, init=inside, chains=3, **settings)
    beside = walk(wall, kernel, init=np.vstack([inside, [[9.0, 9.0]]]), chains=4, **settings)
    steps = [float(trace.stats.step_size[-1, 0]) for trace in (alone, beside)]
    assert steps[1] == pytest.approx(steps[0], rel=0.5), "not shorter by powers of ten"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 40 chains end")
def test_what_a_kernel_does_not_count_is_not_zero():
    """BlackJAX's MALA does not report failures: the count is NaN, except for a chain that arrived at one."""
    kernel = from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, step_size=0.01)
    start = np.zeros((40, 2))
    start[7, 0] = 1.0
    trace = walk(half_broken(np.inf), kernel, init=start, chains=40)
    failures = trace.stats.nonfinite.to_numpy()
    assert np.all(failures[:, 7] == 1)
    assert np.all(np.isnan(np.delete(failures, 7, axis=1)))
    assert any("not finite and were refused" in words for words in diagnose(trace).warnings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
@pytest.mark.parametrize(
    ("scale", "reverse", "share", "expected"),
    [
        (1.0, True, 0.5, {"threw chains"}),
        (1.0, True, None, set()),  # weights are not used, and the draws are right
        (0.1, True, None, {"thrown out on the way"}),
        (0.1, False, 0.5, set()),
    ],
)
def test_chains_that_a_steep_likelihood_throws_out_are_warned_of(scale, reverse, share, expected):
    """A likelihood that does not widen with the noise is followed too far by reverse steps from pure noise."""
    schedule = NoiseSchedule.cosine(20)
    prior = GaussianMixture([[0.0, 0.0]], [1.0], schedule=schedule, backend="jax")
    steep = EnergyFunction(
        lambda x, level: ((x - 1) ** 2).sum(-1) / (2 * scale**2),
        schedule=schedule,
        event_shape=(2,),
        backend="jax",
        exponent=0,
    )
    ladder = Ladder.full(schedule, steps=1)
    options = {"chains": 50, "seed": 0, "ladder": ladder, "reverse_step": reverse, "resample": share}
    trace = anneal(prior * steep, HMC(), **options)
    found = " ".join(trace.attributes["warnings"])
    assert {words for words in ("threw chains", "thrown out on the way") if words in found} == expected


@pytest.mark.filterwarnings("ignore:the variance of the noise falls", "ignore:the exponents of")
@pytest.mark.parametrize(("levels", "told"), [((60, 40, 20), False), ((6, 3, 0), True), ((2, 1, 0), False)])
def test_reverse_steps_whose_weights_vary_too_much_are_warned_of(levels, told):
    options = {"ladder": Ladder(levels, steps=1), "init": np.zeros((50, 2)), "reverse_step": True}
    weighted, plain = (walk(**options, resample=share).attributes["warnings"] for share in (0.5, None))
    assert any("from level 3 to 0" in words for words in weighted) == told
    assert not any("the noise falls" in words for words in plain)


def test_traces_are_told_apart_by_identity():
    trace = walk(half_broken(np.inf), HMC(step=0.1), init=np.zeros((4, 2)), chains=4)
    again = dataclasses.replace(trace)
    assert trace != again
    assert len({trace, again, trace}) == 2


def walled(x, level, wall=0.0):
    return jnp.where(x[..., 0] > wall, 0.5 * (x**2).sum(-1), jnp.inf)


@pytest.mark.slow
def test_a_wall_that_falls_back_is_walked_on_without_a_warning_of_numpy():
    def energy(x, level):
        return walled(x, level, wall=jnp.where(level > 50, 0.0, -9.0))

    receding = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(1,), backend="jax", name="receding")
    trace = walk(receding, NUTS(step=1.0), chains=200)
    came_back = np.isinf(trace.stats.log_weight[1:])
    assert came_back.any(), "chains that no step has brought over the wall"
    assert np.isfinite(trace.stats.ess).all()


@pytest.mark.slow
def test_chains_that_end_behind_a_wall_are_counted():
    half = EnergyFunction(walled, schedule=SCHEDULE, event_shape=(1,), backend="jax", name="half")
    with pytest.warns(SamplingWarning, match=r"chains end where the density of half is zero.* resample=0\.5") as caught:
        trace = walk(half, NUTS(step=1.0), chains=200, draws=3)
    behind = int(np.sum(trace.positions[:, -1] <= 0))
    assert 0 < behind < 200
    assert str(caught[0].message).startswith(f"{behind} of 200 chains")
    assert len(caught) == 1
    weighted = walk(half, NUTS(step=1.0), chains=200, draws=3, resample=0.5)
    assert np.all(weighted.positions > 0)
    assert not weighted.attributes["warnings"]


def test_a_gradient_that_is_not_finite_is_refused_too():
    def energy(x, level):
        return 0.5 * (x**2).sum(-1) + jnp.where(x[..., 0] > 0.5, 0.0, 0.0 * jnp.sqrt(jnp.maximum(0.5 - x[..., 0], 0.0)))

    potential = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="jax", name="kinked")
    with jax.enable_x64(True):
        value, gradient = potential.value_and_grad(np.array([[0.5, 0.0]]), level=0)
    assert np.isfinite(value).all()
    assert not np.isfinite(gradient).all()
    walker = HMC(step=0.1).bind(potential)
    state = walker.arrive(np.array([[0.5, 0.0], [0.1, 0.0]]), 0, None, seed=0)
    assert state.energy[0] == np.inf
    assert np.isfinite(state.energy[1])


@pytest.mark.slow
def test_a_chain_without_a_gradient_stays_where_it_is():
    """It is also counted and warned of: a reverse step would turn its position into NaN."""

    def energy(x, level):
        return 0.5 * (x**2).sum(-1) + jnp.sqrt(1.0 - x[..., 0])

    holed = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="jax", name="holed")
    start = np.array([[0.0, 0.0], [1.5, 0.0]] * 10)
    with pytest.warns(SamplingWarning, match="10 of 20 chains end where the density of holed is zero.*leave them out$"):
        kept = reverse_diffusion(holed, init=start, ladder=Ladder(levels=(2, 1), steps=0), chains=20, seed=0)
    assert np.all(np.isfinite(kept.positions))
    np.testing.assert_array_equal(kept.positions[1::2, 0], start[1::2])
    assert kept.stats.nonfinite.sum("chain").to_numpy().tolist() == [10, 10]
    assert any("20 energies or gradients were not finite" in words for words in diagnose(kept).warnings)
    np.testing.assert_allclose(kept.stats.ess[0], 10)  # also for positions given by init=

    def nowhere(x, level):
        return jnp.nan * x.sum(-1)

    lost = EnergyFunction(nowhere, schedule=SCHEDULE, event_shape=(2,), backend="jax", name="lost")
    with pytest.warns(SamplingWarning, match="energy of lost is not finite for any chain at level 99"):
        walk(lost)
    with pytest.warns(SamplingWarning, match="energy of lost is not finite for any chain at level 99"):
        dead = walk(lost, init=np.zeros((50, 2)), resample=0.5)
    assert not dead.stats.ess.any()

    def floor(x, level):
        return jnp.where(level > 50, 0.0, jnp.nan) * x.sum(-1) + 0.5 * (x**2).sum(-1)

    sinking = EnergyFunction(floor, schedule=SCHEDULE, event_shape=(2,), backend="jax", name="sinking")
    with pytest.warns(SamplingWarning, match="not finite on all levels for any chain down to 45") as caught:
        reverse_diffusion(sinking, ladder=SHORT, chains=5, seed=0)
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.slow
def test_any_kernel_of_blackjax_is_annealed_and_says_what_it_has():
    def generator(key, x):
        return x + 0.3 * jax.random.normal(key, x.shape)

    rmh = from_blackjax(blackjax.rmh.build_kernel, blackjax.rmh.init, transition_generator=generator)
    assert "random_walk" in str(rmh)
    assert "0x" not in str(rmh), "the same in every process"
    trace = walk(kernel=rmh, ladder=Ladder(levels=(99, 30, 0), steps=20), draws=10)
    variadic = from_blackjax(
        blackjax.rmh.build_kernel, lambda *args: blackjax.rmh.init(*args), transition_generator=generator
    )
    again = walk(kernel=variadic, ladder=Ladder(levels=(99, 30, 0), steps=20), draws=10)
    np.testing.assert_array_equal(again.positions, trace.positions)
    assert np.isnan(trace.stats.step_size).all()
    assert np.isnan(trace.sample_stats.step_size).all()
    assert float(trace.stats.acceptance_rate.mean()) > 0.2

    def without_a_rate():
        kernel = blackjax.mala.build_kernel()

        def step(key, state, logdensity_fn, step_size):
            return kernel(key, state, logdensity_fn, step_size)[0], ()

        return step

    with pytest.raises(TypeError, match="no acceptance_rate to adapt"):
        walk(kernel=from_blackjax(without_a_rate, blackjax.mala.init, step_size=Adaptive()))
    rough = from_blackjax(without_a_rate, blackjax.mala.init, adjusted=False, step_size=0.01)
    assert any("unadjusted" in words for words in diagnose(walk(kernel=rough)).warnings)


class Mirrored(EnergyFunction):
    """Chains are mirrored on arrival, in place."""

    seen = ()

    def refresh(self, positions, level, *, rng):
        self.seen = (*self.seen, (type(positions), positions.dtype))
        positions[rng.random(len(positions)) < 0.5] *= -1
        return positions, 0.0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_moves_on_arrival_get_numpy_arrays_of_their_own(backend):
    mirrored = Mirrored(lambda x, level: 0.5 * (x**2).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend=backend)
    trace = walk(mirrored)
    assert set(mirrored.seen) == {(np.ndarray, np.dtype(np.float64))}
    np.testing.assert_allclose(trace.stats.log_weight[1:], 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_random_key_of_an_init_is_known_by_its_name():
    def key_first(position, rng_key, logdensity_fn):  # as in older releases of BlackJAX
        return blackjax.ghmc.init(position, logdensity_fn=logdensity_fn, rng_key=rng_key)

    def key_last(position, logdensity_fn, rng_key):
        return blackjax.ghmc.init(position, logdensity_fn=logdensity_fn, rng_key=rng_key)

    parameters = {"step_size": 0.1, "momentum_inverse_scale": 1.0, "alpha": 0.1, "delta": 0.2}
    kernels = (from_blackjax(blackjax.ghmc.build_kernel, init, **parameters) for init in (key_first, key_last))
    one, other = (walk(kernel=kernel).positions for kernel in kernels)
    np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_a_potential_is_copied_and_pickled_after_a_walk_as_before():
    walk(MODES)
    for copy in (pickle.loads(pickle.dumps(MODES)), deepcopy(MODES)):
        np.testing.assert_array_equal(walk(copy).positions, walk(MODES).positions)
    inside = to_torch(MODES)
    inside.energy(np.zeros((3, 2)), level=2)
    assert pickle.loads(pickle.dumps(inside)).energy(np.zeros((3, 2)), level=2).shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [53, 4])
def test_any_number_of_draws_is_recorded(draws):
    told = []
    trace = walk(GAUSS, draws=draws, progress=told.append)
    assert trace.positions.shape == (50, draws, 2)
    assert trace.sample_stats.sizes["draw"] == draws
    assert [state.draw for state in told if state.draw] == ([25, 50, 53] if draws == 53 else [4])


@pytest.mark.slow
def test_a_bad_start_is_warned_of():
    narrow = GaussianMixture([[1.5, 1.5]], [0.05], schedule=SCHEDULE, backend="jax")
    with pytest.warns(SamplingWarning, match="start the ladder at the noisiest level, 99"):
        walk(narrow, ladder=Ladder(levels=(5, 0), steps=1), chains=200)
    elsewhere = EnergyFunction(
        lambda x, level: 50 * ((x - 1.0) ** 2).sum(-1),
        schedule=SCHEDULE,
        event_shape=(2,),
        backend="jax",
        name="elsewhere",
    )
    ladder, exact_evidence = Ladder(levels=(99, 50, 0), steps=2), np.log(2 * np.pi / 100)
    with pytest.warns(SamplingWarning, match="mend the samples, only more chains the evidence"):
        few = walk(elsewhere, ladder=ladder, chains=200)
    with pytest.warns(SamplingWarning, match="mend the samples, only more chains the evidence"):
        patient = walk(elsewhere, ladder=Ladder(levels=(99, 50, 0), steps=(40, 2, 2)), chains=200)
    assert patient.log_normaliser == few.log_normaliser
    with pytest.warns(SamplingWarning, match="only more chains"):
        many = walk(elsewhere, ladder=ladder, chains=20_000)
    share = float(many.stats.ess[0]) / 20_000
    assert abs(many.log_normaliser - exact_evidence) < 4 / np.sqrt(20_000 * share)


PLANAR = {name: exact(name, backend="jax") for name in ("ring", "bar", "box", "inner_box", "wide")}
QUOTIENTS = {
    "1.3 / -0.3 boxes": (PLANAR["box"] ** 1.3 / PLANAR["inner_box"] ** 0.3, True),
    "ring / bar**0.3": (PLANAR["ring"] / PLANAR["bar"] ** 0.3, True),
    "guidance(ring, bar, 3)": (guidance(PLANAR["ring"], PLANAR["bar"], scale=3.0), True),
    "ring / wide**0.5": (PLANAR["ring"] / PLANAR["wide"] ** 0.5, False),
    "ring * bar": (PLANAR["ring"] * PLANAR["bar"], False),
    "guidance(ring, wide, 1.5)": (guidance(PLANAR["ring"], PLANAR["wide"], scale=1.5), False),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case.startswith("guidance") else pytest.mark.long) for case in QUOTIENTS]
)
def test_quotients_without_a_density_are_warned_of_and_sound_ones_are_not(case):
    potential, warned = QUOTIENTS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace = anneal(potential, HMC(), ladder=Ladder.full(SCHEDULE, steps=5), chains=300, seed=0)
    words = [str(w.message) for w in caught if issubclass(w.category, SamplingWarning)]
    assert bool(words) == warned, words
    assert list(trace.attributes["warnings"]) == words
    assert all(w.filename == __file__ for w in caught if issubclass(w.category, SamplingWarning)), "the caller's line"
    assert all("lower the exponent" in sentence for sentence in words)


def test_tails_are_checked_without_sampling():
    assert (
        "not normalisable at levels 0, 1"
        in check_quotient(guidance(PLANAR["ring"], PLANAR["bar"], scale=3.0), levels=(0, 1, 50))[0]
    )
    assert check_quotient(PLANAR["ring"] / PLANAR["wide"] ** 0.5, levels=range(0, 100, 10)) == []
    assert "not normalisable" in check_quotient(GAUSS / MODES**2.0, levels=(0,))[0]
    bad = PLANAR["ring"] / PLANAR["wide"] ** 9.0
    assert check_quotient(bad + PLANAR["bar"], levels=(50,)) == check_quotient(bad, levels=(50,))
    assert "not normalisable" in check_quotient(PLANAR["bar"] ** 0.001 * (bad + PLANAR["bar"]), levels=(50,))[0]
    assert check_quotient(PLANAR["bar"] * (PLANAR["ring"] + PLANAR["bar"]), levels=(50,)) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the start density", "ignore:.* of the chains of ring")
def test_a_quotient_is_looked_at_through_every_door():
    """Tails and chains outside the support are also checked in a converted potential and in the prior of a model."""
    steep = guidance(PLANAR["ring"], PLANAR["bar"], scale=3.0)
    far = np.full((20, 2), 30.0)

    def model():
        pyro.sample("x", DiffusionPrior(steep))

    expected = check_quotient(steep, levels=(50, 1, 0), positions=far, level=50)
    assert ["not normalisable" in expected[0], "left the support of ring" in expected[1]] == [True, True]
    for door in (to_jax(steep), to_jax(to_jax(steep) ** 1.0), JointPotential(model, likelihood="widened")):
        assert check_quotient(door, levels=(50, 1, 0), positions=far, level=50) == expected

    def rows():
        pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("n", 2):
            pyro.sample("x", DiffusionPrior(steep).expand([2]))

    flat = np.concatenate([np.zeros((20, 1)), np.full((20, 4), 30.0)], axis=1)
    joint = JointPotential(rows, likelihood="widened")
    assert check_quotient(joint, levels=(50, 1, 0), positions=flat, level=50) == expected
    with pytest.warns(SamplingWarning, match="not normalisable"):
        anneal(to_jax(steep), HMC(), ladder=Ladder((99, 50, 1), steps=1), chains=4, seed=0)


REFUSED = {
    "a function": (lambda: walk(lambda x, level: x), TypeError, "EnergyFunction"),
    "a kernel class": (lambda: walk(kernel=HMC), TypeError, r"HMC\(leapfrogs=3\)"),
    "no kernel": (lambda: walk(kernel="hmc"), TypeError, "kernel"),
    "no chains": (lambda: walk(chains=0), ValueError, "chains"),
    "a bar for progress": (lambda: walk(progress=True), TypeError, "progress=print"),
    "half a chain": (lambda: walk(chains=2.5), ValueError, "whole number"),
    "no draws": (lambda: walk(draws=0), ValueError, "draws"),
    "negative seed": (lambda: walk(seed=-1), ValueError, "seed"),
    "resample all": (lambda: walk(resample=True), ValueError, r"resample=0\.5"),
    "resample 50": (lambda: walk(resample=50), ValueError, r"resample=0\.5"),
    "a list for a ladder": (lambda: walk(ladder=[3, 2, 1]), TypeError, "Ladder.full"),
    "ladder too high": (lambda: walk(ladder=Ladder(levels=(120, 0))), ValueError, "potential.schedule"),
    "init of another shape": (lambda: walk(init=np.zeros((50, 3))), ValueError, r"here \(50, 2\)"),
    "init of other chains": (lambda: walk(init=np.zeros((49, 2))), ValueError, "50"),
    "init is nan": (lambda: walk(init=np.full((50, 2), np.nan)), ValueError, "finite"),
    "no start": (lambda: walk(MODES / GAUSS**1.5), ValueError, "init="),
    "negative step": (lambda: HMC(step=-0.1), ValueError, "positive"),
    "step as text": (lambda: HMC(step="0.1"), TypeError, "SigmaScaled"),
    "no leapfrogs": (lambda: HMC(leapfrogs=0), ValueError, "leapfrogs=3"),
    "no refreshment": (lambda: HMC(refreshment=0.0), ValueError, "refreshment"),
    "a target of 70": (lambda: Adaptive(target_acceptance=70), ValueError, "0.7"),
    "no jitter": (lambda: Adaptive(jitter=0), ValueError, "1 for none"),
    "no doublings": (lambda: NUTS(max_doublings=0), ValueError, "max_doublings"),
    "misspelt": (lambda: HMC(leapfrog=3), TypeError, "leapfrog"),
    "unknown parameter": (
        lambda: from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, stepsize=1),
        TypeError,
        "takes no stepsize",
    ),
    "an algorithm of BlackJAX": (
        lambda: from_blackjax(blackjax.mala, blackjax.mala.init, step_size=0.1),
        TypeError,
        "pass its .build_kernel and its .init",
    ),
    "a kernel without its step": (
        lambda: from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init),
        TypeError,
        r"needs step_size: give from_blackjax\(build_kernel, init, step_size=...\)",
    ),
    "a kernel that is to be built": (
        lambda: from_blackjax(blackjax.elliptical_slice.build_kernel, blackjax.elliptical_slice.init),
        TypeError,
        r"lambda: build_kernel\(cov_matrix, mean\)",
    ),
    "a kernel that takes gradients of batches": (
        lambda: from_blackjax(blackjax.sgld.build_kernel, blackjax.sgld.init, step_size=0.1),
        TypeError,
        "MCMC kernels only",
    ),
    "a kernel that needs more than a key": (
        lambda: from_blackjax(blackjax.orbital_hmc.build_kernel, blackjax.orbital_hmc.init, step_size=0.1),
        TypeError,
        "needs period beside position",
    ),
    "no gradient to go by": (
        lambda: walk(
            kernel=from_blackjax(blackjax.rmh.build_kernel, blackjax.rmh.init, transition_generator=lambda key, x: x),
            reverse_step=True,
        ),
        ValueError,
        "reverse_step=False",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    act, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_bytes_as_a_start_are_told_from_pictures():
    digits, ladder = load("digits"), Ladder(levels=(5,), steps=0)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 28, 28)).astype(float)
    settings = {"ladder": ladder, "chains": 2, "seed": 0}
    with pytest.warns(SamplingWarning, match=r"values from 0 to 255\): pictures are in \[-1, 1\].*x / 127.5 - 1"):
        anneal(digits, HMC(step=1e-6, leapfrogs=1), init=pictures, **settings)
    trace = anneal(digits, HMC(step=1e-6, leapfrogs=1), init=pictures / 127.5 - 1, **settings)
    assert not trace.attributes["warnings"]


@pytest.mark.long
def test_what_is_recorded_on_the_way_does_not_grow_with_the_picture():
    def square(x, level):
        return 0.5 * (x**2).sum((-1, -2))

    sizes = {}
    for side in (2, 16):
        target = EnergyFunction(square, schedule=NoiseSchedule.cosine(20), event_shape=(side, side), backend="torch")
        sizes[side] = anneal(target, HMC(), ladder=Ladder.full(target.schedule, steps=1), chains=4, seed=0).stats.nbytes
    assert sizes[2] == sizes[16]


def test_scales_of_coordinates_are_told_by_their_gradients():
    """For Gaussians, the scales are the standard deviations relative to those of the diffused coordinates."""
    deviations, diffused = np.array([0.5] * 50 + [0.05, 5.0, 1e-6]), np.array([True] * 50 + [False] * 3)
    expected = [*[1.0] * 50, 0.1, 10, 1 / 30]
    rng, scales, rungs = np.random.default_rng(0), np.ones(53), []
    for _ in range(400):
        scales = block_scales(scales, rng.standard_normal((4, 53)) / deviations, diffused)
        rungs.append(np.log(scales))
    np.testing.assert_allclose(np.exp(np.mean(rungs[50:], axis=0)), expected, rtol=0.1)
    assert np.std(rungs[50:], axis=0).max() < 0.5, "few chains do not throw the scales about"
    several = block_scales(np.ones(53), rng.standard_normal((50_000, 53)) / deviations, diffused)
    np.testing.assert_allclose(several, expected, rtol=0.02)
    lost = np.array([[np.nan] * 53, [np.inf] * 53])
    np.testing.assert_array_equal(block_scales(scales, lost, diffused), scales)
    np.testing.assert_array_equal(block_scales(np.ones(5), np.ones((3, 5)), np.ones(5, bool)), np.ones(5))


@pytest.mark.long
def test_evaluations_that_a_kernel_does_not_count_are_not_known():
    """A slice sampler makes many in a step; a number that is made up would make its effective draws cheap."""
    mala = {"build_kernel": blackjax.mala.build_kernel, "init": blackjax.mala.init, "step_size": 0.01}
    few = {"ladder": Ladder((50, 0), steps=2), "chains": 6, "draws": 4}
    trace = walk(GAUSS, from_blackjax(**mala), **few)
    assert np.isnan(trace.gradient_calls)
    assert np.isnan(trace.stats.gradient_calls).all()
    assert np.isnan(trace.sample_stats.n_steps).all()
    assert walk(GAUSS, from_blackjax(**mala, evaluations=1), **few).gradient_calls == 2 * (1 + 2) + 4
    home = GaussianMixture([[0.2, 0.1]], [0.5], schedule=SCHEDULE, backend="torch")
    assert walk(home, from_blackjax(**mala), **few).gradient_calls == 2 * (1 + 2) + 4, "calls of torch are counted"
    with pytest.raises(ValueError, match="evaluations must be a whole number"):
        from_blackjax(**mala, evaluations=0)


def test_a_walker_that_lacks_the_log_density_of_its_draws_is_told_of(monkeypatch):
    kernel = HMC()
    walker = kernel.bind(PRODUCT)
    record = walker.record

    def without(*args, **options):
        state, x, info = record(*args, **options)
        return state, x, {name: value for name, value in info.items() if name != "lp"}

    monkeypatch.setattr(walker, "record", without)
    with pytest.raises(TypeError, match="returns no lp"):
        walk(kernel=kernel)


def test_observed_bytes_are_named():
    """Also as floating points, which the factor itself cannot tell from data of another scale."""
    digits, values = load("digits"), np.zeros((28, 28))
    values[10:18] = 255.0
    for scaled, named in ((values, True), (values / 127.5 - 1, False)):
        target = digits * observation(scaled, scale=0.5, schedule=digits.schedule, backend="torch")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reverse_diffusion(target, ladder=Ladder(levels=(99,), steps=0), chains=2, seed=0)
        assert any("bytes of pictures by x / 127.5 - 1" in str(one.message) for one in caught) == named


def test_numpy_may_raise_on_underflow():
    with np.errstate(all="raise"):
        trace = walk(GAUSS, resample=0.5, ladder=Ladder(levels=(99, 50, 0), steps=1))
    assert np.isfinite(trace.log_normaliser)


def test_energies_on_arrival_are_those_of_the_chains_that_took_the_place():
    trace = walk(kernel=MALA(step=1e-9), chains=20, resample=1.0)
    assert trace.stats.resampled.sum() > 2
    np.testing.assert_allclose(trace.stats.energy_arrival, trace.stats.energy, atol=1e-4)


def test_chains_are_resampled_on_arriving_at_the_last_rung_however_even_their_weights():
    trace = walk(GAUSS, resample=0.01)
    assert trace.stats.resampled.to_numpy().tolist() == [False] * 11 + [True]


def test_progress_tells_the_effective_share_of_the_chains():
    told = []
    trace = walk(draws=2, progress=told.append)
    np.testing.assert_allclose([progress.ess for progress in told[:-1]], trace.stats.ess / 50)
    assert np.isnan(told[-1].ess)


@pytest.mark.long
def test_every_rung_and_every_block_of_draws_has_random_numbers_of_its_own():
    slow = HMC(step=1e-4, leapfrogs=1)  # a random walk, whose variance is the sum over steps
    ladder, init = Ladder((53, 52, 51, 50), steps=1), np.zeros((2000, 2))
    x = walk(GAUSS, slow, ladder=ladder, chains=2000, init=init).positions
    assert np.var(x) == pytest.approx(5e-8, rel=0.15), "four rungs and a draw"
    moves = np.diff(walk(GAUSS, slow, draws=50).positions, axis=1)  # two blocks of 25
    assert abs(np.corrcoef(moves[:, :24].ravel(), moves[:, 25:49].ravel())[0, 1]) < 0.2


@pytest.mark.slow
def test_the_two_cleanest_rungs_of_a_ladder_are_looked_at():
    """Only the cleanest levels of this quotient are not normalisable."""
    p, q = (GaussianMixture([[0.0, 0.0]], [v**0.5], schedule=SCHEDULE, backend="jax") for v in (0.02, 0.01))
    with pytest.warns(SamplingWarning, match="not normalisable at levels 0, 1:"):
        walk(p / q**0.6, ladder=Ladder.full(SCHEDULE, steps=0), chains=4)


def test_a_tenth_of_the_chains_outside_the_support_is_told_of():
    ring, wide = exact("ring", backend="jax"), exact("wide", backend="jax")
    x = ring.sample(100, level=20, seed=0)
    assert check_quotient(ring / wide**0.5, levels=(), positions=x, level=20) == []
    x[:10] = 30.0
    (note,) = check_quotient(ring / wide**0.5, levels=(), positions=x, level=20)
    assert note.startswith("10% of the chains")


def test_a_start_is_measured_in_standard_deviations():
    narrow = GaussianMixture([[0.3, -0.1]], [0.1], schedule=SCHEDULE, backend="jax")
    noise = np.random.default_rng(0).standard_normal((100, 2))
    assert check_init(narrow, 0, narrow.means + 0.5 * noise) == []
    assert "standard deviations away" in check_init(narrow, 0, narrow.means + 2.0 * noise)[0]


def test_draws_that_are_not_finite_are_told_of():
    drawn = np.zeros((3, 4, 2))
    drawn[1, 2:] = np.nan
    lp = xr.Dataset({"lp": (("chain", "draw"), np.zeros((3, 4)))})
    (note,) = check_last_draws(PRODUCT, drawn, lp, still=False)
    assert "draws of 1 of 3 chains are not finite" in note


def test_the_jump_distance_is_the_mean_over_steps():
    walker = HMC(step=1e-3, leapfrogs=1).bind(MODES)
    state = walker.arrive(MODES.sample(2000, level=50, seed=0), 50, None, seed=0)
    for steps in (1, 10):
        _, info = walker.move(state, steps, seed=1)
        assert info["jump_distance"].mean() == pytest.approx(1e-3 * np.sqrt(np.pi / 2), rel=0.05)


@pytest.mark.long
def test_nuts_doubles_as_often_as_it_may_and_its_longest_trajectory_is_counted():
    few = {"ladder": Ladder((50,), steps=1), "chains": 6, "draws": 10}
    trace = walk(GAUSS, NUTS(step=0.15, max_doublings=3), **few)
    assert trace.sample_stats.n_steps.max() == 2**3 - 1
    assert trace.sample_stats.n_steps.min() < 2**3 - 1
    assert trace.sample_stats.attrs["gradient_calls"] == int(trace.sample_stats.n_steps.max("chain").sum())


@pytest.mark.slow
def test_trajectories_that_diverge_are_counted():
    trace = walk(kernel=HMC(step=50.0), ladder=Ladder((50, 0), steps=2), draws=3)
    assert trace.stats.diverging.sum() > 0
    assert trace.sample_stats.diverging.sum() > 0
    assert any("trajectories diverged" in words for words in diagnose(trace).warnings)
