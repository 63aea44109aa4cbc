"""Traces in ArviZ 0.23 and 1.x; every warning of the diagnosis, where it is due and where it is not."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import xarray as xr

import bridges.arviz.convert as bridge
from bridges.arviz import diagnose, summaries, to_inference_data
from bridges.arviz.plots import image_grid, plot_ladder, plot_planar, plot_samples
from bridges.blackjax import HMC, NUTS, ULA
from ppl_diffusion import Adaptive, GaussianMixture, Ladder, NoiseSchedule, anneal, reverse_diffusion

SCHEDULE = NoiseSchedule.cosine(30)
LADDER = Ladder.full(SCHEDULE, steps=5)
TARGET = GaussianMixture([[0.3, 0.1]], [0.5], schedule=SCHEDULE, backend="jax")
IMAGES = GaussianMixture(np.zeros((1, 36)), [0.5], schedule=SCHEDULE, backend="jax")


@pytest.fixture(params=["installed", "1.x"])
def library(request, monkeypatch):
    """The installed ArviZ, and ArviZ 1.x assembled from its three packages."""
    if request.param == "1.x":
        base, stats = pytest.importorskip("arviz_base"), pytest.importorskip("arviz_stats")
        module = types.SimpleNamespace(
            __version__="1.0.0", from_dict=base.from_dict, summary=stats.summary, rhat=stats.rhat, ess=stats.ess
        )
        monkeypatch.setattr(bridge, "arviz", lambda: module)
    return bridge.arviz()


@pytest.fixture(scope="module")
def good():
    return anneal(TARGET, HMC(), ladder=LADDER, chains=100, draws=40, seed=0)


@pytest.fixture(scope="module")
def pictures():
    found = anneal(IMAGES, HMC(), ladder=LADDER, chains=6, draws=40, seed=0)
    return dataclasses.replace(found, positions=found.positions.reshape(6, 40, 6, 6))


def group(data, name):
    found = data[name]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


@pytest.mark.slow
def test_groups_dimensions_and_provenance(library, good):
    data = to_inference_data(good)
    assert type(data).__name__ == ("DataTree" if int(library.__version__[0]) >= 1 else "InferenceData")
    posterior = group(data, "posterior")
    assert posterior["x"].dims == ("chain", "draw", "x_dim_0")
    np.testing.assert_array_equal(posterior["x"], good.positions)
    stats = group(data, "sample_stats")
    assert {"lp", "acceptance_rate", "diverging", "step_size", "n_steps"} <= set(stats)
    assert stats["diverging"].dtype == bool
    annealing = group(data, "annealing")
    assert all(values.dims == ("rung", "chain") for values in annealing.data_vars.values()), "as joining runs needs"
    np.testing.assert_array_equal(annealing["level"], LADDER.levels)
    assert data.attrs["inference_library"] == "ppl-diffusion"
    assert data.attrs["seed"] == "0"
    table = library.summary(data, var_names=["x"])
    assert list(table.index) == ["x[0]", "x[1]"]
    if hasattr(library, "concat"):
        assert library.concat([data, to_inference_data(good)], dim="chain").annealing.sizes["chain"] == 200


def test_pictures_are_summarised_by_scalars(library, pictures):
    data = to_inference_data(pictures)
    posterior = group(data, "posterior")
    assert posterior["x"].dims == ("chain", "draw", "x_dim_0", "x_dim_1")
    assert {"energy", "mean", "projection_0", "projection_3"} <= set(posterior)
    assert all(value.shape == (6, 40) for value in summaries(pictures).values())
    np.testing.assert_allclose(posterior["energy"], -pictures.sample_stats.lp)
    found = diagnose(pictures)
    assert set(found.draws["variable"].to_numpy()) == {*summaries(pictures), "worst coordinate"}


def test_sites_of_a_model_are_the_posterior(library, good):
    sites = {"x": good.positions, "noise": good.positions[..., 0]}
    posterior = group(to_inference_data(dataclasses.replace(good, sites=sites)), "posterior")
    assert posterior["noise"].dims == ("chain", "draw")


def test_a_site_may_be_named_as_a_statistic_is(library, good):
    trace = dataclasses.replace(
        good, sites={"lp": good.positions}, attributes={**good.attributes, "dims": {"lp": ["d"]}}
    )
    data = to_inference_data(trace)
    np.testing.assert_array_equal(group(data, "posterior")["lp"], good.positions)
    np.testing.assert_array_equal(group(data, "sample_stats")["lp"], good.sample_stats["lp"])
    assert data.attrs["inference_library"] == "ppl-diffusion"


def test_a_good_run_gets_no_warning_and_a_full_table(library, good):
    found = diagnose(good)
    assert found.warnings == ()
    assert found.rungs.sizes["rung"] == len(LADDER)
    np.testing.assert_allclose(found.rungs.acceptance, good.stats.acceptance_rate.mean("chain"))
    assert (found.rungs.stuck < 10).all()
    assert (found.rungs.ancestors == 100).all()
    assert float(found.draws.r_hat.max()) < 1.05
    text = str(found)
    assert "acceptance" in text
    assert "nothing suspicious was found" in text


def with_stats(trace, **columns):
    stats = trace.stats.copy(deep=True)
    for name, value in columns.items():
        stats[name] = stats[name].dims, np.broadcast_to(value, stats[name].shape).copy()
    return dataclasses.replace(trace, stats=stats)


@pytest.mark.slow
def test_few_draws_get_no_r_hat():
    found = diagnose(anneal(TARGET, HMC(), ladder=LADDER, chains=50, draws=10, seed=0))
    assert found.draws.sizes == {}
    assert not any("R-hat" in sentence for sentence in found.warnings)


def says(trace, words):
    return any(words in sentence for sentence in diagnose(trace).warnings)


def test_unadjusted_kernels_are_named(good):
    assert says(anneal(TARGET, ULA(), ladder=LADDER, chains=20, seed=0), "unadjusted")
    assert not says(good, "unadjusted")


def test_low_acceptance_is_named():
    assert says(anneal(TARGET, HMC(step=2.5), ladder=LADDER, chains=50, seed=0), "acceptance is under .2")


def test_stuck_chains_are_named_where_effective_sizes_are_full():
    """ArviZ reports the full effective sample size for chains that never moved."""
    trace = anneal(TARGET, HMC(step=50.0), ladder=LADDER, chains=30, draws=30, seed=0)
    assert says(trace, "30 of 30 chains did not move")


@pytest.mark.slow
def test_a_chain_that_moved_before_its_draws_is_not_stuck():
    kernel, ladder = HMC(step=Adaptive(target_acceptance=0.5)), Ladder(levels=(29, 15, 0), steps=(5, 5, 40))
    trace = anneal(TARGET, kernel, ladder=ladder, chains=60, draws=2, seed=0)
    x = trace.positions.reshape(60, 2, -1)
    assert np.any(np.all(x == x[:, :1], axis=(1, 2))), "refused once"
    assert not says(trace, "did not move")


@pytest.mark.slow
def test_stationary_draws_of_few_chains_are_not_called_modes():
    """R-hat of few independent draws often exceeds 1.05 by chance; that of two separate modes is far larger."""
    rng, words = np.random.default_rng(0), "each chain stays in its mode"
    trace = anneal(TARGET, HMC(), ladder=LADDER, chains=4, draws=20, seed=0)
    alarms = [says(dataclasses.replace(trace, positions=rng.standard_normal((4, 20, 2))), words) for _ in range(40)]
    assert sum(alarms) <= 3
    apart = rng.standard_normal((4, 20, 2)) + np.array([0, 0, 6, 6])[:, None, None]
    assert says(dataclasses.replace(trace, positions=apart), words)


@pytest.mark.slow
@pytest.mark.parametrize(("chains", "draws"), [(64, 25), (256, 50)])
def test_correlated_draws_are_not_called_modes(chains, draws):
    """The energy of stationary chains of HMC is correlated, and its R-hat above what independent draws would have."""
    gauss = GaussianMixture([[0.0] * 5], [1.0], schedule=SCHEDULE, backend="jax")
    found = []
    for seed in range(4):
        start = gauss.sample(chains, level=0, seed=50 + seed)
        trace = anneal(gauss, HMC(), ladder=Ladder((0,), steps=50), chains=chains, draws=draws, seed=seed, init=start)
        found.append(diagnose(trace))
        assert not says(trace, "each chain stays in its mode")
    assert max(float(each.draws.r_hat.max()) for each in found) > 1.04


def test_one_coordinate_of_many_that_does_not_mix_is_named(pictures):
    """Neither the energy nor projections show it."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((20, 200, 8, 8))
    apart = mixed.copy()
    apart[:10, :, 3, 5] += 4.0
    lp = xr.DataArray(-0.5 * (mixed**2).sum((2, 3)), dims=("chain", "draw"))
    stats = pictures.stats.isel(chain=np.zeros(20, dtype=int))
    trace = dataclasses.replace(pictures, positions=mixed, stats=stats, sample_stats=xr.Dataset({"lp": lp}))
    assert not says(trace, "R-hat")
    found = diagnose(dataclasses.replace(trace, positions=apart))
    assert float(found.draws.r_hat.sel(variable="worst coordinate")) > 1.5
    assert float(found.draws.r_hat.drop_sel(variable="worst coordinate").max()) < 1.3
    assert any("R-hat" in sentence for sentence in found.warnings)


