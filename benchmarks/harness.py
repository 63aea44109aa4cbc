"""What benchmarks share: their options, where they write, what they keep to go on from, and how figures are shown.

A benchmark is a module whose ``main`` does the work. If its first parameter is ``record``, it writes results: it then
has the options ``--results`` and ``--runs``. ``QUICK`` in the module holds the values of its options for ``--quick``.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from bridges.terminal import output
from ppl_diffusion import Ladder, SamplingWarning, Trace
from ppl_diffusion.files import replacing, versions

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")
QUICKLY = RUNS / "quick"
"""Where ``--quick`` writes: its figures are not results."""


@dataclass(frozen=True)
class Record:
    """Where a benchmark writes.

    Attributes:
        results: folder of figures (JSON) and pictures.
        runs: folder of unfinished work, from which the same command goes on.
    """

    results: Path = RESULTS
    runs: Path = RUNS
    _parts: set[Path] = field(default_factory=set)

    def read(self, name: str) -> dict[str, Any]:
        """Return the figures that were written under a name; none if there are none."""
        path = self.results / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write figures as JSON. The file appears only when it is complete."""
        self._write(self.results / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def draw(self, name: str, figure: Figure, *, dpi: int = 100) -> None:
        """Write a picture as PNG. The file appears only when it is complete."""
        self.results.mkdir(parents=True, exist_ok=True)
        with replacing(self.results / f"{name}.png") as partial:
            figure.savefig(partial, dpi=dpi, format="png")

    def kept(self, part: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return what ``make()`` returns, JSON data: from ``runs`` if an interrupted run has made this part already.

        Raises:
            ValueError: it was made with other settings, or with other versions of the libraries.
        """
        file = self.runs / f"{re.sub(r'[^/.a-zA-Z0-9-]+', '-', part)}.json"
        asked = json.loads(json.dumps({**settings, "versions": versions()}))
        self._parts.add(file)
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["settings"] != asked:
                changed = sorted(k for k in asked | stored["settings"] if asked.get(k) != stored["settings"].get(k))
                raise ValueError(
                    f"{file}, of an interrupted run, was made with other {', '.join(changed)}: remove {file.parent}, "
                    "or give another --runs"
                )
            return stored["value"]
        value = make()
        self._write(file, json.dumps({"settings": asked, "value": value}))
        return value

    def forget(self) -> None:
        """Remove what :meth:`kept` has kept: the run is complete, and the next one begins anew."""
        for file in self._parts:
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in self._parts}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._parts.clear()

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")


def command(module: ModuleType, name: str) -> Callable[..., None]:
    """Return ``main`` of a benchmark as a Typer command, with the options that benchmarks share."""
    main, quick = module.main, getattr(module, "QUICK", None)
    signature = inspect.signature(main, eval_str=True)
    records = "record" in signature.parameters
    own = [parameter for key, parameter in signature.parameters.items() if key != "record"]
    shared: dict[str, tuple[Any, Any]] = {}
    if records:
        shared["results"] = Annotated[Path, typer.Option(file_okay=False, help="Folder of results.")], RESULTS
        where = typer.Option(file_okay=False, help="Folder of unfinished work, from which an interrupted run goes on.")
        shared["runs"] = Annotated[Path, where], RUNS
    if quick is not None:
        values = {**quick, "results": str(QUICKLY), "runs": str(QUICKLY)} if records else quick

        def choose(context: typer.Context, chosen: bool) -> bool:
            if chosen:
                context.default_map = values
            return chosen

        words = f"The smallest setting; results go to {QUICKLY}." if records else "The smallest setting."
        option = typer.Option("--quick", is_eager=True, callback=choose, help=words)
        shared["quick"] = Annotated[bool, option], False

    def act(**options: Any) -> None:
        options.pop("quick", None)
        kept = {"interrupted": "the same command goes on from what it has kept"} if records else {}
        with output.one_line_errors(f"benchmarks {name}", **kept), warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # what they tell is among the figures
            if not records:
                main(**options)
                return
            record = Record(options.pop("results"), options.pop("runs"))
            main(record, **options)
            record.forget()

    further = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for key, (annotation, default) in shared.items()
    ]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *further]
    act.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    act.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return act


def repeated(arguments: Iterable[str], options: set[str]) -> list[str]:
    """Return arguments with ``--counts 1 3`` written as ``--counts 1 --counts 3``, for options of several values."""
    found: list[str] = []
    option, waiting = "", False
    for argument in arguments:
        if argument.startswith("--"):
            found += [option] * waiting
            option, waiting = (argument, True) if argument in options else ("", False)
            found += [argument] * (not option)
        else:
            found += [option, argument] if option else [argument]
            waiting = False
    return found + [option] * waiting


def check_choice(option: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ``ValueError`` if a value of an option is not one of those that are allowed."""
    allowed = list(allowed)
    for value in values:
        if value not in allowed:
            raise ValueError(f"{option} has no {value!r}: use {', '.join(map(repr, allowed))}")


def check_file(option: str, path: Path, words: str) -> Path:
    """Return a path, or raise ``ValueError`` if there is no such file."""
    if not path.is_file():
        raise ValueError(f"there is no {path}, {words}: give {option} FILE.npz")
    return path


def thinned(ladder: Ladder, every: int) -> Ladder:
    """Return every so-manieth rung of a ladder, counted from its last one, which stays."""
    levels, steps = ladder.levels[::-1][::every][::-1], tuple(ladder.steps_per_rung)[::-1][::every][::-1]
    return Ladder(levels=levels, steps=steps)


@contextmanager
def double_precision() -> Iterator[None]:
    """Context in which new torch tensors are float64; restored on exit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard error over repetitions, by figure of merit."""
    frame = pd.DataFrame(rows, dtype=float)[list(rows[0])]
    means, errors = frame.mean(skipna=False), frame.std(skipna=False) / np.sqrt(len(frame))
    return {key: {"mean": float(means[key]), "se": float(errors[key])} for key in frame}


def last(trace: Trace) -> np.ndarray:
    """Return the last draw of every chain, ``(chains, *event_shape)``."""
    return trace.positions[:, -1]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a compressed ``.npz`` file, which appears only when it is complete; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def say(line: str) -> None:
    """Print a line at once: progress, or a table."""
    typer.echo(line)


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str]) -> str:
    """Return a table of means and standard errors for a terminal, a row for each sampler."""
    cells = [[cell(row[c]) if c in row else "" for c in columns] for row in rows.values()]
    return pd.DataFrame(cells, index=list(rows), columns=list(columns)).to_string()


def cell(value: Mapping[str, float]) -> str:
    """Format a mean and its standard error, of two significant digits, for a table; empty for NaN."""
    if np.isnan(value["mean"]):
        return ""
    if not value.get("se", 0) > 1e-9 * abs(value["mean"]):  # less is rounding
        return f"{value['mean']:.3g}"
    digits = max(0, 1 - int(np.floor(np.log10(value["se"]))))
    return f"{value['mean']:.{digits}f} ± {value['se']:.{digits}f}"
