"""Write the figures of ``benchmarks/results/`` into the gallery of the site, after the ``<!-- name -->`` marks.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import RESULTS, cell
from benchmarks.pictures.levels import tell

PAGES = tuple(sorted((Path(__file__).parent.parent / "docs" / "gallery").glob("*.md")))


def oracle(content: Mapping[str, Any]) -> str:
    """Return the table of all samplers on the three problems with exact densities."""
    columns = (("product", "out"), ("product", "LL"), ("mixture", "LL"), ("mixture", "balance"), ("quotient", "out"))
    return _sampler_table(content, (*columns, ("quotient", "LL"), ("quotient", "balance")))


def composition(content: Mapping[str, Any]) -> str:
    """Return the table of distances to the truth and to the models' own density."""
    columns = [(key, name) for key in ("product", "mixture", "quotient") for name in ("out", "MMD", "MMD own")]
    return _sampler_table(content, (*columns, ("mixture", "balance")))


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


def digits(content: Mapping[str, Any]) -> str:
    """Return a paragraph on the completed digit."""
    return (
        f"The posterior mean misses the hidden half by a root mean square of {content['rmse']:.2f} (pixels run from -1 "
        f"to 1; the posterior standard deviation is {content['std']:.2f}), {content['covered']:.0%} of the hidden "
        "pixels lie in their pointwise 90 % interval (most of them are plain background), and acceptance was at "
        f"least {math.floor(100 * content['least acceptance']) / 100:.2f} on every rung. R-hat of the energy, the mean "
        f"and projections is up to {content['r_hat']:.1f}: at level 0 the energy is so stiff that chains stay where "
        "the ladder put them. "
        "These are 64 draws, not 2,560."
    )


def models(content: Mapping[str, Any]) -> str:
    """Return the tables of closed-form posteriors, of the photographs, and of speed."""
    lines = [
        "| linear-Gaussian posterior, 3 seeds (`python -m benchmarks models`) | largest error "
        "| root mean square error | error of mode masses | moments |",
        "|---|---|---|---|---|",
    ]
    for name, row in content["linear"].items():
        size, kernel = name.split(": ")
        values = [f"{row[k]:.2f}" for k in ("largest error", "root mean square error", "mode mass error")]
        lines.append(f"| {size} dimensions, {kernel} | {' | '.join(values)} | {row['moments']} |")
    shots = content["photographs"]
    summary = shots["summary"]
    bounds = [key for key in summary if key.startswith(("hdi", "eti"))][:2]
    lines += ["", "![five photographs of one digit, and its posterior](../../benchmarks/results/photographs.png)", ""]
    lines += [f"| five photographs of one digit | truth | mean | sd | {' | '.join(bounds)} | R-hat |", "|---" * 7 + "|"]
    for i, name in enumerate(shots["names"]):
        numbers = [shots["truth"][i], summary["mean"][i], summary["sd"][i], *(summary[key][i] for key in bounds)]
        lines.append(f"| {name} | {' | '.join(f'{v:.2f}' for v in numbers)} | {summary['r_hat'][i]:.2f} |")
    speed = content["speed"]
    lines += [
        "",
        "| annealing 64 chains on a joint density, time as a ratio in one run | digits | closed form |",
        "|---|---|---|",
    ]
    for words, key in (
        ("BlackJAX HMC, to the bare gradient calls of that density", "walk / bare gradient calls"),
        ("Pyro HMC per chain and step, to it", "Pyro / walk, per chain and step"),
        ("a bare gradient of one chain alone, to one in the batch", "one chain alone / in a batch, bare"),
    ):
        lines.append(f"| {words} | {speed['digits'][key]:.2f} | {speed['closed form'][key]:.2f} |")
    return "\n".join(lines)


