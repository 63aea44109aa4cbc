"""Tables of the gallery on posteriors of Pyro models.

Each function takes the content of the file of results that has its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from benchmarks.harness import cell


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


def calibration(content: Mapping[str, Any]) -> str:
    """Return the table of p-values of the hypothesis that ranks are uniform."""
    lines = [
        f"| p-value of uniform ranks, {content['simulations']} simulations | x_0 | x_1 | noise |",
        "|---|---|---|---|",
    ]
    for name in ("model", "wrong twin"):
        lines.append(f"| {name} | " + " | ".join(f"{content[name][key]:.2g}" for key in ("x_0", "x_1", "noise")) + " |")
    return "\n".join(lines)


def likelihood(content: Mapping[str, Any]) -> str:
    """Return the table of bounds of log-normalisers and likelihoods."""
    lines = [
        f"| density at level {content['last']} | log-normaliser, lower | upper | gap, nats | bits per dimension |",
        "|---|---|---|---|---|",
    ]
    for name, row in content["rows"].items():
        lower, upper = (cell({"mean": row[side], "se": row[f"{side} error"]}) for side in ("lower", "upper"))
        bits = f"{row['least bits']:.4f} to {row['most bits']:.4f}"
        lines.append(f"| {name} | {lower} | {upper} | {row['gap']:.2f} | {bits} |")
    return "\n".join(lines)


def levy(content: Mapping[str, Any]) -> str:
    """Return the tables of coverage of regions of 90 %, and of ranks and squared errors."""
    tasks = content["tasks"]
    samplers = list(dict.fromkeys(sampler for rows in tasks.values() for sampler in rows))

    def lines(head: str, show: Callable[[Mapping[str, Any]], str]) -> list[str]:
        cells = [[show(rows[s]) if s in rows else "" for s in samplers] for rows in tasks.values()]
        body = [f"| {task} | {' | '.join(row)} |" for task, row in zip(tasks, cells, strict=True)]
        return [f"| {head} | {' | '.join(samplers)} |", "|---" * (len(samplers) + 1) + "|", *body]

    ranks = "p-value of uniform ranks (squared error of the mean by that of Gibbs)"
    covered = lines("covered by the region of 90 %", lambda row: f"{cell(row['covered'])} of {row['simulations']}")
    return "\n".join([*covered, "", *lines(ranks, lambda row: f"{row['p']:.2g} ({row['error']:.2f})")])


def shares(content: Mapping[str, Any]) -> str:
    """Return a table of the shares of classes by level and by how they were found, and one of how chains mixed."""
    labels = range(len(next(iter(content["levels"].values()))["exchange"]["shares"]))
    lines = [f"| level | shares, in percent | {' | '.join(map(str, labels))} |", "|---" * (len(labels) + 2) + "|"]
    for level, found in content["levels"].items():
        for words in ("exchange", "weighted"):
            row = found[words]
            cells = [f"{100 * p:.1f} ± {100 * e:.1f}" for p, e in zip(row["shares"], row["errors"], strict=True)]
            lines.append(f"| {level} | {words} | {' | '.join(cells)} |")
        between = [found["bounds"].get(str(k)) for k in labels]
        cells = [f"{100 * ends[0]:.3g} to {100 * min(ends[1], 1):.3g}" if ends else "" for ends in between]
        lines.append(f"| {level} | between bounds | {' | '.join(cells)} |")
    lines += ["", "| level | apart | R-hat | least swap rate | round trips | ancestors |", "|---" * 6 + "|"]
    for level, found in content["levels"].items():
        row = found["exchange"]
        lines.append(
            f"| {level} | {found['apart']:.2f} | {row['R-hat']:.3f} | {row['least swap rate']:.2f} "
            f"| {row['round trips']:.1f} | {found['weighted']['ancestors']} of {content['chains']} |"
        )
    return "\n".join(lines)
