"""Conditions of a model: class labels, the position of an object in the picture, captions, or a kind of your own.

A kind of condition is one file here, and one entry of :data:`KINDS`; see :class:`Conditions` for what it owns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ...potentials.common_ground import ConditionWarning
from .base import Conditions, PickTokens, Token, stacked
from .captions import Captions
from .classes import Classes
from .positions import Positions

__all__ = [
    "KINDS",
    "Captions",
    "Classes",
    "ConditionWarning",
    "Conditions",
    "PickTokens",
    "Positions",
    "Token",
    "dump",
    "kind_of",
    "parse",
    "stacked",
]

Kinds = Sequence[type[Conditions]]

KINDS: Kinds = (Classes, Positions, Captions)
"""The kinds of conditions that weight files and configurations may name, unless others are passed as ``kinds``."""


def kind_of(name: str, kinds: Kinds = KINDS) -> type[Conditions]:
    """Return the kind of this name.

    Raises:
        ValueError: there is none among ``kinds``.
    """
    for kind in kinds:
        if kind.kind == name:
            return kind
    raise ValueError(
        f"no kind of condition is called {name!r}: use one of {', '.join(kind.kind for kind in kinds)}, or pass your "
        "own, kinds=(*KINDS, Mine) with KINDS of ppl_diffusion.models.conditions"
    )


def dump(conditions: Conditions) -> str:
    """Serialise conditions as JSON text for the header of a weight file."""
    return json.dumps({conditions.kind: conditions.content()})


def parse(text: str, kinds: Kinds = KINDS) -> Conditions:
    """Return the conditions that :func:`dump` serialised.

    Raises:
        ValueError: JSON text that does not describe conditions of one of ``kinds``.
    """
    match json.loads(text):
        case dict() as stored if len(stored) == 1:
            ((name, content),) = stored.items()
            try:
                return kind_of(name, kinds).restored(content)
            except TypeError as error:
                raise ValueError(f"these are no conditions by {name}: {text}") from error
    raise ValueError(f"unknown conditions {text}")
