"""Tables of the gallery on pictures.

Each function takes the content of the file of results that has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import cell
from benchmarks.pictures.levels import tell


def cubes(content: Mapping[str, Any]) -> str:
    """Return the table of accuracy by sampler and number of cubes."""
    words = {"equal": "equal evaluations", "long": "three times as many", "paper": "the paper's numbers of steps"}
    counts = sorted({n for kinds in content.values() for rows in kinds.values() for row in rows.values() for n in row})
    head = "| target | sampler | evaluations | acceptance | pictures |" + "".join(f" {n} |" for n in counts)
    lines = [head, "|---" * (5 + len(counts)) + "|"]
    for setting, kinds in content.items():
        for kind, rows in kinds.items():
            for sampler, row in rows.items():
                if sampler == "reverse" and setting != "equal":
                    continue
                first = next(iter(row.values()))
                pictures = sorted({cell_["pictures"] for cell_ in row.values()})
                several = f"{pictures[0]} to {pictures[-1]}" if len(pictures) > 1 else str(pictures[0])
                rates = [cell_["acceptance"] for cell_ in row.values() if cell_["acceptance"] is not None]
                rate = f"{sum(rates) / len(rates):.2f}" if rates else ""
                name = sampler if sampler == "reverse" else f"{sampler}, {words[setting]}"
                cells = [cell(row[n]["accuracy"]) if n in row else "" for n in counts]
                cells = [
                    f"{c} ({row[n]['and no others']['mean']:.2f})" if c else ""
                    for c, n in zip(cells, counts, strict=True)
                ]
                lines.append(f"| {kind} | {name} | {first['evaluations']} | {rate} | {several} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cubes64(content: Mapping[str, Any]) -> str:
    """Return the table of :func:`cubes` for 64x64 pictures."""
    return cubes(content)


def undertrained(content: Mapping[str, Any]) -> str:
    """Return the table of :func:`cubes` for a network that was trained for a quarter of the steps."""
    return cubes({"equal": content["equal"]})


def captions(content: Mapping[str, Any]) -> str:
    """Return the table of the share of pictures that are as captions asked for, by row and sampler."""
    rows = content["rows"]
    there = {name for row in rows.values() for name in row["samplers"]}
    samplers = [name for name in ("reverse", "HMC", "weighted HMC", "MALA", "UHMC", "ULA") if name in there]
    lines = ["| asked for | by chance | " + " | ".join(samplers) + " | pictures |", "|---" * (len(samplers) + 3) + "|"]
    for name, row in rows.items():
        found = [row["samplers"].get(sampler) for sampler in samplers]
        cells = [f"{cell(f['right'])} ({f['but for material']:.2f})" if f else "" for f in found]
        pictures = ", ".join(str(f["pictures"]) for f in found if f)
        lines.append(f"| {name} | {row['by chance']:.2f} | {' | '.join(cells)} | {pictures} |")
    figures = {s: [row["samplers"][s] for row in rows.values() if s in row["samplers"]] for s in samplers}
    lines.append(f"| *evaluations* | | {' | '.join(str(figures[s][0]['evaluations']) for s in samplers)} | |")
    rates = [[f["acceptance"] for f in figures[s] if f["acceptance"] is not None] for s in samplers]
    accepted = [f"{sum(rate) / len(rate):.2f}" if rate else "" for rate in rates]
    lines.append(f"| *acceptance* | | {' | '.join(accepted)} | |")
    lines += ["", "| asked for | for example |", "|---|---|"]
    lines += [f"| {name} | {row['asked'][0]} |" for name, row in rows.items()]
    return "\n".join(lines)


def widths(content: Mapping[str, Any]) -> str:
    """Return the tables of reverse steps: log-normalisers of closed forms, and spreads of log-weights on digits."""
    head = "| target | reverse step | walks | log-normaliser | deviation | stated error | covered | least ESS |"
    lines = [head, "|---" * 8 + "|"]
    for part, figures in content.items():
        if part == "digits":
            continue
        for name, row in figures["rows"].items():
            schedule, kind = name.split(", ")
            cells = [f"{row['mean']:.3f} ± {row['mean error']:.3f}", f"{row['deviation']:.3f}", f"{row['stated']:.3f}"]
            cells += [f"{row['covered']:.1%}", f"{row['least ess']:.0%}"]
            lines.append(f"| {part}, {schedule} | {kind} | {row['walks']} | {' | '.join(cells)} |")
    rows = content["digits"]["rows"]
    lines += ["", f"| digits, level | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for key in ("largest", "widening", "narrow", "wide", "by pixel"):
        lines.append(f"| {key} | {' | '.join(f'{row[key]:.3g}' for row in rows.values())} |")
    return "\n".join(lines)


def looks(content: Mapping[str, Any]) -> str:
    """Return the table of how well colours and materials of found cubes are told."""
    keys = ("found", "colour", "material", "both")
    lines = [f"| {content['scenes']} test scenes | cubes | " + " | ".join(keys) + " |", "|---" * 6 + "|"]
    for name in ("clean", *(name for name in content if name.startswith("noise"))):
        row = content[name]
        lines.append(f"| {name} | {row['cubes']} | " + " | ".join(f"{row[key]:.1%}" for key in keys) + " |")
    return "\n".join(lines)


def mixing(content: Mapping[str, Any]) -> str:
    """Return the table of R-hat and effective sample size by kernel and level."""
    levels = list(next(iter(content["rows"].values())))
    lines = ["| R-hat (ESS for 1,000 gradients) | " + " | ".join(f"level {n}" for n in levels) + " |"]
    lines.append("|---" * (len(levels) + 1) + "|")
    for name, row in content["rows"].items():
        cells = [f"{row[n]['R-hat']:.2f} ({row[n]['ESS for 1000 gradients']:.2g})" for n in levels]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def levels(content: Mapping[str, Any]) -> str:
    """Return the tables of the spread of log-weights by level, of shipped and further trained models."""
    return "\n\n".join(tell(name, part["rows"]) for name, part in content.items())


def forms(content: Mapping[str, Any]) -> str:
    """Return the table of loss and quality of pictures by form of the energy."""
    lines = [
        "| form | steps | held-out loss | cubes a picture | one to five | distance | spread at level 20 |",
        "|---" * 7 + "|",
    ]
    for name, row in content["rows"].items():
        kind = "imitation" if "distilled" in name else "energy"
        values = [f"{row['denoising loss']:.4f}", f"{row['cubes found']:.2f}", f"{row['one to five']:.0%}"]
        values.append(f"{row['sliced distance']:.3f}")
        lines.append(
            f"| {name} | {content['steps'][kind]} | {' | '.join(values)} | {row['in place']['20']['spread']:.2g} |"
        )
    real = content["real pictures"]
    values = [f"{real['cubes found']:.2f}", f"{real['one to five']:.0%}", f"{real['sliced distance']:.3f}"]
    lines.append(f"| real pictures | | | {' | '.join(values)} | |")
    return "\n".join(lines)


def judge(content: Mapping[str, Any]) -> str:
    """Return the table of held-out digits that the judge and the steering classifier know, by noise level."""
    shares = content["shares"]
    names = ["clean" if level == "clean" else f"level {level}" for level in shares]
    lines = [f"| {content['digits']:,} held-out digits | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key, words in (("judge", "the judge"), ("classifier", "the steering classifier")):
        cells = [f"{row[key]:.2%}" if key in row else "" for row in shares.values()]
        lines.append(f"| {words} knows | {' | '.join(cells)} |")
    return "\n".join(lines)


def classifier(content: Mapping[str, Any]) -> str:
    """Return the table of pictures that were steered by a classifier, by scale and sampler."""
    merits, chains = ("accuracy", "Frechet distance", "precision", "recall"), content["chains"]
    labels = content["rows"]["real pictures"]["labels"]
    head = ["sampler", "evaluations", "acceptance", "accuracy", "above reverse", *merits[1:], f"ancestors of {chains}"]
    lines = [f"| {labels} labels, {chains} pictures each | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    kinds = list(dict.fromkeys(name.partition(", ")[0] for name in content["rows"]))
    for name, row in sorted(content["rows"].items(), key=lambda item: kinds.index(item[0].partition(", ")[0])):
        kind, _, sampler = name.partition(", ")
        rate = f"{row['acceptance']['mean']:.2f}" if "acceptance" in row else ""
        ancestors = f"{row['ancestors']:.1f}" if row.get("ancestors", chains) < chains else ""
        above = cell(row["above reverse"]) if "above reverse" in row else ""
        accuracy, *others = (cell(row[merit]) for merit in merits)
        cells = [sampler, str(row.get("evaluations", "")), rate, accuracy, above, *others, ancestors]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def steered_photographs(content: Mapping[str, Any]) -> str:
    """Return the table of :func:`classifier` for photographs."""
    return classifier(content)


def distillation(content: Mapping[str, Any]) -> str:
    """Return the table of a denoiser, of the energy that learned from it, and of energies from scratch."""
    head = "| model | steps | held-out loss | accuracy | spread at level 50 | 20 | 5 | 1 |"
    steps = {"the denoiser": "denoiser", "distilled": "lesson"}
    lines = [head, "|---" * 8 + "|"]
    for name, row in content["rows"].items():
        count = content["steps"][steps.get(name, "energy")]
        levels = ("50", "20", "5", "1")
        spreads = [f"{row['in place'][n]['spread']:.3g}" if "in place" in row else "" for n in levels]
        loss = f"{row['denoising loss']:.4f}" if "denoising loss" in row else ""
        lines.append(f"| {name} | {count} | {loss} | {cell(row['accuracy'])} | {' | '.join(spreads)} |")
    turning = content["rows"]["distilled"]["circulation"]
    lines += ["", "| level | " + " | ".join(turning) + " |", "|---" * (len(turning) + 1) + "|"]
    lines.append(
        "| share of the denoiser's work that is no gradient's | " + " | ".join(map(_percent, turning.values()))
    )
    lines[-1] += " |"
    return "\n".join([*lines, "", "![digits by each of the models](../../benchmarks/results/distillation.png)"])


def theirs(content: Mapping[str, Any]) -> str:
    """Return the table of compositions of a pipeline of diffusers, and the ratio of times."""
    lines = ["| drawn | accuracy by the judge | acceptance |", "|---|---|---|"]
    for name, row in content["rows"].items():
        rate = "" if row["acceptance"] is None else f"{row['acceptance']:.2f}"
        lines.append(f"| {name} | {cell(row['accuracy'])} | {rate} |")
    speed, seen = content["speed"], content["rows"]["left half seen"]
    return "\n".join(
        [
            *lines,
            "",
            f"The network has {content['parameters']:,} parameters and was trained for {content['steps']:,} steps. "
            "What was drawn misses the half that was seen by a root mean square of "
            f"{seen['distance to what was seen']:.2f}; the noise is .1. Round loops of a leapfrog's length the work is "
            f"{seen['circulation']['nats']:.2g} nats, {seen['circulation']['share']:.1%} of that along their sides. "
            f"Annealed HMC took {speed['walk / bare']:.2f} times as long as a bare loop of its {speed['calls']} calls.",
            "",
            "![digits by diffusers, composed](../../benchmarks/results/theirs.png)",
        ]
    )


def _percent(value: float) -> str:
    return f"{value:.1%}"