@pytest.mark.slow
def test_a_population_of_one_rung_that_collapsed_is_named():
    far = np.random.default_rng(0).normal(2.0, 0.5, (200, 2))
    ancestors = np.random.default_rng(0).integers(5, size=(1, 200))
    trace = anneal(TARGET, HMC(), ladder=Ladder((0,), steps=5), chains=200, seed=0, init=far)
    lost = dataclasses.replace(trace, stats=trace.stats.assign(ancestor=(("rung", "chain"), ancestors)))
    assert says(lost, "only 5 of 200 ancestors")
    assert not says(trace, "ancestors")
    alone = anneal(TARGET, HMC(), ladder=Ladder((20, 0), steps=5), chains=1, seed=0)
    assert not says(alone, "ancestors"), "a chain is its own"


def test_a_single_refused_draw_is_no_low_acceptance(good):
    one = good.sample_stats.isel(chain=[0], draw=[0]).assign(acceptance_rate=(("chain", "draw"), [[0.0]]))
    words = "under .2 in the recorded draws"
    alone = dataclasses.replace(good, positions=good.positions[:1, :1], stats=good.stats.isel(chain=[0]))
    assert not says(dataclasses.replace(alone, sample_stats=one), words)


def test_an_r_hat_that_slow_chains_may_have_is_told_as_that(good):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((100, 40, 2))
    for i in range(1, 40):
        noise[:, i] = 0.7 * noise[:, i - 1] + 0.51**0.5 * noise[:, i]
    slow = dataclasses.replace(good, positions=noise)
    assert 1.1 < float(diagnose(slow).draws.r_hat.max()) < float(diagnose(slow).draws.r_hat_limit.max())
    assert says(slow, "may have by chance: record more draws")
    assert not says(slow, "each chain stays")


