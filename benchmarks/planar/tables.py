"""Tables of the gallery on compositions in the plane.

Each function takes the content of the file of results that has its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.harness import cell


def oracle(content: Mapping[str, Any]) -> str:
    """Return the table of all samplers on the three problems with exact densities."""
    columns = (("product", "out"), ("product", "LL"), ("mixture", "LL"), ("mixture", "balance"), ("quotient", "out"))
    return _sampler_table(content, (*columns, ("quotient", "LL"), ("quotient", "balance")))


def composition(content: Mapping[str, Any]) -> str:
    """Return the table of distances to the truth and to the models' own density."""
    columns = [(key, name) for key in ("product", "mixture", "quotient") for name in ("out", "MMD", "MMD own")]
    return _sampler_table(content, (*columns, ("mixture", "balance")))


def _sampler_table(content: Mapping[str, Any], columns: Iterable[tuple[str, str]]) -> str:
    columns, problems = list(columns), content["problems"]
    head = [f"{key}: {name}" for key, name in columns]
    lines = ["| sampler | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for sampler in problems["product"]["rows"]:
        rows = [problems[key]["rows"][sampler].get(name) for key, name in columns]
        lines.append(f"| {sampler} | " + " | ".join("" if row is None else cell(row) for row in rows) + " |")
    return "\n".join(lines)


def work(content: Mapping[str, Any]) -> str:
    """Return the tables of chains outside of the product by what they are accepted by, and of orders of the error."""
    columns = ("out", "MMD")
    lines = ["| HMC on ring * bar, accepted by | outside | MMD | acceptance | calls |", "|---" * 5 + "|"]
    for name, row in content["rows"].items():
        further = [f"{row['acceptance']['mean']:.3f}", f"{row['calls']['mean']:.0f}"]
        lines.append(f"| {name} | " + " | ".join([cell(row[column]) for column in columns] + further) + " |")
    lines += ["", "| order of the error in the step | one leapfrog | a trajectory of fixed length |", "|---|---|---|"]
    for rule, orders in content["orders"].items():
        lines.append(f"| {rule} | " + " | ".join(f"{orders[key]:.2f}" for key in ("one leapfrog", "trajectory")) + " |")
    return "\n".join([*lines, "", "![error of the work against the step](../../benchmarks/results/work.png)"])
