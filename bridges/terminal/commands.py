"""The command ``ppl-diffusion``: sample an expression, diagnose a run, list models, train one, compare kernels.

Invalid input prints one line and exits with status 2; an interruption exits with status 130. Output
appears under its final name only when it is complete.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import output
from .bench import bench
from .given import Engine, KernelName, build_kernel, load_model, load_teacher, parse_models
from .report import report

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no report.")]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON on standard output.")]


def main() -> None:
    """Run the command line."""
    output.run(app, sys.argv[1:], "ppl-diffusion")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("ppl-diffusion"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def sample(
    expression: Annotated[
        str, typer.Argument(help="For example 'ring * bar', 'digits[3]' or 'guidance(digits[3], digits, scale=2)'.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the trace, the summary and the picture.")],
    kernel: KernelName = KernelName.hmc,
    engine: Annotated[Engine, typer.Option(help="Library of the kernel; pyro has hmc and nuts.")] = Engine.blackjax,
    chains: Annotated[int | None, typer.Option(help="256 by default, 16 for pictures.")] = None,
    draws: int = 1,
    steps: Annotated[
        int | None, typer.Option(help="Kernel steps at every rung; 10 by default, 2 for pictures.")
    ] = None,
    rungs: Annotated[int | None, typer.Option(help="Levels visited; all by default.")] = None,
    leapfrogs: Annotated[int | None, typer.Option(help="For hmc and uhmc; 3 by default.")] = None,
    step: Annotated[float | None, typer.Option(help="Leapfrog step; adapted by default.")] = None,
    resample: Annotated[float | None, typer.Option(help="Share of the chains, e.g. 0.5.")] = None,
    islands: Annotated[int | None, typer.Option(help="Blocks of chains that walk apart and are merged.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="NAME=FILE.safetensors, or the folder of a pipeline.")] = None,
    reverse_step: Annotated[bool, typer.Option("--reverse-step", help="Arrive by reverse diffusion.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Reverse steps as wide as the clean point is unknown.")] = False,
    device: Annotated[str, typer.Option(help="Where the networks are: cpu or cuda.")] = "cpu",
    snapshots: Annotated[int, typer.Option(help="Rungs at which a few chains are kept, for the report.")] = 8,
    checkpoint: Annotated[Path | None, typer.Option(help="Keeps the walk; goes on from here if it exists.")] = None,
    seed: int = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Sample a composition of shipped models by annealed MCMC."""
    with output.one_line_errors():
        if out.exists():
            raise ValueError(f"{out} exists and is kept: give another --out, or remove it first")
        if checkpoint is not None and out.resolve() == checkpoint.resolve():
            raise ValueError(f"{out} would be folder and checkpoint: give another --checkpoint")
        from ppl_diffusion.arrays import check_device
        from ppl_diffusion.ladder import Ladder
        from ppl_diffusion.models import library
        from ppl_diffusion.potentials.expression import parse
        from ppl_diffusion.sampling.advice import SamplingWarning
        from ppl_diffusion.sampling.anneal import anneal, reverse_diffusion

        if kernel is KernelName.reverse:
            numbers = {"--steps": steps, "--leapfrogs": leapfrogs, "--step": step, "--resample": resample}
            numbers["--islands"] = islands
            unread = [name for name, value in numbers.items() if value is not None]
            unread += ["--draws"] * (draws != 1) + ["--reverse-step"] * reverse_step + ["--wide"] * wide
            unread += ["--engine"] * (engine is not Engine.blackjax) + ["--checkpoint"] * (checkpoint is not None)
            if unread:
                raise ValueError(
                    f"reverse diffusion has no kernel, one draw a chain and no weights: leave {', '.join(unread)} out"
                )
        else:
            built = build_kernel(engine, kernel, leapfrogs, step)
        files, where = parse_models(model or []), check_device(device)
        target = parse(
            expression,
            load=lambda name: (load_model(files[name], name) if name in files else library.load(name)).to(where),
            known=[*library.names(), *files],
        )
        schedule = target.schedule
        count = len(schedule) if rungs is None else rungs
        usual_chains, usual_steps = (16, 2) if len(target.event_shape) > 1 else (256, 10)
        chains = usual_chains if chains is None else chains
        ladder = Ladder.spaced(schedule, rungs=count, steps=usual_steps if steps is None else steps)
        options: dict[str, Any] = {"ladder": ladder, "chains": chains, "seed": seed, "snapshots": snapshots}
        with (
            output.resume_hint(checkpoint),
            output.staging(out) as folder,
            output.bar(expression, quiet or as_json, kept=checkpoint) as progress,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", SamplingWarning)  # the diagnosis contains them
            if kernel is KernelName.reverse:
                trace = reverse_diffusion(target, **options, progress=progress)
            else:
                trace = anneal(
                    target,
                    built,
                    **options,
                    draws=draws,
                    resample=resample,
                    reverse_step="wide" if wide else reverse_step,
                    islands=islands,
                    checkpoint=checkpoint,
                    progress=progress,
                )
            verdict = _write_run(folder, trace, target)
        output.report(verdict, quiet, as_json, extra={"out": str(out), "gradient_calls": trace.gradient_calls})


app.command()(report)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="A folder that sample wrote, or a trace file.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Diagnose a run: print statistics of every rung, and warnings if its samples cannot be trusted."""
    with output.one_line_errors():
        from ppl_diffusion.sampling.trace import Trace

        from ..arviz import diagnose as diagnosis

        trace = Trace.load(run / "trace.nc" if run.is_dir() else run)
        output.report(diagnosis(trace), quiet, as_json, extra={"potential": trace.attributes["potential"]})


app.command()(bench)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the shipped models."""
    with output.one_line_errors():
        from ppl_diffusion.models import library

        cards = library.cards()
        if as_json:
            typer.echo(json.dumps([card._asdict() for card in cards]))
            return
        table = Table("name", "points", "conditions", "what it is")
        for card in cards:
            table.add_row(card.name, "x".join(map(str, card.event_shape)), card.conditions, card.description)
        Console().print(table)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped configuration.")],
    data: Annotated[Path | None, typer.Option(help="An .npz file of images or points, if it needs one.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model, weight file or folder of a pipeline whose noise is learned.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Weight file; NAME.safetensors by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Goes on from here if it exists.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on from a checkpoint of another rate, length, batch or data.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train an energy model, or resume its training from a checkpoint."""
    with output.one_line_errors():
        from ppl_diffusion.models import library
        from ppl_diffusion.training import train as training

        settings = training.load_config(config)
        weights = out or Path(f"{settings.name}.safetensors")
        if weights.suffix != ".safetensors":
            raise ValueError(f"{weights} is to be a weight file: give --out {weights.with_suffix('.safetensors')}")
        if weights.exists():
            raise ValueError(f"{weights} exists and is kept: give another --out, or remove it first")
        if not weights.parent.is_dir():
            raise ValueError(f"there is no folder {weights.parent} for {weights.name}: make it, or give another --out")
        if not os.access(weights.parent, os.W_OK):
            raise ValueError(f"the folder {weights.parent} cannot be written: give another --out")
        kept = checkpoint or Path(f"{settings.name}.checkpoint.safetensors")
        if kept.resolve() == weights.resolve():
            raise ValueError(f"{kept} would be checkpoint and weights: give another --checkpoint")
        with output.bar(settings.name, quiet, kept=kept) as progress, output.resume_hint(kept):
            model = training.train(
                settings,
                checkpoint=kept,
                data=data,
                teacher=None if teacher is None else load_teacher(teacher),
                allow_changes=allow_changes,
                device=device,
                progress=progress,
            )
        library.save_weights(model, weights)
        if not quiet:
            typer.echo(f"{weights}: load it with load({str(weights)!r})")


def _write_run(folder: Path, trace: Any, target: Any) -> Any:
    """Write a trace, its diagnosis, which is returned, its summary and its pictures."""
    from ..arviz import diagnose, summary
    from ..arviz.plots import plot_ladder, plot_samples, save_pictures

    verdict = diagnose(trace)
    trace.save(folder / "trace.nc")
    (folder / "diagnosis.txt").write_text(f"{verdict}\n", encoding="utf-8")
    summary(trace).to_csv(folder / "summary.csv", float_format="%.5g")
    samples = trace.positions[:, -1]
    latent = [leaf for leaf in target.leaves() if getattr(getattr(leaf, "network", None), "decoder", None) is not None]
    if latent:
        from ..diffusers import decode

        samples = decode(latent[0], samples).cpu().numpy()
    plot_samples(samples, title=str(target)).savefig(folder / "samples.png", dpi=150)
    save_pictures(samples, folder / "pictures")
    plot_ladder(trace).savefig(folder / "ladder.png", dpi=150)
    return verdict


if __name__ == "__main__":
    main()