@pytest.mark.slow
def test_what_was_not_computed_is_not_called_sound():
    one = anneal(TARGET, HMC(), ladder=LADDER, chains=1, draws=30, seed=0)
    assert not diagnose(one).draws
    assert "r_hat" not in str(diagnose(one))
    still = anneal(TARGET, HMC(), ladder=Ladder(levels=(29, 15, 0), steps=(5, 0, 5)), chains=8, seed=0)
    assert np.isnan(diagnose(still).rungs.stuck[1])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [HMC(), HMC(refreshment=0.3), NUTS()], ids=["HMC", "partial", "NUTS"])
def test_the_hamiltonian_is_recorded_for_plots_of_energy(kernel):
    trace = anneal(TARGET, kernel, ladder=LADDER, chains=200, draws=20, seed=0)
    kinetic = (trace.sample_stats.energy + trace.sample_stats.lp).to_numpy()
    assert (kinetic >= 0).all()
    assert kinetic.mean() == pytest.approx(1.0, abs=4 * kinetic.mean(1).std() / 200**0.5), "half of the two dimensions"
    found = bridge.arviz().bfmi(to_inference_data(trace))
    assert np.all(np.asarray(found if isinstance(found, np.ndarray) else found["energy"]) > 0.1)


@pytest.mark.slow
def test_drift_at_the_last_rung_is_named(good):
    cold = np.full((300, 2), 3.0)
    trace = anneal(TARGET, HMC(step=0.05), ladder=Ladder(levels=(0,), steps=4), chains=300, seed=0, init=cold)
    assert says(trace, "still drifted")
    assert not says(good, "drifted")


