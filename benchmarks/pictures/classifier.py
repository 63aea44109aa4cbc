"""Claim: an unconditional model times a classifier draws the digit that was asked for, and annealed HMC and MALA draw
it more often, and better, than reverse diffusion with the same two networks does.

    python -m benchmarks classifier --mnist data/mnist.npz [--labels 0 1 2] [--samplers reverse HMC] [--scales 1 4]

The target is ``load("digits")`` without a label times ``p(label | x) ** scale`` by ``load("digits_classifier")``, a
classifier of noised digits. Beside it stands ``load("digits").given(label)``, a model that was trained with the labels.
Every second level is visited, with one HMC step of three leapfrogs or three Langevin steps at each, 200 evaluations
of both networks; reverse diffusion alone visits every level, 100 evaluations. On arrival at a level every walk first
takes the reverse-diffusion proposal. Step sizes are adapted. Weighted HMC resamples from level 97 to 20, where the
energies of this network agree between levels.

A second classifier, of another make and trained on clean digits (``python -m benchmarks judge``), says whether a
picture is the digit. In its features are the Frechet distance to held-out real digits of the class, and precision and
recall; the row of real digits says what as many real ones get. All figures are means over labels, and standard errors
are over labels. Results are written after every label; pictures are kept until all labels are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, check_choice, last, say, summarise, thinned
from benchmarks.pictures.cubes import KERNELS, LATER, WEIGHED, part
from benchmarks.pictures.fidelity import frechet_distance, precision_and_recall
from benchmarks.pictures.judge import Judge, load_judge, look, named, read_digits
from ppl_diffusion import Ladder, Potential, Trace, anneal, classifier_potential, load, reverse_diffusion

DIGITS, CLASSIFIER = load("digits"), load("digits_classifier")
SCHEDULE = DIGITS.schedule
TIMES = tuple(SCHEDULE.log_snr(level) for level in range(len(SCHEDULE)))
SAMPLERS = ("reverse", *KERNELS)
GIVEN = "given the label"
"""The target that was trained with the labels."""
BESIDE = ("reverse", "HMC")
"""The samplers of that target."""
SHOWN = ("reverse", "MALA", "HMC")
MERITS = ("accuracy", "Frechet distance", "precision", "recall", "steered", "acceptance")
QUICK = {"labels": [3], "samplers": ["reverse"], "scales": [1.0], "chains": 4, "every": 10}


def target(kind: str, label: int) -> Potential:
    """Return the density of one digit: given its label, or steered towards it, "scale 4" for example."""
    if kind == GIVEN:
        return DIGITS.given(label)
    scale, shape = float(kind.split()[1]), DIGITS.event_shape
    named: dict[str, Any] = {"schedule": SCHEDULE, "times": TIMES, "event_shape": shape}
    return DIGITS * classifier_potential(CLASSIFIER.network, label, scale=scale, **named)


def sample(potential: Potential, sampler: str, *, chains: int, every: int, seed: int) -> list[Trace]:
    """Draw digits with one of the samplers, in one walk or in two consecutive ones; the last one has the pictures."""
    common: dict[str, Any] = {"chains": chains, "seed": seed}
    if sampler == "reverse":
        return [reverse_diffusion(potential, **common)]
    kernel = KERNELS[sampler]
    ladder = thinned(Ladder.full(SCHEDULE, steps=3 // kernel.leapfrogs), every)
    if not sampler.startswith("weighted"):
        return [anneal(potential, kernel, ladder=ladder, reverse_step=True, **common)]
    upper, lower = part(ladder, *WEIGHED), part(ladder, WEIGHED[1], 0)
    first = anneal(potential, kernel, ladder=upper, reverse_step=True, resample=0.5, **common)
    common |= {"seed": seed + LATER, "init": last(first)}
    return [first, anneal(potential, kernel, ladder=lower, reverse_step=True, **common)]


def draw(kind: str, sampler: str, label: int, *, chains: int, every: int) -> dict[str, Any]:
    """Return the pictures of one digit as bytes, ``(chains, 28, 28)`` nested lists, and statistics of the walks."""
    traces = sample(target(kind, label), sampler, chains=chains, every=every, seed=label)
    pictures = np.rint((np.clip(np.nan_to_num(last(traces[-1]), nan=-1.0), -1, 1) + 1) * 127.5).astype(np.uint8)
    tested = sampler in KERNELS and KERNELS[sampler].adjusted
    rates = [float(trace.stats.acceptance_rate.mean()) for trace in traces] if tested else []
    origin = np.arange(chains)
    for trace in traces:
        for row in trace.stats.ancestor.to_numpy():
            origin = origin[row]
    return {
        "pictures": pictures.tolist(),
        "acceptance": float(np.mean(rates)) if rates else None,
        "ancestors": len(np.unique(origin)),
        "evaluations": sum(trace.gradient_calls for trace in traces),
        "seconds": sum(float(trace.attributes["seconds"]) for trace in traces),
    }


def judged(pictures: np.ndarray, label: int, judge: Judge, real: np.ndarray) -> dict[str, float]:
    """Return the figures of merit of pictures ``(n, 28, 28)`` in [-1, 1] against features of real ones ``(m, 32)``."""
    labels, features = look(judge, pictures)
    found, recalled = precision_and_recall(features, real)
    return {
        "accuracy": float(np.mean(labels == label)),
        "Frechet distance": frechet_distance(features, real),
        "precision": found,
        "recall": recalled,
        "steered": float(np.mean(named(CLASSIFIER, pictures, 0) == label)),
    }


def scaled(pictures: Any) -> np.ndarray:
    """Return pictures of bytes as floats in [-1, 1], of their shape."""
    return np.asarray(pictures, dtype=np.float32) / 127.5 - 1


def means(by_label: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return means and standard errors over labels, and what all labels share."""
    rows = list(by_label.values())
    merits = [merit for merit in MERITS if rows[0].get(merit) is not None]
    row: dict[str, Any] = dict(summarise([{merit: r[merit] for merit in merits} for r in rows]))
    row["labels"] = len(rows)
    if "evaluations" in rows[0]:
        row["evaluations"] = int(rows[0]["evaluations"])
        row["ancestors"] = float(np.mean([r["ancestors"] for r in rows]))
    return row


