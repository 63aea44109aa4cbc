"""Terminal output of the commands, output folders that appear only when complete, and exit statuses on errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def report(diagnosis: Any, quiet: bool, as_json: bool, *, extra: dict[str, Any]) -> None:
    """Print a diagnosis as text, or as JSON with the items of ``extra``; ``quiet`` suppresses the text only."""
    if as_json:
        rungs = {name: values.to_numpy().tolist() for name, values in diagnosis.rungs.items()}
        draws = {name: values.to_numpy().tolist() for name, values in diagnosis.draws.items()}
        variables = [str(v) for v in diagnosis.draws["variable"].to_numpy()] if draws else []
        content = {**extra, "verdict": asdict(diagnosis.verdict), "warnings": diagnosis.warnings}
        content |= {"rungs": rungs, "draws": {"variable": variables, **draws}}
        typer.echo(json.dumps(_without_nan(content)))
    elif not quiet:
        typer.echo(str(diagnosis))


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None in nested dicts and lists."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``; rename it to ``out`` on success and remove it on any error.

    Raises:
        ValueError: the folder cannot be created.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): give another --out") from error
    try:
        yield folder
        mask = os.umask(0o022)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def bar(title: str, silent: bool, *, kept: Path | None = None) -> Iterator[Callable[[Any], None] | None]:
    """Yield a progress callback: a bar on a terminal, else a printed line at every 10%; None if ``silent``.

    The first call, or the end, says that the command goes on from a checkpoint, if the file ``kept`` was there.
    """
    console = Console(stderr=True)
    opening = [f"going on from {kept}"] if kept is not None and kept.exists() else []
    if silent:
        yield None
        return
    if not console.is_terminal:
        last = [-1]

        def print_progress(state: Any) -> None:
            share, text = _progress(state)
            _print_once(console, opening)
            if int(share * 10) > last[0]:
                last[0] = int(share * 10)
                console.print(f"{title}: {share:.0%}, {text}", markup=False, highlight=False, soft_wrap=True)

        yield print_progress
        _print_once(console, opening)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title.replace("[", "\\["), total=1.0, text="")

        def update_bar(state: Any) -> None:
            share, text = _progress(state)
            _print_once(console, opening)
            bar.update(task, completed=share, text=text)

        yield update_bar
        _print_once(console, opening)


def _print_once(console: Console, lines: list[str]) -> None:
    while lines:
        console.print(lines.pop(), markup=False, highlight=False, soft_wrap=True)


def _progress(state: Any) -> tuple[float, str]:
    """Return the completed share and a description of a progress state of training or of sampling."""
    if hasattr(state, "loss"):
        return state.step / state.steps, f"step {state.step}, loss {state.loss:.4f}"
    share = (state.island + (state.rung + state.draw) / (state.rungs + state.draws)) / state.islands
    if state.draw:
        return share, f"draw {state.draw} of {state.draws}"
    known = state.acceptance_rate == state.acceptance_rate  # NaN for unadjusted kernels
    return share, f"level {state.level}" + (f", acceptance {state.acceptance_rate:.2f}" if known else "")


@contextmanager
def resume_hint(kept: Path | None) -> Iterator[None]:
    """After an interruption, print how to resume if there is a checkpoint, and exit with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        if kept is None or not kept.exists():
            raise
        typer.echo(f"ppl-diffusion: interrupted, the same command goes on from {kept}", err=True)
        raise typer.Exit(130) from None


def run(app: typer.Typer, arguments: Sequence[str], command: str) -> None:
    """Run a command line and exit; print usage errors on one line, and treat SIGTERM as an interruption.

    The process is its own, and keeps the memory that network calls free. What only tells of itself does not import the
    library, which takes seconds.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = list(arguments) or ["--help"]
    try:
        if not {"--help", "--version"} & set(arguments):
            from ppl_diffusion.devices.memory import keep_freed_memory

            keep_freed_memory()
        status = app(arguments, prog_name=command, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo(f"{command}: interrupted", err=True)
        status = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # only Typer's usage errors have it
            raise
        words = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
        context = getattr(error, "ctx", None)
        place = command if context is None else context.command_path
        typer.echo(f"{command}: {words}; see {place} --help", err=True)
        status = 2
    sys.exit(status)


@contextmanager
def one_line_errors(
    command: str = "ppl-diffusion", *, interrupted: str = "nothing half-written is left"
) -> Iterator[None]:
    """Print the message of an error on one line and exit with status 2; exit with 130 after an interruption."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo(f"{command}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    except MemoryError as error:
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        typer.echo(f"{command}: there is not enough memory{reason}: take fewer chains, or a smaller batch", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo(f"{command}: interrupted, {interrupted}", err=True)
        raise typer.Exit(130) from None
