"""Conversions between two units, in both directions."""

from typing import NamedTuple

from data.tutor.relation import Question


class Conversion(NamedTuple):
    """Two units and how many of the small one make the big one.

    ``big`` and ``small`` write an amount, such as "{} km"; ``big_name`` and ``small_name``
    name the unit. ``scene`` is a sentence about {big}; ``scene_ask`` asks for the small unit.
    """

    name: str
    big: str
    big_name: str
    small: str
    small_name: str
    factor: int
    last: int
    scene: str
    scene_ask: str


CONVERSIONS: tuple[Conversion, ...] = (
    Conversion("m-cm", "{} m", "m", "{} cm", "cm", 100, 40, "A rope is {big} long.", "How long is it in cm?"),
    Conversion(
        "cm-mm", "{} cm", "cm", "{} mm", "mm", 10, 40, "A stick is {big} long.", "How long is it in mm?"
    ),
    Conversion(
        "km-m", "{} km", "km", "{} m", "m", 1000, 30, "The road is {big} long.", "How long is it in m?"
    ),
    Conversion(
        "kg-g", "{} kg", "kg", "{} g", "g", 1000, 30, "A bag weighs {big}.", "What is its weight in g?"
    ),
    Conversion(
        "l-ml", "{} l", "l", "{} ml", "ml", 1000, 30, "A tank holds {big}.", "How much is that in ml?"
    ),
    Conversion(
        "cedi-pesewa",
        "GH₵{}",
        "cedis",
        "{} pesewas",
        "pesewas",
        100,
        40,
        "A meal costs {big}.",
        "What is the price in pesewas?",
    ),
    Conversion(
        "h-min",
        "{} hours",
        "hours",
        "{} minutes",
        "minutes",
        60,
        20,
        "A journey takes {big}.",
        "How many minutes does it take?",
    ),
    Conversion(
        "min-s",
        "{} minutes",
        "minutes",
        "{} seconds",
        "seconds",
        60,
        20,
        "A lesson lasts {big}.",
        "How many seconds does it last?",
    ),
    Conversion(
        "day-h",
        "{} days",
        "days",
        "{} hours",
        "hours",
        24,
        10,
        "The rain goes on for {big}.",
        "For how many hours does it go on?",
    ),
    Conversion(
        "week-day",
        "{} weeks",
        "weeks",
        "{} days",
        "days",
        7,
        20,
        "The holiday lasts {big}.",
        "How many days does it last?",
    ),
    Conversion(
        "year-month",
        "{} years",
        "years",
        "{} months",
        "months",
        12,
        15,
        "A tree is {big} old.",
        "How many months old is it?",
    ),
    Conversion(
        "dozen-egg",
        "{} dozen",
        "dozens",
        "{} eggs",
        "eggs",
        12,
        15,
        "A trader has {big} eggs.",
        "How many eggs has the trader?",
    ),
)

TELLS: tuple[str, ...] = (
    "{big} = {small}",
    "{small} = {big}",
    "{big} is {small}.",
    "{small} is {big}.",
    "There are {small} in {big}.",
    "In {big} there are {small}.",
    "{big} make {small}.",
    "{small} make {big}.",
    "{big} in {small_name} is {small}.",
    "{small} in {big_name} is {big}.",
    "{big} changed to {small_name} is {small}.",
    "{small} changed to {big_name} is {big}.",
    "{scene} That is {small}.",
    "{scene} In {small_name} that is {small}.",
)
SLATE = ("In {small_name}: {big}\n{small}", "In {big_name}: {small}\n{big}")
"""The question of a conversion as a heading, and the result on a line of its own."""

_TO_SMALL = (
    "How many {small_name} are in {big}?",
    "Convert {big} to {small_name}.",
    "Change {big} to {small_name}.",
    "What is {big} in {small_name}?",
    "{scene} {scene_ask}",
)
_TO_BIG = (
    "Convert {small} to {big_name}.",
    "Change {small} to {big_name}.",
    "What is {small} in {big_name}?",
)


def values() -> list[tuple[Conversion, int]]:
    """Return every conversion with every amount of the big unit that is in range."""
    return [(unit, count) for unit in CONVERSIONS for count in range(2, unit.last + 1)]


def fields(unit: Conversion, count: int) -> dict[str, str]:
    """Return what the templates need for one amount of the big unit."""
    big, small = unit.big.format(count), unit.small.format(count * unit.factor)
    return {
        "big": big,
        "small": small,
        "big_name": unit.big_name,
        "small_name": unit.small_name,
        "scene": unit.scene.format(big=big),
        "scene_ask": unit.scene_ask,
    }


def to_small(unit: Conversion, count: int) -> list[Question]:
    """Return the questions that ask for the small unit."""
    blanks = fields(unit, count)
    return [Question(ask.format(**blanks), blanks["small"]) for ask in _TO_SMALL]


def to_big(unit: Conversion, count: int) -> list[Question]:
    """Return the questions that ask for the big unit."""
    blanks = fields(unit, count)
    return [Question(ask.format(**blanks), blanks["big"]) for ask in _TO_BIG]


def tell(unit: Conversion, count: int, template: str) -> str:
    """Return one statement about one amount."""
    return template.format(**fields(unit, count))
