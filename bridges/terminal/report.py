"""The command ``ppl-diffusion report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import output


def report(
    run: Annotated[Path, typer.Argument(help="A folder that sample wrote, or a trace file.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file; report.html in the folder, or beside the file, by default.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not name the file.")] = False,
) -> None:
    """Write a run as one self-contained HTML page: verdict, tables, plots, and samples by noise level."""
    with output.one_line_errors():
        file = run / "trace.nc" if run.is_dir() else run
        if not file.is_file():
            raise ValueError(
                f"{run} is no run: give a folder that ppl-diffusion sample wrote, or the file of trace.save(path)"
            )
        page = out or (run / "report.html" if run.is_dir() else run.with_suffix(".html"))
        from ppl_diffusion.sampling.trace import Trace

        from ..html import write_report

        write_report(Trace.load(file), page)
        if not quiet:
            typer.echo(f"{page}: open it in a browser")
