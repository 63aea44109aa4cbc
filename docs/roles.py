"""Griffe extension: cross-reference roles in docstrings, such as ``:func:`anneal```, are shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replaces roles, and marks indented blocks as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
