"""Checkpoints of a walk: resumed walks give the traces of uninterrupted ones, and nothing is mixed up or lost."""

from __future__ import annotations

import os
from pathlib import Path

import blackjax
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from bridges.blackjax import HMC, UHMC, ULA, from_blackjax
from bridges.pyro import HMC as PyroHMC
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model
from ppl_diffusion import EnergyFunction, GaussianMixture, Ladder, NoiseSchedule, anneal, load, observation
from ppl_diffusion.sampling import checkpoint as walk_checkpoint
from ppl_diffusion.sampling import checkpoint_file

pytestmark = pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")  # the ladder is coarse

SCHEDULE = NoiseSchedule.cosine(40)
RUNGS = 5
SETTINGS = {
    "ladder": Ladder.spaced(SCHEDULE, rungs=RUNGS, steps=3),
    "chains": 6,
    "draws": 30,  # two blocks of 15
    "seed": 3,
    "resample": 0.9,
    "reverse_step": True,
}


class Interruption(Exception):
    pass


def interrupting(at):
    """A progress callback that raises when it is called for the ``at``-th time."""
    calls = iter(range(1, at + 1))

    def progress(_):
        if next(calls) == at:
            raise Interruption

    return progress


def mixture(backend="jax", mean=1.0):
    means = [[-1.0, 0.0], [mean, 0.0]]
    return GaussianMixture(means, [0.2, 0.3], weights=[0.3, 0.7], schedule=SCHEDULE, backend=backend)


TARGET = mixture()  # one for most tests: what is compiled for it is used again


def same(one, two):
    """Whether two traces are equal, number by number, but for the time that they took."""
    return (
        np.array_equal(one.positions, two.positions)
        and list(one.stats) == list(two.stats)
        and list(one.sample_stats) == list(two.sample_stats)
        and one.stats.identical(two.stats)
        and one.sample_stats.identical(two.sample_stats)
        and {**one.attributes, "seconds": 0} == {**two.attributes, "seconds": 0}
        and all(np.array_equal(one.sites[name], two.sites[name]) for name in one.sites)
    )


def with_interruptions(target, kernel, path, at, **settings):
    """Anneal, being interrupted after each of the calls ``at`` of progress, counted anew every time."""
    for call in at:
        with pytest.raises(Interruption):
            anneal(target, kernel, **settings, checkpoint=path, progress=interrupting(call))
    return anneal(target, kernel, **settings, checkpoint=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        HMC(refreshment=0.3),
        UHMC(refreshment=0.3),
        ULA(step=0.1),
        from_blackjax(
            blackjax.dynamic_hmc.build_kernel,
            blackjax.dynamic_hmc.init,
            step_size=0.1,
            inverse_mass_matrix=np.ones(2),
        ),
        PyroHMC(),
    ],
    ids=["HMC", "UHMC", "ULA", "dynamic_hmc", "Pyro"],
)
def test_a_walk_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, kernel):
    target = mixture("torch") if isinstance(kernel, PyroHMC) else TARGET
    whole = anneal(target, kernel, **SETTINGS)
    # After the first rung, two rungs later, the last rung and a block of draws later.
    assert same(whole, with_interruptions(target, kernel, tmp_path / "walk", (1, 2, 3), **SETTINGS))
    assert same(whole, anneal(target, kernel, **SETTINGS, checkpoint=tmp_path / "walk")), "at once, when it has ended"


@pytest.mark.parametrize("lost", [None, "momentum", "step", "generator", "seeds", "weights"])
def test_a_checkpoint_without_one_of_its_parts_is_another_walk(tmp_path, monkeypatch, lost):
    kernel, restore = HMC(refreshment=0.3), walk_checkpoint.Checkpoint.restore

    def wrong(self, resumed, walker, level):
        rng, spawned = resumed.rng.bit_generator.state, resumed.streams
        restore(self, resumed, walker, level)
        state = resumed.state
        if state is None:
            return
        if lost == "momentum":
            chains = state.carried._replace(momentum=np.zeros_like(state.carried.momentum))
            resumed.state = state._replace(carried=chains)
        elif lost == "step":
            resumed.state = state._replace(step=state.step._replace(log_step=0.0))
        elif lost == "generator":
            resumed.rng.bit_generator.state = rng
        elif lost == "seeds":
            resumed.streams = spawned
        elif lost == "weights":
            resumed.weights.log = np.zeros(len(state.energy))

    whole = anneal(TARGET, kernel, **SETTINGS | {"resample": 0.1})
    monkeypatch.setattr(walk_checkpoint.Checkpoint, "restore", wrong)
    resumed = with_interruptions(TARGET, kernel, tmp_path / "walk", (3,), **SETTINGS | {"resample": 0.1})
    assert same(whole, resumed) == (lost is None)


