"""The structure of the packages: imports run one way and have no side effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "arrays",
    "schedule",
    "density",
    "common_ground",
    "potential",
    "function",
    "analytic",
    "planar",
    "tapestry",
    "compose",
    "condition",
    "convolution",
    "networks",
    "recording",
    "chunks",
    "energy",
    "objective",
    "config",
    "data",
    "weights",
    "trace",
    "zoo",
    "checkpoint",
    "training",
    "step",
    "kernel",
    "walk",
    "walk_checkpoint",
    "advice",
    "proposals",
    "anneal",
    "expression",
]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            base = ".".join(filter(None, [package, node.module]))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "ppl_diffusion").glob("*.py")), ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    names = imported(path)
    if path.stem in ("cli", "terminal"):
        return
    assert not any(name.split(".")[0] in ("bridges", "benchmarks") for name in names), "the core knows no bridge"
    assert not names & {"ppl_diffusion.cli", "ppl_diffusion.terminal"}
    if path.stem != "__init__":
        allowed = set(ORDER[: ORDER.index(path.stem)])
        rooms = {name.split(".")[1] for name in names if name.startswith("ppl_diffusion.")}
        assert rooms & set(ORDER) <= allowed, f"{path.stem} imports {sorted(rooms & set(ORDER) - allowed)}"


@pytest.mark.parametrize("path", sorted((ROOT / "bridges").rglob("*.py")), ids=lambda p: f"{p.parent.stem}.{p.stem}")
def test_bridges_know_neither_the_command_line_nor_benchmarks(path):
    assert not any(n.startswith(("benchmarks", "ppl_diffusion.cli", "ppl_diffusion.terminal")) for n in imported(path))


def test_nothing_happens_at_import():
    code = """
import random, numpy, torch, jax
before = (random.getstate()[1][:5], numpy.random.get_state()[1][:5].tolist(), torch.get_rng_state().sum().item(),
          torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64)
import ppl_diffusion, bridges.blackjax, bridges.arviz, bridges.plots, bridges.torch_jax, bridges.pyro
after = (random.getstate()[1][:5], numpy.random.get_state()[1][:5].tolist(), torch.get_rng_state().sum().item(),
         torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64)
assert before == after, (before, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