def draw_digits(rows: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw pictures ``(28, 28)``, one row for each name."""
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(0.62 * columns + 1.6, 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        for axis, x in zip(line, row, strict=False):
            axis.imshow(x, cmap="gray", vmin=-1, vmax=1)
    return figure


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    labels: Annotated[list[int], typer.Option(min=0, max=9, help="Digits.")] = list(range(10)),  # noqa: B006
    scales: Annotated[list[float], typer.Option(min=0.01, help="Scales of guidance.")] = [1.0, 4.0],  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help=f"Of {', '.join(SAMPLERS)}.")] = list(SAMPLERS),  # noqa: B006
    chains: Annotated[int, typer.Option(min=4, max=400, help="Pictures of each label.")] = 50,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th level only.")] = 2,
) -> None:
    """Draw digits, judge them, and write the results."""
    check_choice("--samplers", samplers, SAMPLERS)
    held, classes = read_digits(mnist, "test")
    judge, settings = load_judge(), {"chains": chains, "every": every}
    cells = [(f"scale {scale:g}", sampler) for scale in scales for sampler in samplers]
    cells += [(GIVEN, sampler) for sampler in BESIDE if sampler in samplers]
    by_label: dict[str, dict[str, dict[str, Any]]] = {"real digits": {}}
    shown: dict[str, list[np.ndarray]] = {}
    for label in labels:
        real = held[classes == label]
        features = look(judge, real[chains:])[1]
        by_label["real digits"][str(label)] = judged(real[:chains], label, judge, features)
        for kind, sampler in cells:
            act = partial(draw, kind, sampler, label, **settings)
            found = record.kept(f"classifier/{label} {kind} {sampler}", settings, act)
            pictures, name = scaled(found.pop("pictures")), f"{kind}, {sampler}"
            row = found | judged(pictures, label, judge, features)
            by_label.setdefault(name, {})[str(label)] = row
            if sampler in SHOWN:
                shown.setdefault(name, []).append(pictures[0])
            say(f"{label}: {name}, accuracy {row['accuracy']:.2f}, distance {row['Frechet distance']:.1f}")
        rows = {name: means(each) for name, each in by_label.items()}
        record.write("classifier", settings | {"rows": rows, "by label": by_label})
    if shown:
        record.draw("classifier", draw_digits(shown), dpi=150)
