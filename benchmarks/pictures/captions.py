"""Claim: captions of one network compose by and, or and not, and annealed HMC draws what they say together more often
than reverse diffusion does.

    python -m benchmarks captions [--rows "two joined" nested] [--samplers reverse HMC] [--cases 8] [--chains 8]

The model is ``load("captions")``; what it is asked for, by row:

    one caption            A
    two, three joined      base * (A / base) * (B / base) * ...             base: the model without a caption
    either                 B + C
    and not                A * (base / D)**a
    nested                 base * (A / base) * ((B + C) / base) * (base / D)**a

and one caption in wordings of the training data other than the plainest, in wordings that it does not have, in words
that it does not have, and of combinations of colour, material and place that it does not name together. Each caption
is guided: it stands for ``base**(1 - scale) * A**scale``, and ``a`` is half the scale. A detector and
a network for looks (``benchmarks.cube_factory.looks``) decide whether a picture is as it was asked for: a cube for each
caption, and none that D describes. All MCMC walks have about equally many evaluations, four a rung, and take the
reverse-diffusion proposal first; reverse diffusion has one a rung. Standard errors are over cases, each of which has
captions of its own. The seeds are the same for all samplers.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.cube_factory.detector import load_detector
from benchmarks.cube_factory.looks import Cube, describe, load_looks
from benchmarks.harness import Record, check_choice, last, say
from benchmarks.pictures.album import album
from benchmarks.pictures.asking import ROWS, Asked, asked
from benchmarks.pictures.tapestries import picture
from bridges.blackjax import HMC, MALA, UHMC, ULA
from ppl_diffusion import (
    EnergyModel,
    Kernel,
    Ladder,
    Potential,
    Trace,
    anneal,
    guidance,
    load,
    reverse_diffusion,
    tapestry,
)
from ppl_diffusion.models.conditions import ConditionWarning

KERNELS: dict[str, Any] = {"ULA": ULA(), "MALA": MALA(), "UHMC": UHMC(), "HMC": HMC(), "weighted HMC": HMC()}
SAMPLERS = ("reverse", *KERNELS)
WEIGHED = (97, 20)
"""Noisiest and cleanest level between which weighted HMC resamples, as for ``cubes``."""
LATER = 10_000
"""Added to the seed of a second walk, which would otherwise reuse the random numbers of the first one."""
WINDOWS = (
    "a red metal cube in the middle",
    "a blue rubber cube at the back",
    "a yellow rubber cube at the front",
    "a green metal cube in the middle",
)
"""The caption of each window of a tapestry, from left to right."""
SCALE = 2.5
"""Scale of the guidance of each caption."""
STRIDE = 24
"""Columns from window to window, of 32 each."""
QUICK = {"rows": ["two joined"], "samplers": ["reverse"], "cases": 1, "chains": 2, "rungs": 10}


def sample(potential: Potential, sampler: str, *, rungs: int, chains: int, seed: int) -> list[Trace]:
    """Draw pictures, in one walk or in two consecutive ones; the last one has the pictures."""
    schedule = potential.schedule
    if sampler == "reverse":
        ladder = Ladder.spaced(schedule, rungs=rungs, steps=1)
        return [reverse_diffusion(potential, ladder=ladder, chains=chains, seed=seed)]
    kernel: Kernel = KERNELS[sampler]
    ladder = Ladder.spaced(schedule, rungs=rungs, steps=3 // kernel.leapfrogs)  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"chains": chains, "reverse_step": True}
    if not sampler.startswith("weighted"):
        return [anneal(potential, kernel, ladder=ladder, seed=seed, **settings)]
    high = [level for level in ladder.levels if WEIGHED[1] <= level <= WEIGHED[0]]
    low = [level for level in ladder.levels if level <= high[-1]]  # the second begins where the first ended
    upper, lower = (Ladder(levels=tuple(levels), steps=ladder.steps_per_rung[0]) for levels in (high, low))
    first = anneal(potential, kernel, ladder=upper, seed=seed, resample=0.5, **settings)
    begun = first.positions[:, -1]
    return [first, anneal(potential, kernel, ladder=lower, seed=seed + LATER, init=begun, **settings)]


def draw(
    row: str, case: int, sampler: str, *, model: EnergyModel, scale: float, rungs: int, chains: int
) -> dict[str, Any]:
    """Draw the pictures of a case; return them as bytes of base 64, with statistics of the walk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)  # of words never seen, which are a row
        target = asked(row, case).target(model, scale=scale)
    traces = sample(target, sampler, rungs=rungs, chains=chains, seed=1000 * ROWS.index(row) + case)
    pictures = traces[-1].positions[:, -1]
    finite = np.isfinite(pictures).all((1, 2, 3))
    stored = np.where(finite[:, None, None, None], pictures, 0)
    rates = [float(trace.stats.acceptance_rate.mean()) for trace in traces]
    tested = sampler in KERNELS and KERNELS[sampler].adjusted
    say(f"case {case}: {row}, {sampler}")
    return {
        "pictures": base64.b64encode(np.round(127.5 * (stored.clip(-1, 1) + 1)).astype(np.uint8).tobytes()).decode(),
        "finite": finite.tolist(),
        "evaluations": sum(trace.gradient_calls for trace in traces),
        "acceptance": rates if tested else [],
    }


