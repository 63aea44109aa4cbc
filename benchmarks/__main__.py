"""Run a benchmark: ``python -m benchmarks NAME [options]``; ``python -m benchmarks NAME --help`` tells its claim.

Invalid input prints one line and exits with status 2. Results appear only when they are complete, and the same command
goes on from what an interrupted run has kept.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import typer
from typer.main import get_command

from benchmarks.harness import command, repeated
from bridges.terminal import output

BENCHMARKS = {
    "demo": "demo",
    "oracle": "planar.oracle",
    "composition": "planar.composition",
    "work": "planar.work",
    "overhead": "speed.overhead",
    "evaluations": "speed.evaluations",
    "gpu": "speed.gpu",
    "islands": "speed.islands",
    "calibration": "posteriors.calibration",
    "levy": "posteriors.levy",
    "models": "posteriors.models",
    "inverse": "posteriors.inverse",
    "likelihood": "posteriors.likelihood",
    "shares": "posteriors.shares",
    "cubes": "pictures.cubes",
    "tapestries": "pictures.tapestries",
    "captions": "pictures.captions",
    "mixing": "pictures.mixing",
    "leaderboard": "leaderboard.leaderboard",
    "levels": "pictures.levels",
    "widths": "pictures.widths",
    "references": "references",
    "forms": "pictures.forms",
    "judge": "pictures.judge",
    "classifier": "pictures.classifier",
    "distillation": "pictures.distillation",
    "theirs": "pictures.theirs",
    "detector": "cube_factory.train_detector",
    "looks": "cube_factory.train_looks",
    "render": "cube_factory.render",
    "prepare": "cube_factory.prepare",
    "photographs": "pictures.photographs",
    "verdicts": "verdicts.verdicts",
    "same-walks": "same_walks",
}
"""Module of each benchmark, by name: that of its file of results, where it writes one."""


def claim(name: str) -> str:
    """Return what a benchmark tests, the docstring of its file, without importing it."""
    path = (Path(__file__).parent / BENCHMARKS[name].replace(".", "/")).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def application(name: str | None) -> typer.Typer:
    """Return the Typer application, in which benchmarks other than ``name`` are listed but not imported."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(lambda: None)
    for each, where in BENCHMARKS.items():
        act = command(import_module(f"benchmarks.{where}"), each) if each == name else lambda: None
        head, _, rest = claim(each).partition("\n\n")
        app.command(each, short_help=" ".join(head.split()), help=f"{head}\n\n\b\n{rest}")(act)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given and given[0] in BENCHMARKS else None
    app = application(name)
    if name is not None:
        found = get_command(app).commands[name].params  # type: ignore[attr-defined]
        given = [name, *repeated(given[1:], {o for p in found if getattr(p, "multiple", False) for o in p.opts})]
    output.run(app, given, "python -m benchmarks")


if __name__ == "__main__":
    main()
