"""Print the oldest releases that pyproject.toml admits, as constraints for pip."""

import re
import tomllib
from pathlib import Path

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in project["dependencies"] + extras["test"] + extras["demo"]:
    name, _, oldest, marker = re.fullmatch(r"([\w-]+)(\[\w+\])?>=([\w.]+)[^;]*(;.*)?", requirement).groups()
    if name != "torch":
        print(f"{name}=={oldest}{marker or ''}")
print(*re.findall(r"(?m)^torch==.*", (root / "constraints.txt").read_text()))
