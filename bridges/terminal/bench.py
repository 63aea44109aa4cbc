"""The command ``ppl-diffusion bench``: one's own kernel beside standard ones, on targets with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import output

TARGETS = "mixture_2,mixture_16,ill_conditioned_64,ring_bar"
QUICK_TARGETS, QUICK_BESIDE = "mixture_2,ill_conditioned_64", "hmc,mala"
BESIDE = "hmc,nuts,mala,mclmc-tuner"


def bench(
    kernel: Annotated[
        str, typer.Argument(help="mymodule:kernel, a function of log_density that returns a BlackJAX algorithm.")
    ],
    targets: Annotated[str | None, typer.Option(help=f"Names, with commas; by default {TARGETS}.")] = None,
    beside: Annotated[str | None, typer.Option(help=f"Kernels to compare with; by default {BESIDE}.")] = None,
    gradients: Annotated[int | None, typer.Option(help="Budget per chain; 2000 by default.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; 3 by default.")] = None,
    chains: Annotated[int, typer.Option(help="Number of chains.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Two targets, one level, 500 gradients, one seed.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work, by Ray.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of results; an interrupted run goes on from it.")] = Path("bench"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Compare a kernel of your own with standard ones, by gradients counted at the density."""
    kept = f"the same command goes on from {out}"
    with output.one_line_errors(interrupted=kept):
        from .. import bench as benchmark
        from ..bench import pictures, results
        from ..ray.workers import shared

        usual = (500, 1, 1, QUICK_TARGETS, QUICK_BESIDE) if quick else (2000, 3, 3, TARGETS, BESIDE)
        plan = benchmark.Plan(
            gradients=usual[0] if gradients is None else gradients,
            seeds=usual[1] if seeds is None else seeds,
            chains=chains,
            levels=usual[2],
        )
        names = dict.fromkeys([kernel, *_split(usual[4] if beside is None else beside)])
        contenders = [benchmark.find(name) for name in names]
        chosen = benchmark.load_targets(_split(usual[3] if targets is None else targets))
        console = Console(stderr=True)
        tell = (lambda line: None) if quiet else lambda line: console.print(line, markup=False, highlight=False)
        with shared(workers) as spread:
            data = benchmark.sweep(contenders, chosen, plan, out / "parts", tell=tell, spread=spread)
        results.write(data, out / "bench.nc")
        files = pictures.save_all(
            data, out, contenders=[each.name for each in contenders], targets=[each.name for each in chosen]
        )
        if not quiet:
            Console().print(benchmark.comparison(data))
            typer.echo(f"{out / 'bench.nc'}, {', '.join(str(file) for file in files)}")


def _split(names: str) -> list[str]:
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise ValueError("no name was given: give some with commas, such as --targets mixture_2,ring_bar")
    return found
