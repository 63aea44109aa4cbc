"""Tables of the gallery on time and memory.

Each function takes the content of the file of results that has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def overhead(content: Mapping[str, Any]) -> str:
    """Return the tables of wall-time ratios, and a sentence on memory."""
    rows = [
        (
            "annealed HMC on `digits`, 64 chains, to the bare loop of the same torch gradient calls",
            "digits",
            "walk / bare",
        ),
        ("the paper's evaluation pattern, per step of all chains, to it", "digits", "paper's pattern"),
        ("plain Pyro HMC, per chain and step, to it", "digits", "plain Pyro"),
        (
            "the exact product, 6 million gradients, to a plain loop over jitted BlackJAX rungs",
            "oracle",
            "walk / plain loop",
        ),
        ("to the same loop in float32", "oracle", "walk / plain loop, float32"),
        ("annealed HMC on five positions of `cubes` at once, 16 chains, to the bare gradient calls", "cubes", "walk /"),
        ("the paper's evaluation pattern, per step of all chains, to it", "cubes", "paper's pattern"),
        ("256 chains of it evaluated all at once, to the fastest chunks", "cubes", "all at once"),
    ]
    lines = ["| time, as a ratio in one run (`python -m benchmarks overhead`) | |", "|---|---|"]
    for words, part, start in rows:
        value = next(v for k, v in content[part].items() if k.startswith(start))
        lines.append(f"| {words} | {value:.2f} |")
    by_batch, memory = content["cubes"]["milliseconds per chain"], content["memory"]
    lines += ["", "| chains | " + " | ".join(by_batch) + " |", "|---" * (len(by_batch) + 1) + "|"]
    lines.append(
        "| a gradient of five positions, ms a chain | " + " | ".join(f"{v:.0f}" for v in by_batch.values()) + " |"
    )
    held, heap = memory["given back"], memory["default"]
    lines += [
        "",
        f"Memory of 256 chains of 3x64x64 along a hundred rungs stays at {held['after all rungs']:.0f} MiB (after a "
        f"tenth of them {held['after a tenth of the rungs']:.0f}) if the C library returns freed blocks at once "
        f"(`MALLOC_MMAP_THRESHOLD_=1048576`). By default it keeps them: "
        f"{heap['after a tenth of the rungs']:.0f} MiB and then {heap['after all rungs']:.0f}. Of this "
        f"{held['recorded on the way']:.0f} MiB are recorded statistics; no pictures are kept.",
    ]
    return "\n".join(lines)


def gpu(content: Mapping[str, Any]) -> str:
    """Times on a GPU, and what rounding does there; parts that have not been measured are left out."""
    timed, launched = content["cubes"], content["launches"]
    walk = f"annealed HMC, five conditions, {timed['chains']} chains of 3x64x64"
    ratios = {
        f"{walk}, to the bare loop of the same gradient calls": timed["walk / bare gradient calls"],
        "the paper's evaluation pattern, per step of all chains, to it": timed["paper's pattern / walk, per step"],
        "256 chains evaluated all at once, to the fastest chunks": timed.get("all at once / fastest chunk"),
    }
    if "pictures a step" in launched:
        words = (
            f"a training step of {launched['pictures a step']} pictures, kernels launched one by one, to recorded ones"
        )
        ratios[words] = launched["a training step, one by one"] / launched["a training step, recorded"]
    lines = [f"| one {content['device']} (`python -m benchmarks gpu`) | |", "|---|---|"]
    lines += [f"| {words} | {ratio:.2f} |" for words, ratio in ratios.items() if ratio is not None]
    batches = {"recorded, where it is worth while": timed, "kernels launched one by one": launched}
    rows = {
        words: part["milliseconds per chain"] for words, part in batches.items() if "milliseconds per chain" in part
    }
    counts = next(iter(rows.values()))
    lines += ["", "| a gradient of five positions, ms a chain | " + " | ".join(counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    lines += [f"| {words} | " + " | ".join(f"{v:.2f}" for v in row.values()) + " |" for words, row in rows.items()]
    lines += [
        "",
        f"| the network in | a gradient of {timed['chains']} pictures, ms | acceptance changes by, mean | largest |",
        "|---" * 4 + "|",
    ]
    for name, row in content["precision"].items():
        changes = [f"{row[key]:.2g}" for key in ("mean change", "largest change")]
        lines.append(f"| {name} | {1e3 * row['seconds']:.1f} | {' | '.join(changes)} |")
    return "\n".join(lines)


def evaluations(content: Mapping[str, Any]) -> str:
    """Return the table of evaluations to the exact answer: a row for each sampler, a column for each target."""
    targets = content["targets"]
    samplers = list(next(iter(targets.values()))["rows"])
    lines = [f"| evaluations of a chain | {' | '.join(targets)} |", "|---" * (len(targets) + 1) + "|"]
    for sampler in samplers:
        cells = []
        for target in targets.values():
            row = target["rows"][sampler]
            calls, error = list(row["errors"].items())[-1]
            least = row["reached"]
            cells.append(f"{least:.0f}" if least else f"not with {float(calls):.0f} (error {error:.3f})")
        lines.append(f"| {sampler} | {' | '.join(cells)} |")
    return "\n".join(lines)


def islands(content: Mapping[str, Any]) -> str:
    """Return the rate at which several workers walk islands, as a sentence."""
    seconds, workers, number = content["seconds"], content["workers"], content["islands"]
    return (
        f"{workers} workers walked {workers * number} islands of {content['chains']} chains on `digits` in "
        f"{seconds['all']:.0f} s, one worker walked {number} in {seconds['one']:.0f} s: {content['rate']:.2f} of "
        f"{workers} times its rate. The trace {'is' if content['same'] else 'is not'} that of one process."
    )
