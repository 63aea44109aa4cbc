"""The verdict on runs: each reason where it is due, and what ArviZ's own diagnosis adds."""

from __future__ import annotations

import dataclasses
import re
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import bridges.arviz.convert as bridge
import bridges.arviz.handover as handover
from benchmarks.verdicts.runs import KINDS
from benchmarks.verdicts.truth import Truth, noised, product
from benchmarks.verdicts.verdicts import one_run, rates
from bridges.arviz import Verdict, diagnose
from bridges.arviz.chance import chains_apart, trend
from bridges.arviz.verdict import _joined
from bridges.blackjax import HMC, ULA
from ppl_diffusion import (
    EnergyFunction,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    anneal,
    reverse_diffusion,
)

SCHEDULE = NoiseSchedule.cosine(30)
LADDER = Ladder.full(SCHEDULE, steps=5)
TARGET = GaussianMixture([[0.3, 0.1]], [0.5], schedule=SCHEDULE, backend="jax")
MODES = GaussianMixture([[-0.6, 0.0], [0.6, 0.0]], [0.06, 0.06], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")


@pytest.fixture(scope="module")
def good():
    return anneal(TARGET, HMC(), ladder=LADDER, chains=100, draws=40, seed=0)


@pytest.fixture(scope="module")
def apart():
    return anneal(MODES, HMC(), ladder=LADDER, chains=100, draws=40, seed=0)


def test_a_good_run_is_believed(good):
    found = diagnose(good).verdict
    assert found.answer == "believe"
    assert found.advice == ""
    assert str(diagnose(good)).splitlines()[-1] == str(found), "last of all"


def test_shares_of_modes_come_from_agreement_or_from_weights(apart):
    found = diagnose(apart).verdict
    if found.answer == "believe":  # as the path is exact, weights would change nothing
        assert "weights would change nothing" in found.reasons[0]
    unknown = dataclasses.replace(apart, stats=apart.stats.assign(ess=apart.stats.ess * 0.5))
    assert diagnose(unknown).verdict.answer == "do not believe"
    assert "resample=0.5" in diagnose(unknown).verdict.advice


def test_more_rungs_are_advised_in_words_to_type():
    levels = (len(MODES.schedule) - 1, len(MODES.schedule) // 2, 0)
    coarse = anneal(MODES, HMC(), ladder=Ladder(levels, steps=1), chains=64, draws=20, resample=0.5, seed=0)
    advice = diagnose(coarse).verdict.advice
    line = re.search(r"Ladder\.spaced\(.*?\)", advice)
    assert line, advice
    assert len(eval(line[0], {"Ladder": Ladder, "p": MODES})) > 3
    assert f"--rungs {len(eval(line[0], {'Ladder': Ladder, 'p': MODES}))}" in advice


@pytest.mark.slow
def test_walls_that_refuse_proposals_are_no_divergences():
    """Every proposal beyond the wall is refused, as it should be, and said to be: what diverges is another matter."""
    half = EnergyFunction(
        lambda x, level: jnp.where(x[..., 0] > 0, 0.5 * x[..., 0] ** 2, jnp.inf),
        schedule=NoiseSchedule.cosine(5),
        event_shape=(1,),
        backend="jax",
    )
    trace = anneal(half, HMC(), ladder=Ladder((4, 2, 0), steps=20), chains=100, draws=100, seed=0, resample=0.5)
    assert float(trace.sample_stats["diverging"].mean()) > 0.05
    found = diagnose(trace)
    assert "diverged" not in str(found)
    assert "energies or gradients were not finite" in str(found)
    assert found.verdict.answer == "believe"
    stats = trace.sample_stats.assign(nonfinite=trace.sample_stats.nonfinite * 0)
    found = diagnose(dataclasses.replace(trace, sample_stats=stats)).verdict
    assert (found.answer, "diverged" in str(found)) == ("do not believe", True)


def test_of_several_counts_the_largest_is_advised():
    assert _joined(["take draws=400", "take draws=210", "", "take chains=9 or more"]) == (
        "take draws=400, take chains=9 or more"
    )


@pytest.mark.slow
def test_weights_that_set_the_shares_are_believed():
    weighted = anneal(MODES, HMC(), ladder=LADDER, chains=400, draws=40, seed=0, resample=0.5)
    assert diagnose(weighted).verdict.answer == "believe"
    collapsed = weighted.stats.assign(ancestor=(("rung", "chain"), weighted.stats.ancestor.to_numpy() * 0))
    assert diagnose(dataclasses.replace(weighted, stats=collapsed)).verdict.answer != "believe"


def judged(trace, **attributes):
    return diagnose(dataclasses.replace(trace, attributes={**trace.attributes, **attributes})).verdict


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"adjusted": False}, "unadjusted"),
        ({"still": True}, "no MCMC step"),
        ({"not_normalisable": [0]}, "not normalisable"),
        ({"init": True, "start_noise": 0.3}, "cannot tell of modes"),
        ({"circulation": {"nats": 3.0, "share": 0.5}}, "not a gradient"),
        ({"warnings": ["the values of y lie 40 standard deviations away: scale them"]}, "the values of y lie 40"),
    ],
)
def test_what_no_longer_run_would_mend(good, attributes, reason):
    found = judged(good, **attributes)
    assert found.answer == "do not believe"
    assert any(reason in each for each in found.reasons)
    assert found.advice


