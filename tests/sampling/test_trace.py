"""Traces on disk: saving and loading is lossless, never overwrites a file, and leaves no partial file."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import xarray as xr

from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Trace, anneal
from ppl_diffusion.files import replacing

SCHEDULE = NoiseSchedule.cosine(10)


@pytest.fixture(scope="module")
def trace():
    target = GaussianMixture([[0.0, 1.0]], [0.5], schedule=SCHEDULE, backend="jax")
    found = anneal(target, HMC(), ladder=Ladder.full(SCHEDULE, steps=2), chains=7, draws=4, seed=5, resample=0.5)
    return dataclasses.replace(found, sites={"x": found.positions, "noise": found.positions[..., 0]})


@pytest.mark.slow
def test_a_trace_comes_back_as_it_went(trace, tmp_path):
    loaded = Trace.load(trace.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.positions, trace.positions)
    assert loaded.positions.dtype == np.float64
    xr.testing.assert_identical(loaded.stats, trace.stats)
    xr.testing.assert_identical(loaded.sample_stats, trace.sample_stats)
    assert loaded.attributes == dict(trace.attributes)
    assert loaded.log_normaliser == trace.log_normaliser
    assert loaded.gradient_calls == trace.gradient_calls
    np.testing.assert_array_equal(loaded.sites["noise"], trace.sites["noise"])


def test_sites_may_be_named_as_dimensions_are(trace, tmp_path):
    x = trace.positions
    sites = {"x": x, "x_dim_0": x[..., 0], "chain": x[..., 1], "draw": x, "%0%x": x[..., 0], "a/b%": x}
    groups = {"observed_data": {"y": x[0], "y_axis_0": x[0, :, 0], "%1%y": x[0, 0]}}
    loaded = Trace.load(dataclasses.replace(trace, sites=sites, groups=groups).save(tmp_path / "run.nc"))
    for given, found in ((sites, loaded.sites), (groups["observed_data"], loaded.groups["observed_data"])):
        assert set(found) == set(given)
        for name, value in given.items():
            np.testing.assert_array_equal(found[name], value)


def test_a_trace_says_how_it_was_made(trace):
    assert trace.attributes["seed"] == 5
    assert trace.attributes["levels"] == list(range(9, -1, -1))
    assert trace.attributes["resample"] == 0.5
    assert set(trace.attributes["versions"]) >= {"ppl-diffusion", "torch", "jax", "blackjax", "numpy"}
    assert {"acceptance_rate", "step_size", "diverging", "energy", "log_weight", "ancestor"} <= set(trace.stats)
    assert {"ess", "log_normaliser", "gradient_calls"} <= set(trace.stats)
    assert trace.stats["ess"].dims == ("rung",)
    assert trace.stats["energy"].dims == ("rung", "chain")


def test_a_trace_prints_as_a_line(trace):
    assert re.fullmatch(
        r"Trace\(gaussian_mixture by HMC\(.*7 chains x 4 draws of shape \(2,\), 10 rungs.*", repr(trace)
    )


def test_a_file_is_overwritten_when_that_is_asked_for(trace, tmp_path):
    path = trace.save(tmp_path / "run.nc")
    other = dataclasses.replace(trace, positions=trace.positions + 1)
    np.testing.assert_array_equal(Trace.load(other.save(path, overwrite=True)).positions, other.positions)


def test_nothing_is_overwritten(trace, tmp_path):
    path = trace.save(tmp_path / "run.nc")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="choose another name"):
        trace.save(path)
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        trace.save(tmp_path / "nowhere" / "run.nc")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    with pytest.raises(error), replacing(tmp_path / "run.nc") as partial:
        partial.write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused_in_one_line(trace, tmp_path):
    whole = trace.save(tmp_path / "run.nc").read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a trace"}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="sample again") as caught:
            Trace.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    xr.Dataset({"x": ("a", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(tmp_path / "other.nc")
    with pytest.raises(FileNotFoundError, match="no trace at"):
        Trace.load(tmp_path / "missing.nc")
