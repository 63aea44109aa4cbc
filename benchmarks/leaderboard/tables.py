"""Tables of the gallery on kernels.

The function takes the content of the file of results that has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import cell

COLUMNS = ("ESS", "tail ESS", "low bias", "low bias, cold", "bias, cold", "modes, cold", "acceptance", "adaptation")


def leaderboard(content: Mapping[str, Any]) -> str:
    """Return the leaderboard, the best kernels of every target, and whether the ranking depends on the seed."""
    there, compared, minutes = content["cells"], content["compared"], content["minutes"]
    lines = [
        f"{content['gradients']} gradients per chain, {content['seeds']} seeds, {content['levels']} noise levels, warm "
        f"and cold start; {there['there']} of {there['all']} cells, made in {minutes:.0f} minutes. ± is one "
        f"standard error over chains and seeds. The first table is over the {compared['there']} of {compared['all']} "
        "levels of targets that all kernels have, the second over all levels, of the kernels that have them.",
        "",
        "| kernel | " + " | ".join(COLUMNS) + " | own count | what it is |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, row in content["rows"].items():
        shown = [_cell(row[column]) for column in (*COLUMNS, "own count")]
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {row['words']} |")
    lines += ["", "| target | levels | most ESS | ESS | second | ESS | least bias, cold | bias | modes | kernels |"]
    lines.append("|---" * 10 + "|")
    for name, row in content["targets"].items():
        levels = ", ".join(map(str, row["levels"]))
        figures = [_cell(row[key]) for key in ("ESS", "second ESS", "bias", "modes")]
        lines.append(
            f"| {name} | {levels} | {row['best']} | {figures[0]} | {row['second']} | {figures[1]} | "
            f"{row['least bias']} | {figures[2]} | {figures[3]} | {row['kernels']} |"
        )
    found = content["stability"]
    return "\n".join(
        [
            *lines,
            "",
            f"Of {found['pairs']} pairs of kernels, the order by ESS is not the same with every seed for "
            f"{found['swapped']}; for {found['beyond']} of them two seeds disagree by more than two standard errors "
            f"each. The furthest that a seed puts a pair in the order opposite to that of all seeds is "
            f"{found['furthest']:.1f} standard errors.",
        ]
    )


def _cell(figure: Mapping[str, float | None]) -> str:
    """A figure as text; empty for what is not there."""
    if figure["mean"] is None:
        return ""
    return cell({key: value for key, value in figure.items() if value is not None})