def test_positions_to_start_from_do_no_harm_in_noise(good):
    assert judged(good, init=True, start_noise=0.99).answer == "believe"
    assert 0.99 < good.attributes["start_noise"] <= 1


@pytest.mark.parametrize(
    ("about", "answer"),
    [("result", "do not believe"), ("weights", "believe"), ("length", "run longer"), ("nothing", "believe")],
)
def test_a_warning_counts_by_what_it_is_about_and_not_by_its_words(good, about, answer):
    note = "something is odd: look at it"
    concerns = {} if about == "result" else {about: [note]}
    assert judged(good, warnings=[note], concerns=concerns).answer == answer


def test_what_warnings_are_about_is_recorded(apart):
    improper = GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="jax", name="p")
    wide = GaussianMixture([[0.0]], [0.6], schedule=SCHEDULE, backend="jax", name="q")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        trace = anneal(improper / wide**0.6, HMC(), ladder=LADDER, chains=16, draws=2, seed=0)
    (note,) = [note for note in trace.attributes["warnings"] if "not normalisable" in note]
    assert note in trace.attributes["concerns"]["nothing"]  # the levels are a fact of their own
    assert trace.attributes["not_normalisable"]
    assert "concerns" not in apart.attributes


def test_how_much_longer(good):
    rng = np.random.default_rng(0)
    few = dataclasses.replace(
        good,
        positions=rng.standard_normal((9, 20, 2)).repeat(4, axis=1)[:, :40],
        stats=good.stats.isel(chain=slice(9)),
        sample_stats=good.sample_stats.isel(chain=slice(9)),
    )
    found = diagnose(few).verdict
    assert found.answer == "run longer"
    (draws,) = [int(part.split("=")[1]) for part in found.advice.split(", ") if "draws=" in part]
    assert 40 < draws < 400
    assert diagnose(good).draws.ess_bulk.min() > 100


def test_few_chains_may_have_missed_a_mode(good):
    few = dataclasses.replace(
        good,
        positions=np.random.default_rng(0).standard_normal((4, 400, 2)),
        stats=good.stats.isel(chain=slice(4)),
        sample_stats=good.sample_stats.isel(chain=slice(4)),
    )
    found = diagnose(few).verdict
    assert found.answer == "run longer"
    assert "missed a mode" in found.reasons[0]
    assert "take chains=8" in found.advice


def test_stuck_chains_are_not_believed():
    trace = anneal(TARGET, HMC(step=50.0), ladder=LADDER, chains=30, draws=30, seed=0)
    assert any("did not move" in reason for reason in diagnose(trace).verdict.reasons)


def test_reverse_diffusion_and_unadjusted_kernels_are_not_believed():
    for trace in (
        reverse_diffusion(TARGET, ladder=LADDER, chains=20, seed=0),
        anneal(TARGET, ULA(step=0.5), ladder=LADDER, chains=200, draws=40, seed=0),
    ):
        assert diagnose(trace).verdict.answer == "do not believe"


def test_one_chain_of_many_that_stays_apart_is_counted():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((200, 50))
    assert chains_apart(draws) == 0
    draws[7] += 6.0
    assert chains_apart(draws) == 1
    assert float(bridge.arviz().rhat(draws)) < 1.05, "which does not notice"


