"""Checkpoints of a replica exchange: what was interrupted gives the trace of what was not, and nothing is mixed up."""

from __future__ import annotations

import numpy as np
import pytest

from bridges.blackjax import HMC
from bridges.pyro import HMC as PyroHMC
from ppl_diffusion import EnergyFunction, GaussianMixture, Ladder, NoiseSchedule, anneal, exchange
from ppl_diffusion.sampling import checkpoint_file, exchange_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")  # the ladder is coarse

SCHEDULE = NoiseSchedule.cosine(40)
SETTINGS = {"ladder": Ladder((39, 25, 12, 0), steps=2), "chains": 3, "draws": 6, "warm_up": 4, "seed": 3}


def mixture(backend="jax", mean=1.0):
    means = [[-1.0, 0.0], [mean, 0.0]]
    return GaussianMixture(means, [0.2, 0.3], weights=[0.3, 0.7], schedule=SCHEDULE, backend=backend)


TARGET, KERNEL = mixture(), HMC(refreshment=0.3)  # for most tests: what is compiled for them is used again


@pytest.fixture(scope="module")
def whole():
    """The trace of an exchange that nobody interrupts."""
    return exchange(TARGET, KERNEL, **SETTINGS)


def interrupting(at):
    """A progress callback during whose ``at``-th call somebody presses Ctrl-C."""
    calls = iter(range(1, at + 1))

    def progress(_):
        if next(calls) == at:
            raise KeyboardInterrupt

    return progress


def same(one, two):
    """Whether two traces are equal, number by number, but for the time that they took."""
    return (
        np.array_equal(one.positions, two.positions)
        and one.stats.identical(two.stats)
        and one.sample_stats.identical(two.sample_stats)
        and {**one.attributes, "seconds": 0} == {**two.attributes, "seconds": 0}
    )


def with_interruptions(target, kernel, path, at, **settings):
    """Exchange, being interrupted after each of the calls ``at`` of progress, counted anew every time."""
    for call in at:
        with pytest.raises(KeyboardInterrupt):
            exchange(target, kernel, **settings, checkpoint=path, progress=interrupting(call))
    return exchange(target, kernel, **settings, checkpoint=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "kernel", "accelerated"),
    [(TARGET, KERNEL, "wide"), (mixture("torch"), PyroHMC(), False)],
    ids=["HMC, wide", "Pyro"],
)
def test_an_exchange_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, target, kernel, accelerated):
    settings = SETTINGS | {"accelerated": accelerated}
    whole = exchange(target, kernel, **settings)
    # In the first round, at the end of the warm-up, and two draws later.
    assert same(whole, with_interruptions(target, kernel, tmp_path / "run", (1, 3, 2), **settings))
    assert same(whole, exchange(target, kernel, **settings, checkpoint=tmp_path / "run")), "when it has ended"


def test_an_interruption_of_the_first_walk_down_loses_one_rung_at_most(tmp_path):
    failing, calls = [0], []

    def energy(x, level):
        calls.append(level)
        if len(calls) == failing[0]:
            raise KeyboardInterrupt
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    kernel = HMC(step=0.3, leapfrogs=2, refreshment=0.5)
    whole = exchange(target, kernel, **SETTINGS)
    calls.clear()
    failing[0] = 1 + 2 * 6 + 2  # the start, two rungs of 1 + 2 * 2 + 1 evaluations, and in the third rung
    with pytest.raises(KeyboardInterrupt) as error:
        exchange(target, kernel, **SETTINGS, checkpoint=tmp_path / "run")
    assert any("goes on from where the exchange was" in note for note in error.value.__notes__)
    failing[0] = 0
    calls.clear()
    resumed = exchange(target, kernel, **SETTINGS, checkpoint=tmp_path / "run")
    assert same(whole, resumed)
    assert len(calls) == whole.gradient_calls - 2 * 6 + 1 + 2 + 1, "the start, two levels, and where the walk was"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [None, "momentum", "steps", "generator", "seeds", "swaps", "travels"])
def test_a_checkpoint_without_one_of_its_parts_is_another_exchange(tmp_path, monkeypatch, whole, lost):
    restore = exchange_checkpoint.ExchangeCheckpoint.restore

    def wrong(self, run):
        rng, seeds = run.rng.bit_generator.state, run.walk.streams
        restore(self, run)
        if not run.states:
            return
        if lost == "momentum":
            chains = run.states[1].carried
            chains = chains._replace(momentum=np.zeros_like(chains.momentum))
            run.states[1] = run.states[1]._replace(carried=chains)
        elif lost == "steps":
            run.states[1] = run.states[1]._replace(step=run.states[1].step._replace(log_step=0.0))
        elif lost == "generator":
            run.rng.bit_generator.state = rng
        elif lost == "seeds":
            run.walk.streams = seeds
        elif lost == "swaps":
            run.record.swaps[0].down.pop()
            run.record.swaps[0].up.pop()
            run.record.swaps[0].taken.pop()
        elif lost == "travels":
            run.travels.trips[:] += 1

    monkeypatch.setattr(exchange_checkpoint.ExchangeCheckpoint, "restore", wrong)
    resumed = with_interruptions(TARGET, KERNEL, tmp_path / "run", (7,), **SETTINGS)
    assert same(whole, resumed) == (lost is None)


@pytest.mark.long
def test_an_exchange_is_kept_while_it_runs_and_not_only_when_it_is_interrupted(tmp_path, monkeypatch, whole):
    """As if the process were killed: what is in the file after a round is copied."""
    path, kept = tmp_path / "run", []
    monkeypatch.setattr(checkpoint_file, "EVERY", 0.0)
    exchange(TARGET, KERNEL, **SETTINGS, checkpoint=path, progress=lambda _: kept.append(path.read_bytes()))
    assert len(kept) == SETTINGS["warm_up"] + SETTINGS["draws"]
    for content in kept[::3]:
        path.write_bytes(content)
        assert same(whole, exchange(TARGET, KERNEL, **SETTINGS, checkpoint=path))


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        exchange(TARGET, KERNEL, **SETTINGS, checkpoint=path, progress=interrupting(2))
    content = path.read_bytes()
    for change, message in [
        ({"seed": 4}, r"another run \(seed is 3 there, 4 here\)"),
        ({"draws": 7}, r"draws is 6 there, 7 here"),
        ({"warm_up": 5}, r"warm_up is 4 there, 5 here"),
        ({"accelerated": True}, r"exchange is 'in place' there, 'accelerated' here"),
        ({"ladder": Ladder((39, 12, 0), steps=2)}, r"levels is \[39, 25, 12, 0\] there"),
        ({"init": np.zeros((3, 2))}, "start is '"),
        ({"potential": mixture(mean=1.1)}, "another potential, other data"),
    ]:
        given = {"potential": TARGET, **SETTINGS, **change}
        with pytest.raises(ValueError, match=message) as error:
            exchange(given.pop("potential"), KERNEL, **given, checkpoint=path)
        assert not hasattr(error.value, "__notes__"), "nothing goes on"
        assert path.read_bytes() == content
    with pytest.raises(ValueError, match="is not the checkpoint of a walk: give another"):
        anneal(TARGET, KERNEL, ladder=SETTINGS["ladder"], chains=3, seed=3, checkpoint=path)
    anneal(TARGET, KERNEL, ladder=SETTINGS["ladder"], chains=3, seed=3, checkpoint=tmp_path / "walk")
    with pytest.raises(ValueError, match="is not the checkpoint of an exchange: give another"):
        exchange(TARGET, KERNEL, **SETTINGS, checkpoint=tmp_path / "walk")
