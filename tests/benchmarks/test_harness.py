"""The command line of all benchmarks: help, refusals on one line, results that are whole, and runs that go on."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import same_walks
from benchmarks.__main__ import BENCHMARKS, application, claim, main
from benchmarks.cube_factory import prepare
from benchmarks.harness import RESULTS, Record, cell, double_precision, repeated, summarise, table, thinned
from benchmarks.harness import command as shared
from bridges.blackjax import HMC
from bridges.terminal import output
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal

ROOT = Path(__file__).parents[2]
FACTORY = {"render", "prepare", "photographs"}
"""Benchmarks that make data and claim nothing."""


def command(capsys, *arguments):
    """Run the command line in this process; return status, output and error output."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return exit_.value.code or 0, told.out, told.err


class Tiny:
    """A benchmark of three repetitions, with a count of those that were made, and seeds at which it is interrupted."""

    QUICK: ClassVar = {"chains": 3}

    def __init__(self):
        self.made, self.broken = [], set()

    def main(self, record: Record, chains: Annotated[int, typer.Option(min=2)] = 20) -> None:
        def repetition(seed):
            if seed in self.broken:
                raise KeyboardInterrupt
            self.made.append(seed)
            return {"mean": float(np.random.default_rng(seed).normal(size=chains).mean())}

        rows = [record.kept(f"tiny/run {seed}", {"chains": chains}, partial(repetition, seed)) for seed in range(3)]
        record.write("tiny", {"chains": chains, "rows": summarise(rows)})

    def run(self, capsys, *arguments):
        app = typer.Typer(rich_markup_mode=None)
        app.command()(shared(self, "tiny"))
        with pytest.raises(SystemExit) as exit_:
            output.run(app, [str(argument) for argument in arguments], "benchmarks")
        told = capsys.readouterr()
        return exit_.value.code or 0, told.out, told.err


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


def at(folder):
    return "--results", folder / "results", "--runs", folder / "runs"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_tells_its_claim_and_its_options(name):
    told = CliRunner().invoke(application(name), [name, "--help"])
    assert told.exit_code == 0
    assert claim(name).startswith("Claim: ") != (name in FACTORY)
    assert " ".join(claim(name).split())[:60] in " ".join(told.output.split())
    assert f"python -m benchmarks {name}" in claim(name) or name == "same-walks"
    assert all(line.strip() for line in re.findall(r"^  --\S+(?: <?\S+>?)?(.*)$", told.output, flags=re.MULTILINE))
    assert ("--quick" in told.output) != (name in FACTORY)
    if name not in FACTORY | {"same-walks"}:
        assert "--results" in told.output
        assert "--runs" in told.output


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - FACTORY))
def test_the_quick_setting_names_options_that_there_are(name):
    module = import_module(f"benchmarks.{BENCHMARKS[name]}")
    assert module.QUICK.keys() <= module.main.__annotations__.keys() - {"record"}


def test_all_benchmarks_are_listed_and_none_is_forgotten():
    told = CliRunner().invoke(application(None), ["--help"])
    assert all(re.search(rf"^  {name} ", told.output, flags=re.MULTILINE) for name in BENCHMARKS)
    files = {path.relative_to(ROOT / "benchmarks") for path in (ROOT / "benchmarks").rglob("*.py")}
    with_main = {
        ".".join(path.with_suffix("").parts)
        for path in files - {Path("__main__.py")}
        if "\ndef main(" in (ROOT / "benchmarks" / path).read_text(encoding="utf-8")
    }
    assert with_main == set(BENCHMARKS.values())
    texts = {path: (ROOT / "benchmarks" / path).read_text(encoding="utf-8") for path in files}
    assert not [path for path, text in texts.items() if "argparse" in text]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("orcale",), "orcale"),
        (("oracle", "--seed", 3), "--seed"),
        (("oracle", "--chains", "many"), "--chains.*valid integer"),
        (("oracle", "--chains", 1), "--chains"),
        (("oracle", "--samplers", "HNC"), "--samplers has no 'HNC': use 'reverse diffusion'"),
        (("oracle", "--problems"), "--problems"),
        (("cubes", "--counts", 1, 6), "--counts.*(less than or equal to 5|1<=x<=5)"),
        (("cubes", "--model", "other.safetensors"), "give them a --name"),
        (("mixing", "--kernels", "ULA", "Gibbs"), "no 'Gibbs'"),
        (("levels", "--mnist", "nowhere.npz", "--models", "digits"), "there is no nowhere.npz.*give --mnist FILE.npz"),
        (("judge", "--mnist", "nowhere.npz"), "there is no nowhere.npz.*give --mnist FILE.npz"),
        (("classifier", "--samplers", "HNC"), "--samplers has no 'HNC': use 'reverse', 'finer reverse'"),
        (("classifier", "--labels", 10), "--labels"),
        (("photographs", "nowhere.npz"), "nowhere.npz"),
        (("detector", "--data", "nowhere.npz"), "there is no nowhere.npz.*give --data FILE.npz"),
        (("prepare", "nowhere.npz"), "nowhere.npz"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_refused_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, error = command(capsys, *arguments)
    assert status == 2
    assert not out
    assert len(error.splitlines()) == 1
    assert re.search(words, error), error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_scenes_that_are_no_scenes_are_refused_on_one_line(capsys, tmp_path):
    np.savez(tmp_path / "digits.npz", images=np.zeros((2, 28, 28), np.uint8))
    status, _, error = command(capsys, "prepare", tmp_path / "digits.npz", "--out", tmp_path / "out.npz")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "holds no scenes" in error
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]


