"""Word lessons that are not the tutor's: opposites, plurals, colours, sounds and the like.

The pretraining text states them and asks about them in chat form. So the model sees
how a statement turns into an answer, on other matter than the tutor's.
"""

from typing import NamedTuple

from data.tutor.relation import capital


class Lesson(NamedTuple):
    """Pairs of words, how they are told, asked about, and answered in a sentence."""

    pairs: tuple[tuple[str, str], ...]
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    sentence: str


OPPOSITES = Lesson(
    pairs=(
        ("hot", "cold"),
        ("big", "little"),
        ("fast", "slow"),
        ("happy", "sad"),
        ("open", "closed"),
        ("full", "empty"),
        ("wet", "dry"),
        ("young", "old"),
        ("rich", "poor"),
        ("strong", "weak"),
        ("clean", "dirty"),
        ("early", "late"),
        ("day", "night"),
        ("up", "down"),
        ("left", "right"),
        ("loud", "quiet"),
        ("sweet", "bitter"),
        ("heavy", "light"),
        ("near", "far"),
        ("first", "last"),
        ("hard", "soft"),
        ("long", "short"),
        ("high", "low"),
        ("inside", "outside"),
        ("push", "pull"),
    ),
    tells=("The opposite of {s} is {a}.", "{A} is the opposite of {s}.", "{S} is the opposite of {a}."),
    asks=("What is the opposite of {s}?", "Give the opposite of {s}.", "Which word is the opposite of {s}?"),
    sentence="The opposite of {s} is {a}.",
)
PLURALS = Lesson(
    pairs=(
        ("tooth", "teeth"),
        ("foot", "feet"),
        ("mouse", "mice"),
        ("goose", "geese"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("wolf", "wolves"),
        ("city", "cities"),
        ("baby", "babies"),
        ("story", "stories"),
        ("box", "boxes"),
        ("bus", "buses"),
        ("dish", "dishes"),
        ("potato", "potatoes"),
        ("key", "keys"),
        ("table", "tables"),
        ("window", "windows"),
        ("drum", "drums"),
        ("boat", "boats"),
        ("lady", "ladies"),
    ),
    tells=("The plural of {s} is {a}.", "{A} is the plural of {s}.", "One {s}, many {a}."),
    asks=("What is the plural of {s}?", "Write the plural of {s}.", "One {s}, two what?"),
    sentence="The plural of {s} is {a}.",
)
PASTS = Lesson(
    pairs=(
        ("go", "went"),
        ("see", "saw"),
        ("eat", "ate"),
        ("run", "ran"),
        ("write", "wrote"),
        ("sing", "sang"),
        ("drink", "drank"),
        ("buy", "bought"),
        ("sell", "sold"),
        ("teach", "taught"),
        ("bring", "brought"),
        ("sleep", "slept"),
        ("walk", "walked"),
        ("play", "played"),
        ("give", "gave"),
        ("take", "took"),
        ("come", "came"),
        ("fly", "flew"),
    ),
    tells=("The past of {s} is {a}.", "{A} is the past of {s}.", "Today we {s}, yesterday we {a}."),
    asks=("What is the past of {s}?", "Put {s} into the past.", "Today I {s}. Which word for yesterday?"),
    sentence="The past of {s} is {a}.",
)
COLOURS = Lesson(
    pairs=(
        ("grass", "green"),
        ("the sky at noon", "blue"),
        ("snow", "white"),
        ("coal", "black"),
        ("a ripe tomato", "red"),
        ("a ripe banana", "yellow"),
        ("a carrot", "orange"),
        ("chocolate", "brown"),
        ("milk", "white"),
        ("an elephant", "grey"),
        ("charcoal", "black"),
        ("a ripe lemon", "yellow"),
    ),
    tells=("The colour of {s} is {a}.", "{A} is the colour of {s}.", "{S}: the colour is {a}."),
    asks=("Which colour has {s}?", "What is the colour of {s}?", "Tell me the colour of {s}."),
    sentence="The colour of {s} is {a}.",
)
SOUNDS = Lesson(
    pairs=(
        ("barks", "the dog"),
        ("mews", "the cat"),
        ("crows in the morning", "the cock"),
        ("says moo", "the cow"),
        ("bleats", "the sheep"),
        ("neighs", "the horse"),
        ("quacks", "the duck"),
        ("roars", "the lion"),
        ("hisses", "the snake"),
        ("hoots at night", "the owl"),
        ("buzzes", "the bee"),
        ("brays", "the donkey"),
    ),
    tells=("{A} {s}.", "The animal that {s} is {a}."),
    asks=("Which animal {s}?", "Name the animal that {s}."),
    sentence="{A} {s}.",
)
JOBS = Lesson(
    pairs=(
        ("bakes bread", "a baker"),
        ("sews clothes", "a tailor"),
        ("catches fish", "a fisherman"),
        ("grows crops", "a farmer"),
        ("builds houses", "a mason"),
        ("makes chairs and tables", "a carpenter"),
        ("drives a lorry", "a driver"),
        ("treats sick people", "a doctor"),
        ("repairs cars", "a mechanic"),
        ("cuts hair", "a barber"),
        ("weaves kente", "a weaver"),
        ("flies an aeroplane", "a pilot"),
        ("sells things at the market", "a trader"),
        ("plays the drums", "a drummer"),
    ),
    tells=("{A} {s}.", "The person who {s} is {a}."),
    asks=("Who {s}?", "Name the person who {s}.", "What do we call the person who {s}?"),
    sentence="{A} {s}.",
)
USES = Lesson(
    pairs=(
        ("cutting bread", "a knife"),
        ("sweeping the floor", "a broom"),
        ("writing on the board", "chalk"),
        ("opening a lock", "a key"),
        ("carrying water", "a bucket"),
        ("eating soup", "a spoon"),
        ("drying the body", "a towel"),
        ("keeping off the rain", "an umbrella"),
        ("sleeping under at night", "a mosquito net"),
        ("digging the garden", "a hoe"),
        ("sewing a button", "a needle"),
        ("knocking in nails", "a hammer"),
    ),
    tells=("For {s} one takes {a}.", "{A} is good for {s}.", "{A}: a thing for {s}."),
    asks=("What is good for {s}?", "Which thing does one take for {s}?"),
    sentence="For {s} one takes {a}.",
)
_DAY = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def _following(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(names, names[1:] + names[:1], strict=True))


DAY_ORDER = Lesson(
    pairs=_following(_DAY),
    tells=("After {s} comes {a}.", "{A} comes after {s}.", "{S} comes before {a}."),
    asks=("Which day comes after {s}?", "Today is {s}. Which day is tomorrow?", "Name the day after {s}."),
    sentence="After {s} comes {a}.",
)
MONTH_ORDER = Lesson(
    pairs=_following(_MONTH),
    tells=("After {s} comes {a}.", "{A} comes after {s}.", "{S} comes before {a}."),
    asks=("Which month comes after {s}?", "Name the month after {s}.", "What month follows {s}?"),
    sentence="After {s} comes {a}.",
)

LESSONS: tuple[Lesson, ...] = (
    OPPOSITES,
    PLURALS,
    PASTS,
    COLOURS,
    SOUNDS,
    JOBS,
    USES,
    DAY_ORDER,
    MONTH_ORDER,
)


def lesson_fields(subject: str, answer: str) -> dict[str, str]:
    """Return what the templates need: both words, plain and with a capital."""
    return {"s": subject, "a": answer, "S": capital(subject), "A": capital(answer)}


LESSON_STATEMENTS: tuple[str, ...] = tuple(
    tell.format(**lesson_fields(*pair))
    for lesson in LESSONS
    for pair in lesson.pairs
    for tell in lesson.tells
)