@pytest.mark.slow
def test_modes_that_do_not_mix_are_named(good):
    two = GaussianMixture([[-3.0, 0.0], [3.0, 0.0]], [0.1, 0.1], schedule=SCHEDULE, backend="jax")
    trace = anneal(two, HMC(), ladder=LADDER, chains=20, draws=50, seed=0)
    assert says(trace, "R-hat")
    assert not says(good, "R-hat")


def test_failures_of_the_potential_are_named(good):
    assert says(with_stats(good, nonfinite=1.0), "not finite and were refused (first at level 29)")
    assert says(with_stats(good, diverging=1.0), "diverged")


def test_failures_in_recorded_draws_are_named(good):
    """They may begin there, and are no part of the statistics of rungs."""
    for name, value, words in (
        ("nonfinite", 1.0, "4000 energies or gradients were not finite and were refused (4000 of them in the recorded"),
        ("diverging", 1.0, "4000 trajectories diverged (4000 of them in the recorded draws)"),
        ("acceptance_rate", 0.1, "acceptance is under .2 in the recorded draws"),
    ):
        assert not says(good, words)
        failed = good.sample_stats.assign({name: xr.full_like(good.sample_stats.lp, value)})
        assert says(dataclasses.replace(good, sample_stats=failed), words)


def test_weights_are_judged_by_their_spread(good):
    rng = np.random.default_rng(0)
    rough = with_stats(good, log_weight=12 * rng.standard_normal((30, 100)))
    assert says(rough, "meaningless")
    useful = with_stats(good, log_weight=0.3 * rng.standard_normal((30, 100)), ess=40.0)
    assert says(useful, "resample=0.5 would correct")
    uneven = with_stats(good, log_weight=2.0 * rng.standard_normal((30, 100)), ess=4.0)
    assert says(uneven, "few ancestors")
    start = useful.stats.log_weight.copy()
    start[0, 0] = 20.0
    lopsided = with_stats(good, log_weight=start, ess=2.0)
    assert says(lopsided, "fits level 29 badly, so that resampling would leave few ancestors")
    assert not says(uneven, "more rungs"), "it has them all"
    fewer = {name: uneven.attributes[name][::3] for name in ("levels", "steps")}
    coarse = dataclasses.replace(
        uneven, stats=uneven.stats.isel(rung=slice(0, None, 3)), attributes={**uneven.attributes, **fewer}
    )
    assert says(coarse, "ladder with more rungs")
    one_lost = np.zeros((30, 100))
    one_lost[:, 0] = -100.0
    assert says(with_stats(good, log_weight=one_lost, ess=40.0), "resample=0.5 would correct")
    assert not says(good, "log-weights")
    used = dataclasses.replace(rough, attributes={**rough.attributes, "resample": 0.5})
    assert says(used, "the weights that were used are meaningless")


def test_a_collapsed_population_is_named(good):
    collapsed = with_stats(good, ancestor=0)
    collapsed = dataclasses.replace(collapsed, attributes={**good.attributes, "resample": 0.5})
    assert says(collapsed, "only 1 of 100 ancestors")
    assert not says(anneal(TARGET, HMC(), ladder=LADDER, chains=100, draws=5, seed=0, resample=0.5), "ancestors")