def inverse(content: Mapping[str, Any]) -> str:
    """Return the tables of the inverse problems: our posterior and DPS, and R-hat."""
    lines = [
        "| problem | sampler | digits | PSNR of the mean, dB | covered by the 90 % interval | ink only "
        "| width of the interval | chains with noise off by half |",
        "|---" * 8 + "|",
    ]
    names = {
        "ours": ("posterior", "digits"),
        "ours, same digits": ("posterior", "DPS digits"),
        "DPS": ("DPS", "DPS digits"),
    }
    for problem, found in content["problems"].items():
        for key, (name, count) in names.items():
            row = found[key]
            cells = [cell(row[column]) for column in ("PSNR", "covered", "covered ink", "width")]
            cells.append(f"{found['chains with noise off by half or more']:.1%}" if key == "ours" else "")
            lines.append(f"| {problem} | {name} | {found[count]} | {' | '.join(cells)} |")
    steps = next(iter(content["R-hat"].values()))
    lines += [
        "",
        f"| R-hat of {steps['draws']} recorded steps, median (largest) of {steps['digits']} digits "
        "| noise | worst of energy, mean and projections | least acceptance of a rung |",
        "|---" * 4 + "|",
    ]
    for problem, mixing in content["R-hat"].items():
        cells = [f"{median(mixing[key]):.2f} ({max(mixing[key]):.2f})" for key in ("noise", "worst")]
        least = min(content["problems"][problem]["acceptance by rung"])
        lines.append(f"| {problem} | {' | '.join(cells)} | {least:.2f} |")
    return "\n".join(lines)


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
    samplers = [name for name in next(iter(rows.values())) if name != "asked"]
    lines = ["| asked for | pictures each | " + " | ".join(samplers) + " |", "|---" * (len(samplers) + 2) + "|"]
    for name, row in rows.items():
        shares = " | ".join(cell(row[sampler]["right"]) for sampler in samplers)
        lines.append(f"| {name} | {row[samplers[0]]['pictures']} | {shares} |")
    evaluations = [f"{next(iter(rows.values()))[sampler]['evaluations']}" for sampler in samplers]
    lines.append(f"| *evaluations* | | {' | '.join(evaluations)} |")
    rates = [[r[s]["acceptance"] for r in rows.values() if r[s]["acceptance"] is not None] for s in samplers]
    accepted = [f"{sum(rate) / len(rate):.2f}" if rate else "" for rate in rates]
    lines.append(f"| *acceptance* | | {' | '.join(accepted)} |")
    lines += ["", "| asked for | for example |", "|---|---|"]
    lines += [f"| {name} | {row['asked'][0]} |" for name, row in rows.items()]
    return "\n".join(lines)


def looks(content: Mapping[str, Any]) -> str:
    """Return the table of how well colours and materials of found cubes are told."""
    keys = ("found", "colour", "material", "both")
    lines = [f"| {content['scenes']} test scenes | cubes | " + " | ".join(keys) + " |", "|---" * 6 + "|"]
    for name in ("clean", *(name for name in content if name.startswith("noise"))):
        row = content[name]
        lines.append(f"| {name} | {row['cubes']} | " + " | ".join(f"{row[key]:.1%}" for key in keys) + " |")
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


def calibration(content: Mapping[str, Any]) -> str:
    """Return the table of p-values of the hypothesis that ranks are uniform."""
    lines = [
        f"| p-value of uniform ranks, {content['simulations']} simulations | x_0 | x_1 | noise |",
        "|---|---|---|---|",
    ]
    for name in ("model", "wrong twin"):
        lines.append(f"| {name} | " + " | ".join(f"{content[name][key]:.2g}" for key in ("x_0", "x_1", "noise")) + " |")
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
    head = ["sampler", "evaluations", "acceptance", *merits, f"distinct ancestors of {chains}"]
    lines = [f"| {labels} labels, {chains} pictures each | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name, row in content["rows"].items():
        kind, _, sampler = name.partition(", ")
        rate = f"{row['acceptance']['mean']:.2f}" if "acceptance" in row else ""
        ancestors = f"{row['ancestors']:.1f}" if row.get("ancestors", chains) < chains else ""
        cells = [sampler, str(row.get("evaluations", "")), rate, *(cell(row[merit]) for merit in merits), ancestors]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def steered_photographs(content: Mapping[str, Any]) -> str:
    """Return the table of :func:`classifier` for photographs."""
    return classifier(content)


def render(text: str) -> str:
    """Return the text of a page with every marked part regenerated from the results."""
    for make in (
        oracle,
        composition,
        overhead,
        digits,
        models,
        inverse,
        calibration,
        cubes,
        cubes64,
        undertrained,
        captions,
        looks,
        gpu,
        mixing,
        levels,
        forms,
        judge,
        classifier,
        steered_photographs,
    ):
        text = _fill(text, make)
    return text


def _fill(text: str, make: Callable[[Mapping[str, Any]], str]) -> str:
    name = make.__name__
    if f"<!-- {name} -->" not in text:
        return text
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    pattern = rf"<!-- {name} -->\n(.*?<!-- end -->\n)?"
    made = f"<!-- {name} -->\n{make(content)}\n<!-- end -->\n"
    return re.sub(pattern, lambda _: made, text, count=1, flags=re.DOTALL)


def _sampler_table(content: Mapping[str, Any], columns: Iterable[tuple[str, str]]) -> str:
    columns, problems = list(columns), content["problems"]
    head = [f"{key}: {name}" for key, name in columns]
    lines = ["| sampler | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for sampler in problems["product"]["rows"]:
        rows = [problems[key]["rows"][sampler].get(name) for key, name in columns]
        lines.append(f"| {sampler} | " + " | ".join("" if row is None else cell(row) for row in rows) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
