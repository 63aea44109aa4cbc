"""Griffe extension for docstrings: roles such as ``:func:`anneal``` and doctests are shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n(?:.+\n?)*)", flags=re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replaces roles by code, and puts fences around doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