def model(y):
    x = pyro.sample("x", DiffusionPrior(mixture("torch")))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)


@pytest.mark.slow
def test_the_posterior_of_a_pyro_model_goes_on_too(tmp_path):
    settings = {"kernel": HMC(), "ladder": SETTINGS["ladder"], "chains": 6, "draws": 4, "seed": 1}
    y, others = (torch.tensor([0.5, 0.1]),), (torch.tensor([0.5, 0.2]),)
    joint = JointPotential(model, y, likelihood="widened")  # compiled once
    whole = anneal_model(joint, y, **settings)
    settings["checkpoint"] = tmp_path / "walk"
    with pytest.raises(Interruption):
        anneal_model(joint, y, **settings, progress=interrupting(2))
    with pytest.raises(ValueError, match="another potential, other data"):
        anneal_model(joint, others, **settings)
    assert same(whole, anneal_model(joint, y, **settings))


def test_keeping_a_walk_costs_an_evaluation_and_resuming_it_another(tmp_path):
    calls = []

    def energy(x, level):
        calls.append(level)
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    whole = anneal(target, HMC(), **SETTINGS)
    needed = len(calls)
    assert same(whole, with_interruptions(target, HMC(), tmp_path / "walk", (3,), **SETTINGS))
    assert whole.gradient_calls <= needed  # and those that look at the tails
    kept = len(calls) - 2 * needed
    anneal(target, HMC(), **SETTINGS, checkpoint=tmp_path / "walk")
    assert kept == 1 + 2, "one of the start, and two of the call that resumes"
    assert len(calls) - 2 * needed - kept <= 3  # the third one looks at the tails of the draws


@pytest.mark.slow
def test_a_walk_is_kept_while_it_runs_and_not_only_when_it_is_interrupted(tmp_path, monkeypatch):
    """As if the process were killed: what is in the file after a rung is copied."""
    path, kept = tmp_path / "walk", []
    monkeypatch.setattr(checkpoint_file, "EVERY", 0.0)
    whole = anneal(TARGET, HMC(), **SETTINGS, checkpoint=path, progress=lambda _: kept.append(path.read_bytes()))
    assert len(kept) == RUNGS + 2
    for content in kept:
        path.write_bytes(content)
        assert same(whole, anneal(TARGET, HMC(), **SETTINGS, checkpoint=path))


def test_an_error_of_the_potential_keeps_the_walk(tmp_path):
    failing, calls = [False], []

    def energy(x, level):
        calls.append(level)
        if failing[0] and len(calls) == 40:
            raise MemoryError("no more")
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    whole = anneal(target, HMC(), **SETTINGS)
    failing[0] = True
    calls.clear()
    with pytest.raises(MemoryError, match="no more") as error:
        anneal(target, HMC(), **SETTINGS, checkpoint=tmp_path / "walk")
    assert any("goes on from where the walk was" in note for note in error.value.__notes__)
    failing[0] = False
    assert same(whole, anneal(target, HMC(), **SETTINGS, checkpoint=tmp_path / "walk"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("No space left")])
def test_a_full_disk_does_not_stop_a_walk(tmp_path, monkeypatch, error):
    def full(self, data):
        raise error

    whole, write = anneal(TARGET, HMC(), **SETTINGS), Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"could not be written .No space left"):
        trace = anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path / "walk")
    assert np.array_equal(trace.positions, whole.positions)
    assert list(tmp_path.iterdir()) == []
    # Only at the first of several saves: there is nothing to say in the end.
    failing = iter([True])
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, data: full(self, data) if next(failing, 0) else write(self, data)
    )
    assert same(whole, anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path / "walk"))
    assert same(whole, anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path / "walk"))


def test_a_file_that_somebody_else_writes_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "walk"
    monkeypatch.setattr(checkpoint_file, "EVERY", 0.0)
    with pytest.warns(UserWarning, match="was written by somebody else and is left alone"):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=path, progress=lambda _: path.write_bytes(b"precious"))
    assert path.read_bytes() == b"precious"