def test_draws_that_still_change_are_noticed():
    rng, families = np.random.default_rng(0), np.arange(100)
    still = [trend(rng.standard_normal((100, 30)), families) for _ in range(100)]
    assert min(still) > 1e-4
    moving = rng.standard_normal((100, 30)) + np.linspace(0.5, 0, 30)
    assert trend(moving, families) < 1e-6
    assert trend(moving * 0 + rng.standard_normal((100, 30)) * np.linspace(2, 1, 30), families) < 1e-6, "a width"
    relatives = np.repeat(np.arange(2), 50)
    assert trend(moving, relatives) == 1.0, "two families tell nothing"


def library_with_diagnose(failing):
    """ArviZ of before 1.2, with the part of its newer ``diagnose`` that is used."""
    real = bridge.arviz()

    def diagnosed(data, *, show_diagnostics, return_diagnostics):
        assert not show_diagnostics
        assert return_diagnostics
        chains = data["posterior"]["lp"].sizes["chain"]
        return failing, {
            "divergent": {"n_divergent": 0},
            "bfmi": {"bfmi_values": np.full(chains, 0.1 if failing else 1)},
        }

    def from_dict(groups):
        return real.from_dict(groups) if int(real.__version__.split(".")[0]) >= 1 else real.from_dict(**groups)

    return types.SimpleNamespace(
        __version__="0.23", rhat=real.rhat, ess=real.ess, from_dict=from_dict, diagnose=diagnosed
    )


@pytest.mark.parametrize("failing", [False, True])
def test_what_arviz_covers_is_left_to_it(good, monkeypatch, failing):
    longer = dataclasses.replace(
        good, positions=good.positions.repeat(3, axis=1), sample_stats=good.sample_stats.isel(draw=np.arange(120) % 40)
    )
    monkeypatch.setattr(handover, "arviz", lambda: library_with_diagnose(failing))
    found = diagnose(longer).verdict
    assert found.answer == ("run longer" if failing else "believe")
    assert any("E-BFMI of 0.10" in reason for reason in found.reasons) == failing


def test_arviz_itself_is_asked_where_it_can_answer(good):
    found = handover.arviz_findings(good)
    if not hasattr(bridge.arviz(), "diagnose"):
        assert found == {}
        pytest.skip("this ArviZ has no diagnose: it came with 1.2")
    assert found["diverging"] == 0
    assert len(found["bfmi"]) == 100
    assert min(found["bfmi"]) > 0.1


def test_a_verdict_is_plain_data(good):
    assert dataclasses.asdict(Verdict("believe", ("why",))) == {"answer": "believe", "reasons": ("why",), "advice": ""}
    with pytest.raises(dataclasses.FrozenInstanceError):
        diagnose(good).verdict.answer = "run longer"


def test_products_of_mixtures_are_those_of_quadrature():
    x = np.linspace(-8, 8, 20001)[:, None]

    def density(p: Truth):
        return sum(
            w * np.exp(-0.5 * (x[:, 0] - m) ** 2 / v) / v**0.5
            for w, m, v in zip(p.weights, p.means[:, 0], p.variances[:, 0], strict=True)
        )

    p = noised(np.array([[-1.0], [1.0]]), np.array([[0.5], [0.7]]), np.array([0.3, 0.7]), 1.0, 0.1)
    q = noised(np.array([[-0.5], [2.0]]), np.array([[0.9], [0.4]]), np.array([0.6, 0.4]), 1.0, 0.1)
    wide = noised(np.array([[0.5]]), np.array([[1.5]]), np.ones(1), 1.0, 0.1)
    for other, power in ((q, 1.0), (wide, -0.5)):
        expected, found = density(p) * density(other) ** power, density(product(p, other, power))
        np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), atol=1e-12)
    with pytest.raises(ValueError, match="not normalisable"):
        product(
            wide, p if len(p.weights) == 1 else noised(np.zeros((1, 1)), np.ones((1, 1)), np.ones(1), 1.0, 0.1), -3.0
        )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
def test_verdicts_are_right_and_those_by_r_hat_alone_are_not():
    """On targets and seeds other than those of the benchmark."""
    rows = []
    for place, make in enumerate(KINDS.values()):
        settings = list(make(np.random.default_rng((7, place))))
        rows += [one_run(settings[i], seed) for i in (0, 3) for seed in range(3)]
    found, usual = rates(rows, "verdict"), rates(rows, "usual")
    assert found["right"] >= 10
    assert found["wrong"] >= 24
    assert found["false beliefs"] <= 0.02
    assert found["false alarms"] <= 0.1
    assert usual["false beliefs"] > 0.02, "negative control"
    assert usual["false alarms"] > 0.1