def test_options_of_several_values_are_given_one_after_the_other():
    given = ["--counts", "1", "3", "--model", "a", "--counts", "5", "--settings"]
    spread = ["--counts", "1", "--counts", "3", "--model", "a", "--counts", "5", "--settings"]
    assert repeated(given, {"--counts", "--settings"}) == spread
    assert repeated(["file", "other", "--side", "8"], set()) == ["file", "other", "--side", "8"]


def test_the_quick_setting_writes_no_results_and_options_given_beside_it_count(capsys, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    assert tiny.run(capsys, "--quick") == (0, "", "")
    assert Record(tmp_path / "runs" / "quick").read("tiny")["chains"] == 3
    assert tiny.run(capsys, "--quick", "--chains", 5, "--results", tmp_path) == (0, "", "")
    assert Record(tmp_path).read("tiny")["chains"] == 5
    assert not (RESULTS / "tiny.json").exists()


def test_an_interrupted_run_goes_on_and_gives_what_an_uninterrupted_one_gives(capsys, tmp_path, tiny):
    tiny.broken.add(2)
    assert tiny.run(capsys, *at(tmp_path / "a")) == (
        130,
        "",
        "benchmarks tiny: interrupted, the same command goes on from what it has kept\n",
    )
    assert not (tmp_path / "a" / "results").exists()
    tiny.broken.clear()
    assert tiny.run(capsys, *at(tmp_path / "a"))[0] == 0
    assert tiny.made == [0, 1, 2], "each repetition ran once"
    assert tiny.run(capsys, *at(tmp_path / "b"))[0] == 0
    one, two = (Record(tmp_path / k / "results").read("tiny") for k in "ab")
    assert one == two
    assert not [path for path in (tmp_path / "a" / "runs").rglob("*") if path.is_file()], "nothing is kept at the end"
    tiny.run(capsys, *at(tmp_path / "a"))
    assert tiny.made == [0, 1, 2] * 3, "a complete run begins anew"


def test_what_was_kept_with_other_settings_is_refused(capsys, tmp_path, tiny):
    tiny.broken.add(1)
    tiny.run(capsys, *at(tmp_path))
    tiny.broken.clear()
    status, _, error = tiny.run(capsys, *at(tmp_path), "--chains", 13)
    assert (status, len(error.splitlines())) == (2, 1)
    assert re.search("made with other chains: remove .*runs/tiny, or give another --runs", error)


@pytest.mark.long
@pytest.mark.parametrize("name", ["calibration", "cubes", "levy"])
def test_the_quick_setting_of_the_cheap_ones_gives_numbers(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, out, error = command(capsys, name, "--quick")
    assert (status, error) == (0, "")
    assert out
    written = Record(tmp_path / "runs" / "quick").read(name)
    if name == "cubes":
        row = written["equal"]["conjunction"]["reverse"]["1"]
        assert (row["pictures"], row["evaluations"]) == (2, 100)
        assert 0 <= row["accuracy"]["mean"] <= 1
    elif name == "levy":
        assert {row["simulations"] for row in written["tasks"]["Gauss: imputation"].values()} == {2, 4}
    else:
        assert all(0 <= p <= 1 for part in ("model", "wrong twin") for p in written[part].values())


def test_a_half_written_result_is_never_left(tmp_path, monkeypatch):
    record = Record(tmp_path, tmp_path / "runs")
    record.write("figures", {"a": 1})

    def full(self, text, **_):
        self.write_bytes(text[:3].encode())
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        record.write("figures", {"a": 2})
    with pytest.raises(OSError, match="no space"):
        record.kept("part", {}, lambda: 1)
    monkeypatch.undo()
    assert record.read("figures") == {"a": 1}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["figures.json"]


def test_figures_keep_their_format(tmp_path):
    """Means and standard errors are those of NumPy, and files are byte for byte as they are in the repository."""
    values = np.random.default_rng(0).normal(size=(7, 2))
    found = summarise([dict(zip("ab", row, strict=True)) for row in values.tolist()])
    assert found["b"]["mean"] == pytest.approx(values[:, 1].mean(), rel=1e-12)
    assert found["b"]["se"] == pytest.approx(values[:, 1].std(ddof=1) / np.sqrt(7), rel=1e-12)
    assert np.isnan(summarise([{"a": 1.0}])["a"]["se"])
    assert np.isnan(summarise([{"a": 1.0}, {"a": np.nan}])["a"]["mean"])
    record = Record(tmp_path, tmp_path)
    for name in ("oracle", "cubes", "inverse"):
        record.write(name, Record().read(name))
        assert (tmp_path / f"{name}.json").read_bytes() == (RESULTS / f"{name}.json").read_bytes()
    shown = table({"HMC": {"out": {"mean": 0.0123, "se": 0.0045}}, "ULA": {}}, ["out", "LL"]).splitlines()
    assert [line.split() for line in shown] == [["out", "LL"], ["HMC", "0.0123", "±", "0.0045"], ["ULA"]]


def test_a_thinned_ladder_keeps_its_last_rung():
    ladder = Ladder(levels=(9, 7, 5, 3, 1, 0), steps=(1, 2, 3, 4, 5, 6))
    assert thinned(ladder, 2).levels == (7, 3, 0)
    assert tuple(thinned(ladder, 2).steps_per_rung) == (2, 4, 6)
    assert thinned(ladder, 1) == ladder


def test_double_precision_ends():
    with pytest.raises(ValueError), double_precision():
        assert torch.zeros(1).dtype == torch.float64
        raise ValueError
    assert torch.zeros(1).dtype == torch.float32


def test_scenes_are_prepared_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "prepare", lambda files, side: {"images": np.zeros((1, 3, side, side), np.uint8)})
    (tmp_path / "a.npz").touch()
    out = tmp_path / "new" / "out.npz"
    assert command(capsys, "prepare", tmp_path / "a.npz", "--side", 16, "--out", out)[0] == 0
    assert np.load(out)["images"].shape == (1, 3, 16, 16)


def test_digests_tell_walks_apart():
    schedule = NoiseSchedule.cosine(20)
    target = GaussianMixture([[-1.0], [1.0]], [0.2, 0.3], weights=[0.3, 0.7], schedule=schedule, backend="jax")
    settings = {"ladder": Ladder.spaced(schedule, rungs=2, steps=1), "chains": 3}
    one, again, other = (anneal(target, HMC(step=0.1), seed=seed, **settings) for seed in (0, 0, 1))
    assert same_walks.digest(one) == same_walks.digest(again) != same_walks.digest(other)
    again.stats["step_size"][0, 0] += 1e-12
    assert same_walks.digest(one) != same_walks.digest(again)


@pytest.mark.long
def test_walks_are_found_the_same_twice_and_the_file_runs_alone(tmp_path, capsys):
    same_walks.main(["resumed"], 1)
    here = capsys.readouterr().out
    assert re.fullmatch(r"resumed 0 [0-9a-f]{64}\n", here)
    run = [sys.executable, same_walks.__file__, "--walks", "resumed", "--seeds", "1"]
    told = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == here


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"mean": 0.25, "se": 0.0123}, "0.250 ± 0.012"),
        ({"mean": 12.0, "se": 3.4}, "12.0 ± 3.4"),
        ({"mean": 0.24725, "se": 2.8e-17}, "0.247"),  # the same every time, but for rounding
        ({"mean": 0.5}, "0.5"),
        ({"mean": float("nan"), "se": 0.1}, ""),
    ],
)
def test_a_figure_has_two_digits_of_its_error(value, text):
    assert cell(value) == text
