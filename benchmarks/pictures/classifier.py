"""Claim: an unconditional model times a classifier draws the digit that was asked for, and annealed HMC and MALA draw
it more often, and better, than reverse diffusion with the same two networks does.

    python -m benchmarks classifier --mnist data/mnist.npz [--labels 0 1 2] [--samplers reverse HMC] [--scales 1 4]

The target is ``load("digits")`` without a label times ``p(label | x) ** scale`` by ``load("digits_classifier")``, a
classifier of noised digits. Beside it stands ``load("digits").given(label)``, a model that was trained with the labels.
Every second level is visited, with one HMC step of three leapfrogs or three Langevin steps at each, 200 evaluations
of both networks; reverse diffusion alone visits every level, 100 evaluations. On arrival at a level every walk first
takes the reverse-diffusion proposal. *Finer reverse* is reverse diffusion over twice as many levels, with as many
evaluations as the walks. Step sizes are adapted. Weighted HMC resamples from level 97 to 20, where the
energies of this network agree between levels.

A second classifier, of another make and trained on clean digits (``python -m benchmarks judge``), says whether a
picture is the digit. In its features are the Frechet distance to held-out real digits of the class, and precision and
recall; the row of real pictures says what as many real ones get. All figures are means over labels, and standard
errors are over labels. Results are written after every label, beside those of other labels in the same setting;
pictures are kept until all labels that were asked for are done.

The same of photographs, ``load("cifar")`` and ``load("cifar_classifier")``, judged in features of a network of ImageNet
(``benchmarks.pictures.photo_judge``):

    python -m benchmarks classifier --photographs data/cifar32.npz --chains 50 --every 4
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, check_choice, check_file, last, say, summarise, thinned
from benchmarks.pictures.cubes import KERNELS, LATER, WEIGHED, part
from benchmarks.pictures.fidelity import frechet_distance, precision_and_recall
from benchmarks.pictures.judge import load_judge, look, named, read_digits
from benchmarks.pictures.photo_judge import fit as fit_photo_judge
from benchmarks.pictures.photo_judge import load_network
from ppl_diffusion import EnergyModel, Ladder, Potential, Trace, anneal, classifier_potential, load, reverse_diffusion

FINER = "finer reverse"
"""Reverse diffusion over twice as many levels."""
SAMPLERS = ("reverse", FINER, *KERNELS)
GIVEN = "given the label"
"""The target that was trained with the labels."""
BESIDE = ("reverse", FINER, "HMC")
"""The samplers of that target."""
SHOWN = ("reverse", "MALA", "HMC")
LEARNED = 5000
"""Number of photographs from which their judge learns."""
MERITS = ("accuracy", "Frechet distance", "precision", "recall", "steered", "acceptance")
QUICK = {"labels": [3], "samplers": ["reverse"], "scales": [1.0], "chains": 4, "every": 10}


@dataclass(frozen=True)
class Subject:
    """What is drawn, and who judges it.

    Attributes:
        name: of the results.
        prior: the model, without a label.
        classifier: the classifier that steers it.
        look: the judge: maps pictures ``(n, *event_shape)`` to labels ``(n,)`` and features ``(n, size)``.
        pictures, labels: held-out real pictures in [-1, 1], and their labels.
    """

    name: str
    prior: EnergyModel
    classifier: EnergyModel
    look: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    pictures: np.ndarray
    labels: np.ndarray

    def target(self, kind: str, label: int, *, finer: int = 1) -> Potential:
        """Return the density of one class: given its label, or steered towards it, "scale 4" for example; with so many
        times the levels of the model."""
        schedule = self.prior.schedule.finer(finer)
        prior = self.prior.at(schedule)
        if kind == GIVEN:
            return prior.given(label)
        times = [schedule.log_snr(level) for level in range(len(schedule))]
        named: dict[str, Any] = {"schedule": schedule, "times": times, "event_shape": prior.event_shape}
        scale = float(kind.split()[1])
        return prior * classifier_potential(self.classifier.network, label, scale=scale, **named)


def digits(mnist: Path) -> Subject:
    """Return the shipped models of digits, and their judge."""
    return Subject(
        "classifier",
        load("digits"),
        load("digits_classifier"),
        partial(look, load_judge()),
        *read_digits(mnist, "test"),
    )


def photographs(file: Path, model: str, classifier: str) -> Subject:
    """Return two models of photographs, by name or weight file, and a judge that learns from real ones."""
    check_file("--photographs", file, "the photographs")
    with np.load(file) as stored:
        chosen = np.random.default_rng(0).permutation(len(stored["y_train"]))[:LEARNED]  # the data may be sorted
        shown, labels = (stored[key][chosen] for key in ("x_train", "y_train"))
        held, classes = (stored[key] for key in ("x_test", "y_test"))
    judge, prior = fit_photo_judge(scaled(shown), labels, load_network()), load(model)
    alpha, sigma = prior.schedule.alpha(0), prior.schedule.sigma(0)
    noise = np.random.default_rng(1).standard_normal(held.shape, dtype=np.float32)
    real = np.float32(alpha) * scaled(held) + np.float32(sigma) * noise  # of level 0, as what is drawn
    return Subject("steered_photographs", prior, load(classifier), judge.look, real, classes)


def sample(potential: Potential, sampler: str, *, chains: int, every: int, seed: int) -> list[Trace]:
    """Draw pictures with one of the samplers, in one walk or in two consecutive ones; the last one has the pictures."""
    common: dict[str, Any] = {"chains": chains, "seed": seed}
    if sampler in ("reverse", FINER):
        return [reverse_diffusion(potential, **common)]
    kernel = KERNELS[sampler]
    ladder = thinned(Ladder.full(potential.schedule, steps=3 // kernel.leapfrogs), every)
    if not sampler.startswith("weighted"):
        return [anneal(potential, kernel, ladder=ladder, reverse_step=True, **common)]
    upper, lower = part(ladder, *WEIGHED), part(ladder, WEIGHED[1], 0)
    first = anneal(potential, kernel, ladder=upper, reverse_step=True, resample=0.5, **common)
    common |= {"seed": seed + LATER, "init": last(first)}
    return [first, anneal(potential, kernel, ladder=lower, reverse_step=True, **common)]


def draw(subject: Subject, kind: str, sampler: str, label: int, *, chains: int, every: int) -> dict[str, Any]:
    """Return pictures of one class as bytes, ``(chains, *event_shape)`` nested lists, and statistics of the walks."""
    target = subject.target(kind, label, finer=2 if sampler == FINER else 1)
    traces = sample(target, sampler, chains=chains, every=every, seed=label)
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


def judged(subject: Subject, pictures: np.ndarray, label: int, real: np.ndarray) -> dict[str, float]:
    """Return figures of merit of ``pictures (n, *event_shape)`` in [-1, 1] against features ``(m, size)`` of real
    ones."""
    labels, features = subject.look(pictures)
    found, recalled = precision_and_recall(features, real)
    return {
        "accuracy": float(np.mean(labels == label)),
        "Frechet distance": frechet_distance(features, real),
        "precision": found,
        "recall": recalled,
        "steered": float(np.mean(named(subject.classifier, pictures, 0) == label)),
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


def above_reverse(by_label: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str) -> dict[str, Any]:
    """Return how much more accurate a sampler is than reverse diffusion with the same target: the mean difference over
    the labels of both, and its standard error; nothing for reverse diffusion itself."""
    kind, _, sampler = name.partition(", ")
    other = by_label.get(f"{kind}, reverse", {})
    differences = [
        {"d": row["accuracy"] - other[key]["accuracy"]} for key, row in by_label[name].items() if key in other
    ]
    return {"above reverse": summarise(differences)["d"]} if sampler not in ("", "reverse") and differences else {}


def draw_rows(rows: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw pictures ``(height, width)`` or ``(3, height, width)``, one row for each name."""
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(0.62 * columns + 1.6, 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        for axis, x in zip(line, row, strict=False):
            axis.imshow((x if x.ndim == 2 else x.transpose(1, 2, 0)) / 2 + 0.5, cmap="gray", vmin=0, vmax=1)
    return figure


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    photos: Annotated[
        Path | None, typer.Option("--photographs", dir_okay=False, help="Draw photographs; the data of real ones.")
    ] = None,
    model: Annotated[str, typer.Option(help="Of photographs; or a weight file.")] = "cifar",
    classifier: Annotated[str, typer.Option(help="Of photographs; or a weight file.")] = "cifar_classifier",
    labels: Annotated[list[int], typer.Option(min=0, max=9, help="Classes.")] = list(range(10)),  # noqa: B006
    scales: Annotated[list[float], typer.Option(min=0.01, help="Scales of guidance.")] = [1.0, 4.0],  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help=f"Of {', '.join(SAMPLERS)}.")] = list(SAMPLERS),  # noqa: B006
    chains: Annotated[int, typer.Option(min=4, max=400, help="Pictures of each label.")] = 50,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th level only.")] = 2,
) -> None:
    """Draw pictures, judge them, and write the results."""
    check_choice("--samplers", samplers, SAMPLERS)
    subject = digits(mnist) if photos is None else photographs(photos, model, classifier)
    settings = {"chains": chains, "every": every}
    cells = [(f"scale {scale:g}", sampler) for scale in scales for sampler in samplers]
    if not subject.prior.conditions.absent:
        cells += [(GIVEN, sampler) for sampler in BESIDE if sampler in samplers]
    before = record.read(subject.name)
    same = all(before.get(key) == value for key, value in settings.items())
    by_label: dict[str, dict[str, dict[str, Any]]] = before["by label"] if same else {}
    shown: dict[str, list[np.ndarray]] = {}
    for label in labels:
        real = subject.pictures[subject.labels == label]
        features = subject.look(real[chains:])[1]
        by_label.setdefault("real pictures", {})[str(label)] = judged(subject, real[:chains], label, features)
        for kind, sampler in cells:
            act = partial(draw, subject, kind, sampler, label, **settings)
            found = record.kept(f"{subject.name}/{label} {kind} {sampler}", settings, act)
            pictures, name = scaled(found.pop("pictures")), f"{kind}, {sampler}"
            row = found | judged(subject, pictures, label, features)
            by_label.setdefault(name, {})[str(label)] = row
            if sampler in SHOWN:
                shown.setdefault(name, []).append(pictures[0])
            say(f"{label}: {name}, accuracy {row['accuracy']:.2f}, distance {row['Frechet distance']:.1f}")
        rows = {name: means(each) | above_reverse(by_label, name) for name, each in by_label.items()}
        record.write(subject.name, settings | {"rows": rows, "by label": by_label})
    if shown:
        record.draw(subject.name, draw_rows(shown), dpi=150)
