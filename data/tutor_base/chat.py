"""Documents in chat form, on other matter than the tutor's.

They train the special tokens and the habit of answering. About a third of the
answers are full sentences: the base model has no fixed answering style yet.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from data.tutor.relation import capital
from data.tutor.words import ITEMS, PEOPLE, THINGS
from data.tutor_base.lessons import LESSONS, lesson_fields

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
_SENTENCES = 0.35


class Turn(NamedTuple):
    """A question with a short answer and with the same answer as a sentence."""

    question: str
    short: str
    sentence: str


_SHORT_ORDERS = (
    "Answer in one word if you can.",
    "Be short.",
    "Give short answers.",
    "Only the answer, please.",
)
_LONG_ORDERS = ("Answer in a full sentence.", "Use whole sentences.", "Speak in full sentences.")
_OTHER_ORDERS = (
    "You are a friendly helper.",
    "You talk with a child.",
    "You like to help.",
    "You are polite.",
)

_SMALL_TALK: tuple[Turn, ...] = tuple(
    Turn(question, answer, answer)
    for question, answer in (
        ("Hello!", "Hello! It is nice to meet you."),
        ("Hi there.", "Hi! I am glad you are here."),
        ("Can you help me?", "Yes, I will gladly help you."),
        ("Who are you?", "I am a small helper for learners."),
        ("I am tired.", "Then rest a little and come back later."),
        ("I am sad today.", "I am sorry to hear that. A walk may help."),
        ("I passed my test!", "Well done! You worked hard for it."),
        ("Thanks for your help.", "You are welcome."),
        ("Goodbye.", "Goodbye! See you soon."),
        ("Are you ready?", "Yes, I am ready."),
        ("Do you like stories?", "Yes, stories are fun."),
        ("I am bored.", "You could read a book or play outside."),
        ("It is raining here.", "Then take an umbrella with you."),
        ("My friend is ill.", "I hope your friend gets well soon."),
        ("I cannot find my shoes.", "Look under the bed and behind the door."),
        ("I have a new sister.", "How lovely! Take good care of her."),
        ("We won the match.", "Great news! You must be proud."),
    )
)
_WORDS = (
    "apple",
    "bottle",
    "candle",
    "drum",
    "engine",
    "farmer",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "market",
    "needle",
    "onion",
    "paper",
    "queen",
    "river",
    "sugar",
    "table",
    "uncle",
    "village",
    "window",
    "yellow",
    "zebra",
    "mango",
    "basket",
    "pencil",
    "cocoa",
    "kente",
    "fufu",
    "lorry",
    "canoe",
)
_RHYMES = (
    ("cat", "hat"),
    ("tree", "bee"),
    ("ball", "wall"),
    ("rain", "train"),
    ("boat", "goat"),
    ("sand", "hand"),
    ("book", "cook"),
    ("king", "ring"),
    ("moon", "spoon"),
    ("night", "light"),
    ("cake", "lake"),
    ("sun", "run"),
)
_PLACES = (
    "market",
    "school",
    "farm",
    "river",
    "church",
    "mosque",
    "library",
    "field",
    "clinic",
    "lorry park",
)


def _lesson(rng: random.Random) -> Turn:
    lesson = rng.choice(LESSONS)
    fields = lesson_fields(*rng.choice(lesson.pairs))
    return Turn(rng.choice(lesson.asks).format(**fields), fields["A"], lesson.sentence.format(**fields))


def _alphabet(rng: random.Random) -> Turn:
    words = rng.sample(_WORDS, 2)
    first = min(words)
    ask = rng.choice(
        ("Which word comes first in the alphabet, {} or {}?", "{} or {}: which is first in the alphabet?")
    )
    return Turn(ask.format(*words), first, f"The word {first} comes first in the alphabet.")


def _repeat(rng: random.Random) -> Turn:
    thing = rng.choice(
        (rng.choice(_WORDS), f"GH₵{rng.randint(2, 200)}", str(rng.randint(2, 5000)), _a_name(rng))
    )
    ask = rng.choice(("Say the word {}.", "Repeat after me: {}", "Write {} once.", "Copy this: {}"))
    return Turn(ask.format(thing), thing, f"You wanted me to write {thing}.")


def _a_name(rng: random.Random) -> str:
    return rng.choice(PEOPLE).name


def _letter(rng: random.Random) -> Turn:
    word = rng.choice(_WORDS)
    if rng.random() < 0.5:
        return Turn(
            f"Which letter does {word} begin with?", word[0], f"The word {word} begins with {word[0]}."
        )
    return Turn(
        f"Which letter is the last one of {word}?", word[-1], f"The last letter of {word} is {word[-1]}."
    )


def _capitals(rng: random.Random) -> Turn:
    word = rng.choice(_WORDS)
    big = word.upper()
    return Turn(f"Write {word} in large letters.", big, f"In large letters it is {big}.")


def _larger(rng: random.Random) -> Turn:
    low, high = sorted(rng.sample(range(2, 200), 2))
    pair = rng.sample((low, high), 2)
    if rng.random() < 0.5:
        return Turn(
            f"Which number is larger, {pair[0]} or {pair[1]}?", f"{high}", f"The larger number is {high}."
        )
    ask = f"Which is more money, GH₵{pair[0]} or GH₵{pair[1]}?"
    return Turn(ask, f"GH₵{high}", f"GH₵{high} is more money.")


def _next_number(rng: random.Random) -> Turn:
    number = rng.randint(1, 199)
    answer = str(number + 1)
    ask = rng.choice(("Which number comes after {}?", "I count to {}. Which number is next?"))
    return Turn(ask.format(number), answer, f"After {number} comes {answer}.")


def _rhyme(rng: random.Random) -> Turn:
    word, other = rng.choice(_RHYMES)
    return Turn(
        f"Give me a word that rhymes with {word}.", capital(other), f"{capital(other)} rhymes with {word}."
    )


def _where(rng: random.Random) -> Turn:
    person, place = rng.choice(PEOPLE), rng.choice(_PLACES)
    told = f"{person.name} goes to the {place} with {person.his} friends."
    sentence = f"{person.name} goes to the {place}."
    return Turn(f"{told} Where does {person.name} go?", f"The {place}", sentence)


def _who(rng: random.Random) -> Turn:
    first, second = rng.sample(PEOPLE, 2)
    item = rng.choice(ITEMS).one
    told = f"{first.name} has a {item} and {second.name} has none."
    return Turn(f"{told} Who has the {item}?", first.name, f"{first.name} has the {item}.")


def _what(rng: random.Random) -> Turn:
    person, things = rng.choice(PEOPLE), rng.choice(THINGS)
    told = f"{person.name} sells {things} near the {rng.choice(_PLACES)}."
    return Turn(f"{told} What does {person.name} sell?", capital(things), f"{person.name} sells {things}.")


def _talk(rng: random.Random) -> Turn:
    return rng.choice(_SMALL_TALK)


_TASKS: tuple[Callable[[random.Random], Turn], ...] = (
    *(_lesson,) * 10,
    *(_talk,) * 2,
    _alphabet,
    _repeat,
    _repeat,
    _letter,
    _capitals,
    _larger,
    _next_number,
    _rhyme,
    _where,
    _who,
    _what,
)


def chat_document(rng: random.Random) -> str:
    """Return a conversation of one to three turns, sometimes with a system turn first."""
    style = rng.random()
    if style < 0.08:
        return _conversation(rng, rng.choice(_SHORT_ORDERS), sentences=0.0)
    if style < 0.16:
        return _conversation(rng, rng.choice(_LONG_ORDERS), sentences=1.0)
    if style < 0.22:
        return _conversation(rng, rng.choice(_OTHER_ORDERS), sentences=_SENTENCES)
    return _conversation(rng, "", sentences=_SENTENCES)


def _conversation(rng: random.Random, order: str, *, sentences: float) -> str:
    parts = [f"{SYSTEM}{order}{END}"] if order else []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        turn = rng.choice(_TASKS)(rng)
        answer = turn.sentence if rng.random() < sentences else turn.short
        parts.append(f"{USER}{turn.question}{END}{ASSISTANT}{answer}{END}")
    return "".join(parts)
