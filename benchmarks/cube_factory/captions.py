"""Captions of rendered scenes, by a grammar with paraphrases.

    captions_of(color=2, metal=1, position=(0.2, 0.3), rng)   # "the left holds a shiny blue block", ...

A caption describes one cube of the scene: its colour, its material and its place, of which it may leave some out. Some
wordings and some combinations of colour, material and place are held out of training. A place is a region of the
picture, whose range of cubes is divided in three each way: left, right, back (at the top) and front are its outer
thirds, the middle is the cell in the centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from zlib import crc32

import numpy as np

from benchmarks.cube_factory.scenes import COLORS, MARGIN

COLOR_WORDS = {color: (color,) for color in COLORS} | {
    "gray": ("gray", "grey"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
MATERIAL_WORDS = {
    "rubber": ("{color} rubber {noun}", "matt {color} {noun}", "{color} {noun} made of rubber"),
    "metal": (
        "{color} metal {noun}",
        "shiny {color} {noun}",
        "metallic {color} {noun}",
        "{color} {noun} made of metal",
    ),
}
"""In the order of the flag ``metal`` of scenes."""
NOUNS = ("cube", "block")
LOW, HIGH = MARGIN + (1 - 2 * MARGIN) / 3, 1 - MARGIN - (1 - 2 * MARGIN) / 3
ALL, LESS, BETWEEN, MORE = (0.0, 1.0), (0.0, LOW), (LOW, HIGH), (HIGH, 1.0)
REGIONS = {
    "left": (LESS, ALL),
    "right": (MORE, ALL),
    "back": (ALL, LESS),
    "front": (ALL, MORE),
    "middle": (BETWEEN, BETWEEN),
    "back left": (LESS, LESS),
    "back right": (MORE, LESS),
    "front left": (LESS, MORE),
    "front right": (MORE, MORE),
}
"""Range of x, to the right, and of y, down, of each place."""
PLACE_WORDS = {
    "left": ("on the left", "the left"),
    "right": ("on the right", "the right"),
    "back": ("at the back", "the back", "at the top", "the top"),
    "front": ("at the front", "the front", "at the bottom", "the bottom"),
    "middle": ("in the middle", "the middle"),
    "back left": ("at the back left", "the back left", "in the top left corner", "the top left corner"),
    "back right": ("at the back right", "the back right", "in the top right corner", "the top right corner"),
    "front left": ("at the front left", "the front left", "in the bottom left corner", "the bottom left corner"),
    "front right": ("at the front right", "the front right", "in the bottom right corner", "the bottom right corner"),
}
"""Words for each place, in pairs: where something is, and the place as a noun."""
WORDINGS = (
    "a {what} {where}",
    "{where} is a {what}",
    "there is a {what} {where}",
    "{place} holds a {what}",
    "{where}, a {what}",
)
HELD_WORDINGS = ("a {what} is {where}", "the {what} {where}", "there, {where}, is a {what}")
"""Wordings that no caption of the training data has, in words that others have."""
PLACELESS = ("a {what}", "there is a {what}")
HELD = (("blue", "metal", "left"), ("yellow", "rubber", "right"))
"""Combinations that no caption of the training data names together, nor a corner at that side."""
NAMED = {"color": 0.85, "material": 0.6, "place": 0.85}
"""How often a caption names each."""
POOL, EACH = 16, 4
"""Number of wordings of one meaning in the training data, and of captions of one cube."""


@dataclass(frozen=True)
class Meaning:
    """What a caption says of one cube; "" where it says nothing."""

    color: str = ""
    material: str = ""
    place: str = ""

    def holds(self, color: str, material: str, position: Iterable[float], *, slack: float = 0.0) -> bool:
        """Whether it is true of a cube at ``position (2,)``, which may be off by ``slack`` of the picture's side."""
        named = self.color in ("", color) and self.material in ("", material)
        ranges = REGIONS[self.place] if self.place else (ALL, ALL)
        return named and all(low - slack <= v <= high + slack for v, (low, high) in zip(position, ranges, strict=True))

    @property
    def held(self) -> bool:
        """Whether captions of the training data do not say it."""
        return any(
            self.color == color and self.material == material and side in self.place.split()
            for color, material, side in HELD
        )


def places_of(position: Iterable[float]) -> list[str]:
    """Return all places that contain a position ``(2,)``; the four thirds of the sides have no corner."""
    return [place for place in REGIONS if Meaning(place=place).holds("", "", position)]


def phrases(meaning: Meaning, wordings: Sequence[str] = WORDINGS) -> list[str]:
    """Return all captions of one meaning, in an order that is always the same."""
    colors = COLOR_WORDS[meaning.color] if meaning.color else ("",)
    looks = MATERIAL_WORDS.get(meaning.material, ("{color} {noun}",))
    whats = [
        " ".join(look.format(color=color, noun=noun).split()) for look, color, noun in product(looks, colors, NOUNS)
    ]
    words = PLACE_WORDS.get(meaning.place, ("", ""))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    chosen = wordings if meaning.place else PLACELESS
    return [
        wording.format(what=what, where=where, place=place)
        for wording, what, (where, place) in product(chosen, whats, pairs)
    ]


@cache
def pool(meaning: Meaning) -> tuple[str, ...]:
    """Return the captions by which the training data say a meaning: some of all phrases, others for each meaning."""
    found = phrases(meaning)
    order = np.random.default_rng(crc32(repr(meaning).encode())).permutation(len(found))[:POOL]
    return tuple(found[i] for i in order)


def caption_of(color: str, material: str, position: Iterable[float], rng: np.random.Generator) -> str:
    """Draw a caption of one cube, of what the training data may say."""
    while True:
        places = places_of(position)
        said = {"color": color, "material": material, "place": places[rng.integers(len(places))] if places else ""}
        meaning = Meaning(**{key: value for key, value in said.items() if rng.random() < NAMED[key]})
        if meaning != Meaning() and not meaning.held:
            wordings = pool(meaning)
            return wordings[rng.integers(len(wordings))]


def captions_of(
    colors: np.ndarray, metals: np.ndarray, positions: np.ndarray, *, each: int = EACH, seed: int = 0
) -> np.ndarray:
    """Return captions ``(n, most)`` of scenes, ``each`` for every cube, then "" where there are fewer cubes.

    Args:
        colors: index of each cube's colour, ``(n, most cubes)``; negative where there is no cube.
        metals: 1 for metal, 0 for rubber, of that shape.
        positions: centres, ``(n, most cubes, 2)``.
        each: captions of a cube.
        seed: seed of their choice.
    """
    rng, names, materials = np.random.default_rng(seed), list(COLORS), list(MATERIAL_WORDS)
    rows = []
    for scene in zip(colors, metals, positions, strict=True):
        cubes = [cube for cube in zip(*scene, strict=True) if cube[0] >= 0]
        rows.append([caption_of(names[c], materials[m], place, rng) for c, m, place in cubes for _ in range(each)])
    most = each * colors.shape[1]
    return np.array([row + [""] * (most - len(row)) for row in rows])
