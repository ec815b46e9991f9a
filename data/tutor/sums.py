"""Calculations with numbers and cedis, told as filled-in scenes."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from data.tutor import scenes
from data.tutor.relation import capital
from data.tutor.scenes import Scene
from data.tutor.words import BOXES, ITEMS, PEOPLE, THINGS

NOTES = (10, 20, 50, 100)
"""Cedi notes one pays with."""
BARE = 0.35
"""Share of calculations without a story."""


class Sum(NamedTuple):
    """One scene with its blanks filled in."""

    label: str
    context: str
    ask: str
    tell: str
    answer: str


def added(pair: Sequence[int], rng: random.Random) -> Sum:
    """Tell the sum of two numbers, or the difference that leads back to one of them."""
    x, y = rng.sample(pair, 2)
    if rng.random() < 0.5:
        return play(_either(scenes.ADD_BARE, scenes.ADD, rng), {"x": x, "y": y, "z": x + y}, rng)
    stories = scenes.CHANGE if x + y in NOTES else scenes.TAKE
    return play(_either(scenes.TAKE_BARE, stories, rng), {"x": x + y, "y": y, "z": x}, rng)


def added_three(triple: Sequence[int], rng: random.Random) -> Sum:
    """Tell the sum of three numbers."""
    x, y, w = rng.sample(triple, 3)
    return play(rng.choice(scenes.THREE), {"x": x, "y": y, "w": w, "z": x + y + w}, rng)


def multiplied(pair: Sequence[int], rng: random.Random) -> Sum:
    """Tell the product of two numbers, or the division that leads back to one of them."""
    x, y = rng.sample(pair, 2)
    if rng.random() < 0.6:
        return play(_either(scenes.TIMES_BARE, scenes.TIMES, rng), {"x": x, "y": y, "z": x * y}, rng)
    return play(_either(scenes.SHARE_BARE, scenes.SHARE, rng), {"x": x * y, "y": y, "z": x}, rng)


def _either(bare: Sequence[Scene], stories: Sequence[Scene], rng: random.Random) -> Scene:
    return rng.choice(bare if rng.random() < BARE else stories)


def play(scene: Scene, numbers: dict[str, int], rng: random.Random) -> Sum:
    """Fill a scene with numbers, and with people and things by chance."""
    fields = {**_cast(rng), **{name: str(value) for name, value in numbers.items()}}
    return Sum(
        label=scene.label,
        context=scene.context.format(**fields),
        ask=rng.choice(scene.asks).format(**fields),
        tell=rng.choice(scene.tells).format(**fields),
        answer=scene.answer.format(**fields),
    )


def _cast(rng: random.Random) -> dict[str, str]:
    first, second = rng.sample(PEOPLE, 2)
    items = rng.sample(ITEMS, 3)
    return {
        "n": first.name,
        "m": second.name,
        "he": first.he,
        "his": first.his,
        "him": first.him,
        "He": capital(first.he),
        "His": capital(first.his),
        "i": items[0].one,
        "ii": items[0].many,
        "j": items[1].one,
        "k": items[2].one,
        "things": rng.choice(THINGS),
        "boxes": rng.choice(BOXES),
    }
