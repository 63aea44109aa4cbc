"""What captions ask for, joined by and, or and not: as a density, and as a judgement of a picture.

asked("two joined", case=0).target(load("captions"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.cube_factory.captions import (
    COLOR_WORDS,
    HELD,
    HELD_WORDINGS,
    MATERIAL_WORDS,
    PLACE_WORDS,
    REGIONS,
    Meaning,
    phrases,
    pool,
)
from benchmarks.cube_factory.looks import Cube, says
from ppl_diffusion import EnergyModel, Potential, conjunction, guidance, mixture

AGAINST = 0.5
"""The power of what a picture should not show, times the scale of guidance."""
NEW_WORDS = {
    "red": "crimson",
    "gray": "ashen",
    "purple": "lilac",
    "cyan": "aqua",
    "metal": "polished",
    "rubber": "dull",
}
"""Words that no caption of the training data has; other colours are "-coloured"."""


ROWS = (
    "one caption",
    "two joined",
    "three joined",
    "either",
    "and not",
    "nested",
    "other wordings",
    "held-out wordings",
    "words never seen",
    "held-out combinations",
)


@dataclass(frozen=True)
class Asked:
    """What a picture should show: a cube for each caption of ``every``, one for any of ``either``, none for ``never``.

    Each is a pair of a meaning and its caption.
    """

    every: tuple[tuple[Meaning, str], ...] = ()
    either: tuple[tuple[Meaning, str], ...] = ()
    never: tuple[tuple[Meaning, str], ...] = ()

    def target(self, base: EnergyModel, *, scale: float = 1.0) -> Potential:
        """Return its density, by the model ``base`` of which it is made, each caption guided by ``scale``."""

        def guided(text: str) -> Potential:
            given = base.given(text)
            return given if scale == 1 else guidance(given, base, scale=scale)

        parts = [guided(text) for _, text in self.every]
        if self.either:
            parts.append(mixture([guided(text) for _, text in self.either]))
        potential = parts[0] if len(parts) == 1 else conjunction(parts, base)
        for _, text in self.never:
            power = AGAINST * scale
            potential = potential * base**power / base.given(text) ** power
        return potential

    def shown(self, cubes: Sequence[Cube]) -> bool:
        """Whether the cubes of a picture are as it says."""
        right = all(says(cubes, meaning) for meaning, _ in self.every)
        right &= not self.either or any(says(cubes, meaning) for meaning, _ in self.either)
        return right and not any(says(cubes, meaning) for meaning, _ in self.never)

    def but_for_material(self) -> Asked:
        """Return the same without the materials of what should be shown."""
        every, either = (
            tuple((replace(meaning, material=""), text) for meaning, text in part) for part in (self.every, self.either)
        )
        return replace(self, every=every, either=either)

    def __str__(self) -> str:
        texts = [text for _, text in self.every]
        texts += [" or ".join(text for _, text in self.either)] if self.either else []
        return "; ".join(texts + [f"not {text}" for _, text in self.never])


def plain(meaning: Meaning) -> tuple[Meaning, str]:
    """Return a meaning with its plainest caption."""
    return meaning, phrases(meaning)[0]


def drawn(rng: np.random.Generator, count: int, *, material: str = "") -> list[Meaning]:
    """Draw meanings of different colours and at different places, in no combination that was held out."""
    colors, places = (rng.permutation(list(names))[:count] for names in (COLOR_WORDS, REGIONS))
    materials = [material or str(rng.choice(list(MATERIAL_WORDS))) for _ in range(count)]
    found = [Meaning(str(c), m, str(p)) for c, m, p in zip(colors, materials, places, strict=True)]
    return found if not any(meaning.held for meaning in found) else drawn(rng, count, material=material)


def reworded(meaning: Meaning) -> tuple[Meaning, str]:
    """Return a meaning with a caption in words that training has not seen."""
    color = NEW_WORDS.get(meaning.color, f"{meaning.color}-coloured")
    return meaning, f"a {NEW_WORDS[meaning.material]} {color} dice {PLACE_WORDS[meaning.place][0]}"


def asked(row: str, case: int) -> Asked:
    """Return what a case of a row asks for; the same at every call."""
    rng = np.random.default_rng([ROWS.index(row), case])
    match row:
        case "one caption":
            return Asked(every=(plain(*drawn(rng, 1)),))
        case "two joined" | "three joined":
            return Asked(every=tuple(map(plain, drawn(rng, 2 if row == "two joined" else 3))))
        case "either":
            return Asked(either=tuple(map(plain, drawn(rng, 2))))
        case "and not":
            return Asked(every=(plain(*drawn(rng, 1, material="rubber")),), never=(plain(Meaning(material="metal")),))
        case "nested":
            first, *others = drawn(rng, 3, material="rubber")
            never = (plain(Meaning(material="metal")),)
            return Asked(every=(plain(first),), either=tuple(map(plain, others)), never=never)
        case "other wordings":
            (meaning,) = drawn(rng, 1)
            others_ = [text for text in pool(meaning) if text != phrases(meaning)[0]]
            return Asked(every=((meaning, str(rng.choice(others_))),))
        case "held-out wordings":
            (meaning,) = drawn(rng, 1)
            return Asked(every=((meaning, str(rng.choice(phrases(meaning, HELD_WORDINGS)))),))
        case "words never seen":
            return Asked(every=(reworded(*drawn(rng, 1)),))
        case "held-out combinations":
            return Asked(every=(plain(Meaning(*HELD[case % len(HELD)])),))
    raise AssertionError(row)
