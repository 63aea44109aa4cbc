"""The structure of the packages: rooms, imports that run one way, and no side effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"ppl_diffusion.arrays"},
    {"ppl_diffusion.schedule", "ppl_diffusion.files"},
    {"ppl_diffusion.ladder"},
    {"ppl_diffusion.potentials"},
    {"ppl_diffusion.devices"},
    {"ppl_diffusion.models"},
    {"ppl_diffusion.sampling", "ppl_diffusion.training", "ppl_diffusion.targets"},
    {"ppl_diffusion"},
    {"bridges.torch_jax", "bridges.arviz", "bridges.diffusers", "bridges.ray"},
    {"bridges.blackjax"},
    {"bridges.pyro", "bridges.html"},
    {"bridges.bench"},
    {"bridges.terminal"},
    {"benchmarks"},
]
"""The rooms, from the ground up: a room imports rooms of lower floors only. The face of a package is one too."""
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(
    path for package in ("ppl_diffusion", "bridges", "benchmarks") for path in (ROOT / package).rglob("*.py")
)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str | None:
    """The room that a module is in: the longest name of a room that it begins with."""
    parts = name.split(".")
    return next((r for n in range(len(parts), 0, -1) if (r := ".".join(parts[:n])) in ROOMS), None)


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join(filter(None, [*package, node.module]))
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in names if is_module(name)} or {base}
    return {name for name in found if room(name) is not None}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def violations(path: Path) -> list[str]:
    mine = room(module(path))
    if mine is None or module(path) == "bridges":
        return []
    return [
        f"{module(path)} imports {name}"
        for name in sorted(imported(path))
        if room(name) != mine and ROOMS[str(room(name))] >= ROOMS[mine]
    ]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_rooms_import_lower_floors_only(path):
    assert not violations(path)


def test_files_do_not_import_each_other_in_a_circle():
    arrows = {module(path): {name for name in imported(path) if name != module(path)} for path in FILES}
    left = dict(arrows)
    while left:
        free = {name for name, to in left.items() if not to & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: to for name, to in left.items() if name not in free}


def test_an_arrow_upwards_is_found(tmp_path, monkeypatch):
    """Negative control: a potential that imports the walk."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name in ("potentials/high", "sampling/walk"):
        path = tmp_path / "ppl_diffusion" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text("from ..sampling.walk import Walk\n" if "high" in name else "Walk = 1\n")
    assert violations(tmp_path / "ppl_diffusion/potentials/high.py") == [
        "ppl_diffusion.potentials.high imports ppl_diffusion.sampling.walk"
    ]
    assert not violations(tmp_path / "ppl_diffusion/sampling/walk.py")


@pytest.mark.slow
def test_nothing_happens_at_import():
    code = """
import random, numpy, torch, jax
before = (random.getstate()[1][:5], numpy.random.get_state()[1][:5].tolist(), torch.get_rng_state().sum().item(),
          torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64)
import ppl_diffusion, bridges.blackjax, bridges.arviz, bridges.arviz.plots, bridges.torch_jax, bridges.pyro, bridges.ray
after = (random.getstate()[1][:5], numpy.random.get_state()[1][:5].tolist(), torch.get_rng_state().sum().item(),
         torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64)
assert before == after, (before, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
