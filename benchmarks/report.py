"""Write the figures of ``benchmarks/results/`` into the gallery of the site, after the ``<!-- name -->`` marks.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.harness import RESULTS
from benchmarks.leaderboard import tables as kernels
from benchmarks.pictures import tables as pictures
from benchmarks.planar import tables as planar
from benchmarks.posteriors import tables as posteriors
from benchmarks.speed import tables as speed
from benchmarks.verdicts import tables as verdicts

PAGES = tuple(sorted((Path(__file__).parent.parent / "docs" / "gallery").glob("*.md")))


ROOMS = (planar, speed, posteriors, pictures, kernels, verdicts)


def render(text: str) -> str:
    """Return the text of a page with every marked part regenerated from the results."""
    for name in re.findall(r"<!-- (\w+) -->", text):
        if name == "end":
            continue
        (make,) = (getattr(room, name) for room in ROOMS if hasattr(room, name))
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        made = f"<!-- {name} -->\n{make(content)}\n<!-- end -->\n"
        pattern = rf"<!-- {name} -->\n(.*?<!-- end -->\n)?"
        text = re.sub(pattern, lambda _, made=made: made, text, count=1, flags=re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