def test_ancestors_are_followed_to_the_start(good):
    rungs = good.stats.sizes["rung"]
    halves = np.broadcast_to(np.arange(100) // 2, (rungs, 100))
    trace = dataclasses.replace(good, stats=good.stats.assign(ancestor=(("rung", "chain"), halves)))
    assert diagnose(trace).rungs.ancestors.to_numpy().tolist() == [50, 25, 13, 7, 4, 2] + [1] * (rungs - 6)


@pytest.mark.parametrize("adjusted", [True, False])
def test_weights_of_an_unadjusted_kernel_are_approximate(good, adjusted):
    rungs = good.stats.sizes["rung"]
    log_weight = 0.3 * np.random.default_rng(0).standard_normal((rungs, 100))
    stats = good.stats.assign(log_weight=(("rung", "chain"), log_weight), ess=("rung", np.full(rungs, 40.0)))
    trace = dataclasses.replace(good, stats=stats, attributes={**good.attributes, "adjusted": adjusted})
    (words,) = [sentence for sentence in diagnose(trace).warnings if "resample=0.5 would correct" in sentence]
    assert ("approximately" in words) != adjusted


def test_few_independent_draws_are_told_of(good):
    draws = np.random.default_rng(0).standard_normal((4, 20, 2))
    chains = {"stats": good.stats.isel(chain=slice(4)), "sample_stats": good.sample_stats.isel(chain=slice(4))}
    trace = dataclasses.replace(good, positions=draws, **chains)
    trace = dataclasses.replace(trace, sample_stats=trace.sample_stats.isel(draw=slice(20)))
    assert any("independent ones: record more" in sentence for sentence in diagnose(trace).warnings)


def test_reverse_diffusion_has_no_acceptance_to_report():
    found = diagnose(reverse_diffusion(TARGET, ladder=LADDER, chains=20, seed=0))
    assert np.isnan(found.rungs.acceptance).all()
    assert np.isnan(found.rungs.stuck).all()
    assert not any("move" in sentence for sentence in found.warnings)


@pytest.mark.slow
def test_plots_show_what_they_are_given(good, pictures, tmp_path):
    assert len(plot_ladder(good).axes) == 4
    acceptance = plot_ladder(good).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(acceptance, good.stats.acceptance_rate.mean("chain"))
    scatter = plot_samples(good, title="a * b").axes[0]
    assert scatter.collections[0].get_offsets().shape[0] == len(good.positions)
    grid = image_grid(pictures.positions[:, -1])
    assert grid.ndim == 2
    assert min(grid.shape) >= 12
    for figure in (
        plot_ladder(good),
        plot_samples(good),
        plot_samples(pictures),
        plot_planar({"one": good.positions[:, -1]}, columns=1),
        plot_samples(np.zeros((20, 1))),
        plot_samples(np.random.default_rng(0).normal(size=(20, 2, 3, 4))),
        plot_samples(np.full((5, 2), np.nan)),
        plot_samples(np.zeros((3, 512, 2))),
    ):
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 2000


def test_bytes_are_shown_as_the_pictures_that_they_are():
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    shown, scaled = (plot_samples(one).axes[0].images[0].get_array() for one in (x, x / 127.5 - 1))
    np.testing.assert_allclose(shown, scaled)
    with pytest.raises(ValueError, match="no samples"):
        plot_samples(x[:0])


def test_only_traces_are_converted(good):
    for reader in (to_inference_data, diagnose):
        with pytest.raises(TypeError, match="reads a Trace"):
            reader(np.zeros((3, 4)))


def test_divergences_that_a_kernel_does_not_report_are_not_zero(good):
    unknown = good.sample_stats.assign(diverging=good.sample_stats.diverging * np.nan)
    trace = dataclasses.replace(good, sample_stats=unknown)
    assert "diverging" in to_inference_data(good)["sample_stats"]
    assert "diverging" not in to_inference_data(trace)["sample_stats"]


def test_the_largest_site_of_a_model_is_shown_or_the_one_that_is_asked_for(good):
    sites = {"scale": np.ones((300, 1)), "x": np.random.default_rng(0).normal(size=(300, 1, 2))}
    trace = dataclasses.replace(good, sites=sites)
    offsets = plot_samples(trace).axes[0].collections[0].get_offsets()
    np.testing.assert_array_equal(offsets, sites["x"][:, -1])
    assert len(plot_samples(trace, site="scale").axes) == 1
    for one, words in ((trace, "it has scale, x"), (good, "leave site= out")):
        with pytest.raises(ValueError, match=words):
            plot_samples(one, site="y")


def test_diagnosis_is_plain_data(good):
    found = diagnose(good)
    assert isinstance(found.rungs, xr.Dataset)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.warnings = ()


def test_points_far_from_the_shipped_models_are_shown_too():
    points = np.random.default_rng(0).normal([10.0, -40.0], 3.0, (500, 2))
    axes = plot_samples(points).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    inside = (points[:, 0] > left) & (points[:, 0] < right) & (points[:, 1] > bottom) & (points[:, 1] < top)
    assert inside.mean() > 0.97
    assert axes.get_xlabel() == f"{np.sum(~inside)} of 500 outside"
    assert plot_samples(points / 100).axes[0].get_xlim() == (-1.1, 1.1)
