"""The table of the gallery on verdicts. The function takes the content of the file of results that has its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdicts(content: Mapping[str, Any]) -> str:
    """Return the confusion table, by kind of run, and the rates of both verdicts."""
    lines = [
        "| runs | number | right | believe | run longer | do not believe | R-hat and ESS alone believe |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = content["runs"]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        lines.append(_row(kind, [run for run in runs if run["kind"] == kind]))
    lines += [
        _row(f"**all that are {'right' if sound else 'wrong'}**", [r for r in runs if r["right"] == sound])
        for sound in (True, False)
    ]
    lines += [
        "",
        "| | wrong runs that are believed | right runs that are not |",
        "|---|---|---|",
    ]
    for key, words in (("verdict", "verdict of `diagnose`"), ("usual", "R-hat at most 1.05 and ESS at least 400")):
        rate = content[key]
        beliefs, alarms = (
            f"{share:.1%} ({round(share * rate[of])} of {rate[of]})"
            for share, of in ((rate["false beliefs"], "wrong"), (rate["false alarms"], "right"))
        )
        lines.append(f"| {words} | {beliefs} | {alarms} |")
    return "\n".join(lines)


def _row(name: str, runs: list[Mapping[str, Any]]) -> str:
    answers = [run["verdict"] for run in runs]
    counts = [answers.count(answer) for answer in ("believe", "run longer", "do not believe")]
    usual = sum(run["usual"] == "believe" for run in runs)
    return f"| {name} | {len(runs)} | {sum(run['right'] for run in runs)} | {' | '.join(map(str, counts))} | {usual} |"
