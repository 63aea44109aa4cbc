"""MkDocs hook: pictures of ``benchmarks/results/`` become part of the site.

Pages point at them by their place in the repository, so that they also show where the Markdown is read without MkDocs.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def on_files(files: Files, *, config: Any) -> Files:
    """Add every picture as ``results/NAME.png``."""
    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point at the pictures where :func:`on_files` put them."""
    up = posixpath.relpath(".", posixpath.dirname(page.file.src_uri) or ".")
    written, meant = (posixpath.normpath(f"{up}/{place}") for place in ("../benchmarks/results", "results"))
    return markdown.replace(f"]({written}/", f"]({meant}/")