def weave(model: EnergyModel, *, scale: float, rungs: int, chains: int) -> list[list[Any]]:
    """Return pictures ``(chains, 3, 32, 104)`` in [-1, 1], as lists, of a floor with a caption for each window."""
    channels, height, width = model.event_shape
    canvas = (channels, height, width + STRIDE * (len(WINDOWS) - 1))
    places = [(0, STRIDE * i) for i in range(len(WINDOWS))]
    windows = [guidance(model.given(text), model, scale=scale) for text in WINDOWS]
    target = tapestry(windows, canvas, places, name="floor")
    ladder = Ladder.spaced(target.schedule, rungs=rungs, steps=2)
    trace = anneal(target, HMC(), ladder=ladder, chains=chains, seed=0, reverse_step=True)
    return np.round(last(trace).clip(-1, 1), 3).tolist()


def pictures_of(kept: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return the pictures ``(chains, *shape)`` that :func:`draw` kept; NaN for those that were not finite."""
    found = np.frombuffer(base64.b64decode(kept["pictures"]), np.uint8).reshape(-1, *shape) / 127.5 - 1
    found[~np.array(kept["finite"])] = np.nan
    return found


Parts = Mapping[int, Mapping[str, Any]]
"""What was drawn, by case."""
Seen = Mapping[int, list[list[Cube]]]
"""The cubes of each picture, by case."""


def judge(row: str, parts: Parts, seen: Seen) -> dict[str, Any]:
    """Return the share of pictures that are as they were asked for, over the cases of a row, and statistics."""
    shares = [share(asked(row, case), cubes) for case, cubes in seen.items()]
    loosely = [share(asked(row, case).but_for_material(), cubes) for case, cubes in seen.items()]
    error = np.std(shares, ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else np.nan
    rates = [rate for kept in parts.values() for rate in kept["acceptance"]]
    return {
        "right": {"mean": float(np.mean(shares)), "se": float(error)},
        "but for material": float(np.mean(loosely)),
        "by case": shares,
        "pictures": sum(len(cubes) for cubes in seen.values()),
        "evaluations": next(iter(parts.values()))["evaluations"],
        "acceptance": float(np.mean(rates)) if rates else None,
    }


def share(wanted: Asked, pictures: Sequence[Sequence[Cube]]) -> float:
    """Return the share of pictures, by their cubes, that are as was asked for."""
    return float(np.mean([wanted.shown(cubes) for cubes in pictures]))


def by_chance(row: str, seen: Mapping[str, Mapping[str, Seen]]) -> float:
    """Return the share of the pictures of other rows that are, by chance, as the cases of this row ask for."""
    others = [
        cubes
        for name, by in seen.items()
        if name != row
        for part in by.values()
        for some in part.values()
        for cubes in some
    ]
    cases = sorted({case for part in seen[row].values() for case in part})
    return float(np.mean([share(asked(row, case), others) for case in cases])) if others else float("nan")


class NotKept(Exception):
    """There is no such part, and none is to be drawn."""


def not_kept() -> None:
    """Stand for a part that is not to be drawn."""
    raise NotKept


def main(
    record: Record,
    rows: Annotated[list[str], typer.Option(help=f"Of {', '.join(ROWS)}.")] = list(ROWS),  # noqa: B006
    samplers: Annotated[list[str], typer.Option(help=f"Of {', '.join(SAMPLERS)}.")] = list(SAMPLERS),  # noqa: B006
    cases: Annotated[int, typer.Option(min=1, help="Cases of each row, with captions of their own.")] = 8,
    chains: Annotated[int, typer.Option(min=1, help="Pictures of each case.")] = 8,
    scale: Annotated[float, typer.Option(min=1, help="Scale of the guidance of each caption.")] = SCALE,
    rungs: Annotated[int, typer.Option(min=2, max=100, help="Levels on the way.")] = 100,
    model: Annotated[str, typer.Option(help="Or a weight file.")] = "captions",
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Draw nothing, judge what is kept.")] = False,
) -> None:
    """Draw pictures case by case, judge them, and write the results, beside those of other samplers and rows in the
    same setting; and if there are none, a picture of the first case of each row."""
    check_choice("--rows", rows, ROWS)
    check_choice("--samplers", samplers, SAMPLERS)
    torch.set_num_threads(1)
    base, judges = load(model), (load_detector(), load_looks())
    numbers: dict[str, Any] = {"scale": scale, "rungs": rungs, "chains": chains}
    settings = {**numbers, "model": [base.info.get(key) for key in ("steps", "loss")]}
    found: dict[str, dict[str, dict[int, Any]]] = {row: {sampler: {} for sampler in samplers} for row in rows}
    woven: list[Any] = []
    with suppress(NotKept):
        make: Any = partial(weave, base, **{**numbers, "chains": 2})
        woven = record.kept("captions/tapestry", settings, not_kept if judge_only else make)
    for case, row, sampler in product(range(cases), rows, samplers):
        make = partial(draw, row, case, sampler, model=base, **numbers)
        words = {**settings, "asked": str(asked(row, case))}
        with suppress(NotKept):
            name = f"captions/{row} {sampler} {case}"
            found[row][sampler][case] = record.kept(name, words, not_kept if judge_only else make)
    drawn = {row: {name: parts for name, parts in by.items() if parts} for row, by in found.items()}
    drawn = {row: by for row, by in drawn.items() if by}
    if not drawn:
        raise ValueError(f"nothing is kept in {record.runs / 'captions'}: leave --judge-only out")
    shape = base.event_shape
    seen = {
        row: {
            name: {case: describe(*judges, pictures_of(kept, shape)) for case, kept in parts.items()}
            for name, parts in by.items()
        }
        for row, by in drawn.items()
    }
    content: dict[str, Any] = {"rungs": rungs, "scale": scale, "steps of training": base.info.get("steps")}
    before = record.read("captions")
    earlier: dict[str, Any] = before["rows"] if all(before.get(key) == value for key, value in content.items()) else {}
    content["rows"] = dict(earlier)
    for row, by in drawn.items():
        told = {name: judge(row, parts, seen[row][name]) for name, parts in by.items()}
        say(f"{row}: " + ", ".join(f"{name} {figures['right']['mean']:.2f}" for name, figures in told.items()))
        others = earlier.get(row, {}).get("samplers", {})
        content["rows"][row] = {
            "asked": [str(asked(row, case)) for case in range(cases)],
            "by chance": by_chance(row, seen),
            "samplers": others | told,
        }
        if set(others) - set(told):
            content["rows"][row] |= {key: earlier[row][key] for key in ("asked", "by chance")}
    record.write("captions", content)
    if any(set(row["samplers"]) - set(drawn.get(name, {})) for name, row in content["rows"].items()):
        return  # the pictures are of all samplers, and some were drawn before
    first = {
        row: {name: pictures_of(parts[0], shape)[:2] for name, parts in by.items() if 0 in parts}
        for row, by in drawn.items()
    }
    if woven:
        record.draw("captions_tapestry", picture({"HMC": [np.array(x) for x in woven]}))
    record.draw("captions", album(first, {row: str(asked(row, 0)) for row in drawn}))
