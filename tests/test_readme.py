"""The README is correct: its code runs, it is short, and the recorded results bear its claims."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from bridges.terminal import commands as cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.slow
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


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_commands_in_the_readme_exist():
    command = get_command(cli.app)
    lines = re.findall(r"^ppl-diffusion (.+)$", README, flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        name, *arguments = shlex.split(line)
        command.commands[name].make_context(name, arguments)


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
