"""The README is correct: its code runs, and its figures are those of the result files."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from benchmarks.report import READMES, render
from bridges.terminal import commands as cli

README = READMES[0].read_text(encoding="utf-8")
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def test_python_in_the_readme_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(block, "README.md", "exec"), names)
    assert names["trace"].sites["x"].shape == (16, 25, 2)
    assert names["idata"]["posterior"]["x"].shape == (64, 25, 2)
    assert np.all(np.isfinite(names["value"]))
    assert "acceptance" in capsys.readouterr().out


def test_commands_in_the_readme_exist():
    command = get_command(cli.app)
    lines = re.findall(r"^ppl-diffusion (.+)$", README, flags=re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        name, *arguments = shlex.split(line)
        command.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_figures_in_the_readmes_are_those_of_the_results(readme):
    text = readme.read_text(encoding="utf-8")
    assert "<!-- end -->" in text
    assert render(text) == text, "python -m benchmarks.report"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_what_the_readmes_point_to_exists(readme):
    text = readme.read_text(encoding="utf-8")
    for path in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (readme.parent / path).stat().st_size > 10_000
    for path in re.findall(r"\]\(([^)]*\.md)\)", text):
        assert (readme.parent / path).is_file()


@pytest.mark.parametrize(
    ("problem", "sampler", "figure", "low", "high"),
    [
        ("product", "weighted HMC", "out", 0.0, 0.017),
        ("product", "weighted HMC", "LL", 2.65, 3.0),
        ("product", "weighted HMC, 1 step a level", "out", 0.0, 0.018),
        ("product", "HMC", "out", 0.04, 0.13),
        ("product", "reverse diffusion", "out", 0.3, 0.45),
        ("mixture", "weighted HMC", "balance", 0.48, 0.52),
        ("quotient", "weighted HMC", "balance", 0.38, 0.43),
    ],
)
def test_the_recorded_results_bear_the_claims(problem, sampler, figure, low, high):
    rows = json.loads((RESULTS / "oracle.json").read_text())["problems"][problem]["rows"]
    assert low <= rows[sampler][figure]["mean"] <= high