def test_a_path_is_meant_from_where_the_walk_began(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "walk").write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    whole = anneal(TARGET, HMC(), **SETTINGS, checkpoint="walk", progress=lambda _: os.chdir(other))
    assert (other / "walk").read_bytes() == b"precious"
    assert same(whole, anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path / "walk"))


@pytest.mark.slow
def test_data_that_differ_in_one_value_are_another_potential(tmp_path):
    digits, y = load("digits"), np.full((28, 28), -1.0)

    def posterior(values):
        return digits * observation(values, scale=0.5, schedule=digits.schedule, backend="torch")

    settings = {"ladder": Ladder((99, 0), steps=1), "chains": 2, "seed": 0, "checkpoint": tmp_path / "walk"}
    with pytest.raises(Interruption):
        anneal(posterior(y), HMC(), **settings, progress=interrupting(1))
    changed = y.copy()
    changed[14, 14] = 0.5
    with pytest.raises(ValueError, match="another potential, other data"):
        anneal(posterior(changed), HMC(), **settings)
    anneal(posterior(y), HMC(), **settings)


def test_kernels_are_told_apart_by_the_values_of_their_arrays(tmp_path):
    hmc, masses = {"build_kernel": blackjax.hmc.build_kernel, "init": blackjax.hmc.init}, ([1.0, 1.0], [1.0, 9.0])
    one, other = (
        from_blackjax(**hmc, step_size=0.1, num_integration_steps=3, inverse_mass_matrix=np.array(mass))
        for mass in masses
    )
    again = from_blackjax(**hmc, step_size=0.1, num_integration_steps=3, inverse_mass_matrix=np.array(masses[0]))
    with pytest.raises(Interruption):
        anneal(TARGET, one, **SETTINGS, checkpoint=tmp_path / "walk", progress=interrupting(1))
    with pytest.raises(ValueError, match=r"another run .kernel is"):
        anneal(TARGET, other, **SETTINGS, checkpoint=tmp_path / "walk")
    assert str(again) == str(one) != str(other)


def test_a_state_that_grows_could_not_be_restored(tmp_path, monkeypatch):
    kernel = HMC(leapfrogs=2)
    walker = kernel.bind(TARGET)
    move = walker.move

    def growing(*args, **given):
        state, info = move(*args, **given)
        return state._replace(scales=(state.scales, state.scales)), info

    monkeypatch.setattr(walker, "move", growing)
    with pytest.raises(TypeError, match=r"another structure after move\(\)"):
        anneal(TARGET, kernel, **SETTINGS, checkpoint=tmp_path / "walk")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"another run \(seed is 3 there, 4 here\)"),
        ({"draws": 31}, r"draws is 30 there, 31 here"),
        ({"ladder": Ladder.spaced(SCHEDULE, rungs=RUNGS, steps=2)}, r"steps is \[3, 3, 3, 3, 3\] there"),
        ({"init": np.zeros((6, 2))}, "start is '"),
        ({"kernel": HMC(leapfrogs=2)}, "leapfrogs=2"),
        ({"mean": 1.1}, "another potential"),
    ],
)
def test_another_run_is_refused_and_the_file_kept(tmp_path, change, message):
    path = tmp_path / "walk"
    with pytest.raises(Interruption):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=path, progress=interrupting(2))
    content = path.read_bytes()
    settings = {"kernel": HMC(), **SETTINGS, **change}
    target = mixture(mean=settings.pop("mean")) if "mean" in settings else TARGET
    with pytest.raises(ValueError, match=message) as error:
        anneal(target, **settings, checkpoint=path)
    assert not hasattr(error.value, "__notes__"), "nothing goes on"
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"notes of mine", "truncated", "flipped"])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "walk"
    if not isinstance(content, bytes):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=path)
        good = bytearray(path.read_bytes())
        good[-50] ^= 1
        content = bytes(good[:-100]) if content == "truncated" else bytes(good)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not the checkpoint of a walk.*damaged"):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=path)
    assert path.read_bytes() == content


def test_where_a_checkpoint_cannot_be_is_said_before_the_walk(tmp_path):
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path / "nowhere" / "walk")
    with pytest.raises(ValueError, match="not the checkpoint of a walk"):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=tmp_path)
    with pytest.raises(TypeError, match="checkpoint is a file"):
        anneal(TARGET, HMC(), **SETTINGS, checkpoint=3)
