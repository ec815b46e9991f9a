"""Short stories of school, market, family, farm and weather."""

import random

from data.tutor.relation import capital
from data.tutor.words import PEOPLE

_THEMES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "school": (
        (
            "It is {day}, and {n} walks to school with {m}.",
            "The bell rings, and {n} runs into the classroom.",
            "{n} sits in the second row, next to {m}.",
            "The new term begins on a {weather} morning.",
        ),
        (
            "The teacher reads a story about a {adj} {animal}.",
            "{m} has forgotten {his2} {tool}, so {n} lends {him2} one.",
            "They sing a song and clap their hands.",
            "{n} draws a {colour} {animal} in {his} exercise book.",
            "At break they play ampe and football in the yard.",
            "A {animal} looks in at the window, and everybody laughs.",
            "{n} raises {his} hand and answers in a {adj} voice.",
            "The class plants a {tree} tree behind the school.",
        ),
        (
            "At the end of the day {n} is {mood}.",
            "On the way home the two talk about what they have learnt.",
            "The teacher is pleased with the whole class.",
            "{n} cannot wait to tell {his} {family} about it.",
        ),
    ),
    "market": (
        (
            "On {day} {n} goes to the market with {his} {family}.",
            "The market is full of people on this {weather} {day}.",
            "{n} helps {his} {family} at the stall.",
        ),
        (
            "They look at {food}, {food2} and a {colour} cloth.",
            "A woman calls out that her {food} is the freshest.",
            "{his_cap} {family} asks for a better price, and the trader smiles.",
            "{n} carries a full basket on {his} head.",
            "A {animal} runs between the stalls and knocks over a bowl.",
            "{m} sells {colour} beads beside the road.",
            "The smell of fried plantain fills the air.",
        ),
        (
            "In the evening they go home, {mood} and hungry.",
            "They pack the {food} and wait for the trotro.",
            "{n} has never seen so many {colour} things in one place.",
        ),
    ),
    "family": (
        (
            "{n} lives with {his} {family} near the river.",
            "In the evening {n} sits beside {his} {family}.",
            "{his_cap} {family} comes to visit {n} on {day}.",
        ),
        (
            "They cook {food} with {food2} over the fire.",
            "{his_cap} {family} tells a story about Ananse and a {animal}.",
            "The baby laughs at the {colour} ball.",
            "{n} fetches water while {m} sweeps the yard.",
            "They mend an old {mended} together.",
            "{n} washes the plates and {m} dries them.",
        ),
        (
            "Then everybody goes to bed, {mood} and full.",
            "It is a {adj} evening, and nobody wants it to end.",
            "{n} hopes that tomorrow will be like today.",
        ),
    ),
    "weather": (
        (
            "The morning is {weather}, and the wind comes from the sea.",
            "For days it has been {weather}.",
            "Dark clouds come up over the hills on {day}.",
            "The harmattan has come, and the air is full of dust.",
        ),
        (
            "{n} takes in the washing before the rain.",
            "The {animal} hides under the {tree} tree.",
            "The road turns {colour} with mud.",
            "{m} closes the windows and lights a lamp.",
            "The farmers look at the sky and hope.",
            "Children run out and dance in the first drops.",
        ),
        (
            "When the sun comes back, {n} is {mood}.",
            "At last the sky is clear again.",
            "The {food} on the farm will grow well now.",
        ),
    ),
    "farm": (
        (
            "{n} gets up early to work on the farm.",
            "On {day} the whole family goes to the farm.",
            "{n} has a {colour} {animal} on {his} farm.",
        ),
        (
            "They weed between the rows of {food}.",
            "{m} brings water and roasted maize.",
            "A {adj} {animal} eats the leaves, and {n} chases it away.",
            "The {food} is ripe, and the baskets fill quickly.",
            "They rest in the shade of a {tree} tree.",
            "{n} sharpens the cutlass while {m} plants {food}.",
        ),
        (
            "The harvest is good this year, and {n} is {mood}.",
            "They carry the {food} home before dark.",
            "In the evening their arms are tired, but they sing.",
        ),
    ),
    "match": (
        (
            "On {day} the school plays against the next village.",
            "{n} has a {colour} football.",
            "The whole town comes to see the match on this {weather} day.",
        ),
        (
            "{n} passes the ball to {m}.",
            "{m} runs past two players and shoots.",
            "The goalkeeper jumps, but the ball is too fast.",
            "The drums beat and the people shout.",
            "A {animal} walks across the field, and the game stops for a while.",
            "{n} falls, gets up and runs on.",
        ),
        (
            "In the end both teams are {mood}.",
            "The captain lifts the cup and smiles.",
            "Everybody shares {food} after the match.",
        ),
    ),
}
_SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "weather": ("sunny", "rainy", "windy", "cool", "hot", "cloudy", "misty", "bright", "stormy"),
    "adj": (
        "clever",
        "small",
        "brave",
        "quiet",
        "hungry",
        "gentle",
        "lazy",
        "funny",
        "heavy",
        "lovely",
        "strange",
    ),
    "animal": (
        "goat",
        "hen",
        "dog",
        "cat",
        "tortoise",
        "parrot",
        "lizard",
        "sheep",
        "monkey",
        "rabbit",
        "donkey",
    ),
    "colour": ("red", "green", "blue", "yellow", "white", "brown", "black", "purple", "orange"),
    "tree": ("mango", "neem", "palm", "cocoa", "baobab", "orange", "shea"),
    "mood": ("happy", "tired", "proud", "calm", "glad", "cheerful", "thankful"),
    "family": ("mother", "father", "aunt", "uncle", "grandmother", "grandfather", "sister", "brother"),
    "food": ("cassava", "yam", "maize", "rice", "okra", "groundnut", "millet", "cocoyam", "pepper"),
    "tool": ("pen", "ruler", "pencil", "book", "rubber", "slate"),
    "mended": ("chair", "basket", "net", "radio", "bicycle", "pot", "roof", "drum"),
    "food2": ("beans", "tomatoes", "onions", "fish", "palm oil", "garden eggs", "salt", "ginger"),
}


def story_document(rng: random.Random) -> str:
    """Return a story of four to seven sentences about the same people."""
    openings, middles, endings = _THEMES[rng.choice(tuple(_THEMES))]
    plot = [rng.choice(openings), *rng.sample(middles, rng.randint(2, 5)), rng.choice(endings)]
    blanks = _blanks(rng)
    return " ".join(sentence.format(**blanks) for sentence in plot)


def _blanks(rng: random.Random) -> dict[str, str]:
    first, second = rng.sample(PEOPLE, 2)
    people = {
        "n": first.name,
        "his": first.his,
        "his_cap": capital(first.his),
        "m": second.name,
        "his2": second.his,
        "him2": second.him,
    }
    return {**people, **{slot: rng.choice(choices) for slot, choices in _SLOTS.items()}}
