"""A sweep goes on from its parts, and bad input ends in one line that says what to type."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from bridges.bench import Plan, find, load_targets, own, parts, results, sweep
from bridges.bench.summary import Figure, comparison, leaderboard, stability
from bridges.terminal import commands as cli

PLAN = Plan(gradients=60, seeds=2, chains=4, levels=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Parts of HMC on two targets of one size, made in one sweep; those of Pyro's are left out."""
    place = tmp_path_factory.mktemp("bench")
    told = []
    data = sweep([find("hmc")], load_targets(["mixture_2", "ring_bar"]), PLAN, place, tell=told.append)
    assert len(told) == 2
    return place, data


@pytest.mark.slow
def test_a_sweep_goes_on_from_its_parts_and_is_one_dataset(folder):
    place, data = folder
    told = []
    again = sweep([find("hmc")], load_targets(["mixture_2", "ring_bar"]), PLAN, place, tell=told.append)
    assert told == []
    assert again.identical(data)
    assert data.value.dims == ("target", "contender", "difficulty", "start", "seed", "score")
    assert data.level.sel(target="mixture_2").values.tolist() == [60, 0]
    gradients = data.value.sel(score="gradients")
    assert ((gradients > 57) & (gradients <= 60)).all()
    row = leaderboard(data).loc["hmc"]
    assert row["ESS"].value > 0
    assert row["ESS"].error > 0
    assert (row["cells"].value, row["own count"].value) == (1.0, 1.0)
    assert stability(data).pairs == 0


@pytest.mark.slow
def test_names_of_any_length_are_whole_in_a_file_of_parts_and_in_a_table_of_any_width(folder, tmp_path):
    place, _ = folder
    parts, longer = sorted(place.rglob("*.nc")), "mymodule:kernel_of_mine"
    for number, file in enumerate(parts):
        renamed = results.opened(file).assign_coords(contender=[longer])
        results.write(renamed, tmp_path / f"{number}.nc")
    data = results.read([*parts, *tmp_path.glob("*.nc")])
    results.write(data, tmp_path / "all" / "bench.nc")
    stored = results.opened(tmp_path / "all" / "bench.nc")
    assert stored.contender.values.tolist() == ["hmc", longer]
    assert stored.target.values.tolist() == ["mixture_2", "ring_bar"]
    for width in (56, 80, 120):
        shown = io.StringIO()
        Console(file=shown, width=width).print(comparison(data))
        assert "…" not in shown.getvalue()
        assert all(len(line) <= width for line in shown.getvalue().splitlines())
        assert shown.getvalue().count("hmc") == 4, "of each target and start"
    assert longer in shown.getvalue()


@pytest.mark.long
def test_a_sweep_that_is_shared_by_workers_has_the_same_figures(folder, tmp_path, monkeypatch):
    """One's own kernel travels too, though the module in the folder of the user is not on the path of a worker."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from bridges.ray import Workers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "minemodule.py").write_text(
        "import blackjax\n\n\ndef kernel(log_density):\n    return blackjax.mala(log_density, step_size=0.1)\n"
    )
    told, names = [], ["mixture_2", "ring_bar"]
    with Workers(2) as workers:
        contenders = [find("hmc"), find("minemodule:kernel")]
        shared = sweep(contenders, load_targets(names), PLAN, tmp_path, tell=told.append, spread=workers.map)
    assert len(told) == 4
    assert shared.contender.values.tolist() == ["hmc", "minemodule:kernel"]
    here = folder[1].value.sel(contender="hmc")
    here = here.sel(score=[name for name in here.score.values if "second" not in name])
    np.testing.assert_array_equal(shared.value.sel(contender="hmc", score=here.score), here)


@pytest.mark.slow
def test_a_half_written_part_and_other_settings_are_told(folder, tmp_path):
    place, _ = folder
    target, contender = load_targets(["mixture_2"])[0], find("hmc")
    whole = parts.part(place, "mixture_2", "hmc")
    half = parts.part(tmp_path, "mixture_2", "hmc")
    half.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"half-written or no result: rm .*mixture_2--hmc.nc, and the same command"):
        sweep([contender], [target], PLAN, tmp_path)
    half.write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match=r"made with other seeds: remove .*or give another folder"):
        sweep([contender], [target], Plan(gradients=60, seeds=1, chains=4, levels=2), tmp_path)
    with pytest.raises(ValueError, match="the same command makes what is missing"):
        results.read([parts.part(tmp_path, "ring_bar", "hmc")])


def mistyped(log_density):
    import blackjax

    return blackjax.mala(log_density, stepsize=0.1)


def nothing(log_density):
    return 3


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (mistyped, r"unexpected keyword argument 'stepsize'.*blackjax.mala"),
        (nothing, "returned int, which has no init"),
    ],
)
def test_a_kernel_that_does_not_fit_is_told(kernel, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        sweep([own("mine", kernel)], load_targets(["mixture_2"]), PLAN, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "there is no kernel 'nothing': write module:function, or one of ula, mala"),
        (["nomodule:kernel"], "there is no module 'nomodule'"),
        (["math:kernel"], "math has no kernel: write def kernel(log_density) in it"),
        (["math:pi"], "math:pi is a float: write def kernel(log_density)"),
        (["hmc", "--targets", "nowhere"], "nowhere"),
        (["hmc", "--gradients", "0"], "gradients must be at least 1, got 0: give --gradients 1"),
        (["hmc", "--targets", ","], "give some with commas"),
    ],
)
def test_bad_input_is_one_line(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["ppl-diffusion", "bench", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("\n") == 1
    assert words in told


def test_a_figure_says_what_it_does_not_know():
    assert str(Figure(1.234, 0.012)) == "1.234 ± 0.012"
    assert str(Figure(np.inf, np.nan)) == "never"
    assert str(Figure(np.nan, np.nan)) == "-"
    assert str(Figure(0.5, 0.0)) == "0.5"
