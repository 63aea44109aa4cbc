"""Ray as a map: in order, elsewhere, and again where a worker has died; islands on it give the trace of one process."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

from bridges.blackjax import HMC
from bridges.ray import Workers
from ppl_diffusion import EnergyFunction, Ladder, NoiseSchedule, anneal

SCHEDULE = NoiseSchedule.cosine(20)
SETTINGS = {"ladder": Ladder.spaced(SCHEDULE, rungs=4, steps=1), "chains": 32, "draws": 2, "seed": 0, "resample": 0.9}


@pytest.fixture(scope="module")
def workers():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with Workers(2, retries=1) as found:
        yield found


def bowl(marker: str = ""):
    """A density whose process is killed once, in the middle of a walk, if there is no file ``marker``."""

    def energy(x, level):
        if marker and int(level) == 0 and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5 * (x**2).sum(-1) * (1 + 1 / (1 + level))

    return EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch", name="bowl")


@pytest.mark.long
def test_items_are_done_elsewhere_in_order_and_in_parallel(workers):
    def where(item):
        time.sleep(0.3 * (item == 0))
        array = np.zeros(3)
        array += item  # what arrives can be written to
        return os.getpid(), array

    found = list(workers.map(where, range(6)))
    assert [array[0] for _, array in found] == list(range(6))
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    assert list(workers.map(where, [])) == []


@pytest.mark.long
def test_a_dead_worker_is_replaced_and_an_error_is_told(workers, tmp_path):
    marker = str(tmp_path / "dead")

    def dies(item):
        if item == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(workers.map(dies, range(3))) == [0, 1, 2]
    assert os.path.exists(marker)
    with pytest.raises(RuntimeError, match="item 0 has died 1 times"), Workers(2, retries=0) as others:
        list(others.map(lambda item: os.kill(os.getpid(), signal.SIGKILL), [0]))
    with pytest.raises(ZeroDivisionError):
        list(workers.map(lambda item: 1 / item, [1, 0]))
    with pytest.raises(TypeError, match="cannot be taken to other processes"):
        list(workers.map(lambda item, file=sys.stderr: file, [1]))


@pytest.mark.long
def test_islands_of_ray_give_the_trace_of_one_process_even_if_a_worker_is_killed(workers, tmp_path):
    here = anneal(bowl(), HMC(), islands=4, **SETTINGS)
    marker, told = str(tmp_path / "killed"), []
    there = anneal(
        bowl(marker),
        HMC(),
        islands=4,
        spread=workers.map,
        progress=told.append,
        checkpoint=tmp_path / "walk",
        **SETTINGS,
    )
    assert os.path.exists(marker), "a worker was killed"
    assert len([file for file in (tmp_path / "walk").iterdir() if file.suffix == ".safetensors"]) == 4
    assert [state.island for state in told] == [0, 1, 2, 3]
    assert np.array_equal(here.positions, there.positions)
    assert here.stats.identical(there.stats)
    assert here.sample_stats.identical(there.sample_stats)


def test_without_ray_the_extra_is_named_and_bad_counts_are_told(monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for wrong in ({"count": 0}, {"count": 2, "retries": -1}, {"count": 2, "gpus": -1}):
        with pytest.raises(ValueError, match="try "):
            Workers(**wrong)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-diffusion\[ray\]'"):
        Workers(2)


def test_workers_that_have_not_begun_say_so():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    if not ray.is_initialized():
        with pytest.raises(RuntimeError, match="write with Workers"):
            next(Workers(2).map(abs, [1]))
