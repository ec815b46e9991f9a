"""People and things that calculations and stories are about."""

from typing import NamedTuple


class Person(NamedTuple):
    """A name and its pronouns."""

    name: str
    he: str
    his: str
    him: str


class Item(NamedTuple):
    """Something with a price."""

    one: str
    many: str


_GIRLS = ("Ama", "Abena", "Akua", "Yaa", "Esi", "Efua", "Adwoa", "Akosua", "Afia", "Araba", "Dede", "Naa")
_BOYS = (
    "Kofi",
    "Kwame",
    "Kojo",
    "Yaw",
    "Kwaku",
    "Kwesi",
    "Kwabena",
    "Nii",
    "Fiifi",
    "Selorm",
    "Mensah",
    "Ato",
)

PEOPLE: tuple[Person, ...] = (
    *(Person(name, "she", "her", "her") for name in _GIRLS),
    *(Person(name, "he", "his", "him") for name in _BOYS),
)

ITEMS: tuple[Item, ...] = (
    Item("pen", "pens"),
    Item("book", "books"),
    Item("ruler", "rulers"),
    Item("school bag", "school bags"),
    Item("cap", "caps"),
    Item("shirt", "shirts"),
    Item("lamp", "lamps"),
    Item("bucket", "buckets"),
    Item("pot", "pots"),
    Item("ball", "balls"),
    Item("torch", "torches"),
    Item("cloth", "cloths"),
    Item("basket", "baskets"),
    Item("chicken", "chickens"),
    Item("watch", "watches"),
    Item("mat", "mats"),
)

THINGS: tuple[str, ...] = (
    "mangoes",
    "oranges",
    "eggs",
    "bottles",
    "pencils",
    "books",
    "yams",
    "coconuts",
    "tomatoes",
    "beads",
    "plates",
    "chairs",
    "bananas",
    "onions",
)

BOXES: tuple[str, ...] = ("boxes", "baskets", "bags", "rows", "trays", "crates")
