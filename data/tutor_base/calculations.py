"""Documents that calculate, and never ask."""

import random
from collections.abc import Callable, Sequence

from data.tutor import scenes, sums
from data.tutor.scenes import Scene
from data.tutor.sums import NOTES, Sum

_LARGEST = 99


def arithmetic_document(rng: random.Random) -> str:
    """Return several calculations: stories, lines, a workbook, or one family of sums."""
    form = rng.random()
    if form < 0.4:
        return "\n".join(_story(_sum(rng)) for _ in range(rng.randint(2, 5)))
    if form < 0.6:
        return "\n\n".join(_worked(_sum(rng)) for _ in range(rng.randint(2, 5)))
    if form < 0.9:
        return "\n".join(_bare(rng) for _ in range(rng.randint(8, 16)))
    return "\n".join(_family(rng) for _ in range(rng.randint(2, 5)))


def _sum(rng: random.Random) -> Sum:
    kind = rng.random()
    if kind < 0.70:
        return sums.added(_pair(rng), rng)
    if kind < 0.94:
        return sums.multiplied((rng.randint(2, 12), rng.randint(2, 12)), rng)
    return sums.added_three([rng.randint(2, 30) for _ in range(3)], rng)


def _pair(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.15:
        note = rng.choice(NOTES)
        part = rng.randint(2, note - 2)
        return part, note - part
    return rng.randint(2, _LARGEST), rng.randint(2, _LARGEST)


def _story(told: Sum) -> str:
    gap = "\n" if "\n" in told.context else " "
    return f"{told.context}{gap}{told.tell}".strip()


def _worked(told: Sum) -> str:
    """Return a workbook entry with the result on a line of its own."""
    if not told.context:
        return told.tell
    return f"{told.context}\n{told.label}:\n{told.answer}"


def _bare(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        x, y = _pair(rng)
        return _line(scenes.ADD_BARE, {"x": x, "y": y, "z": x + y}, rng)
    if kind < 0.75:
        x, y = _pair(rng)
        return _line(scenes.TAKE_BARE, {"x": x + y, "y": y, "z": x}, rng)
    x, y = rng.randint(2, 12), rng.randint(2, 12)
    if kind < 0.9:
        return _line(scenes.TIMES_BARE, {"x": x, "y": y, "z": x * y}, rng)
    return _line(scenes.SHARE_BARE, {"x": x * y, "y": y, "z": x}, rng)


def _line(choices: Sequence[Scene], numbers: dict[str, int], rng: random.Random) -> str:
    scene = rng.choice(choices)
    told = rng.choice(scene.tells).format(**numbers)
    if rng.random() < 0.15:
        # The calculation above, the result below, as on a slate.
        return f"{_left_side(scene, numbers)}\n{scene.answer.format(**numbers)}"
    return told


def _left_side(scene: Scene, numbers: dict[str, int]) -> str:
    return scene.tells[0].format(**numbers).split(" = ")[0]


def _family(rng: random.Random) -> str:
    return rng.choice(_FAMILIES)(rng)


def _sum_family(rng: random.Random) -> str:
    x, y = _pair(rng)
    z = x + y
    return f"{x} + {y} = {z}, {y} + {x} = {z}, {z} - {x} = {y}, {z} - {y} = {x}"


def _product_family(rng: random.Random) -> str:
    x, y = rng.randint(2, 12), rng.randint(2, 12)
    z = x * y
    return f"{x} × {y} = {z}, {y} × {x} = {z}, {z} ÷ {x} = {y}, {z} ÷ {y} = {x}"


_FAMILIES: tuple[Callable[[random.Random], str], ...] = (_sum_family, _sum_family, _product_family)
