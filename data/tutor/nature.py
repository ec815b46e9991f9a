"""Facts about living things: animals, the human body, health."""

from data.tutor.relation import Relation

_ELEMENTARY, _MIDDLE = "elementary", "middle"

YOUNG = Relation(
    name="young",
    topic="science",
    level=_ELEMENTARY,
    pairs=(
        ("goat", "kid"),
        ("cow", "calf"),
        ("horse", "foal"),
        ("dog", "puppy"),
        ("cat", "kitten"),
        ("sheep", "lamb"),
        ("hen", "chick"),
        ("lion", "cub"),
        ("frog", "tadpole"),
        ("duck", "duckling"),
        ("pig", "piglet"),
        ("goose", "gosling"),
        ("kangaroo", "joey"),
    ),
    tells=(
        "A young {s} is called a {a}.",
        "{A} is the name for a young {s}.",
        "{A}: that is what we call a young {s}.",
        "The young of a {s} is a {a}.",
        "A {a} grows up to be a {s}.",
        "When a {s} is young, we call it a {a}.",
        "The name for a young {s} is {a}.",
    ),
    asks=(
        "What is a young {s} called?",
        "What do we call a young {s}?",
        "What is the young of a {s}?",
        "What is the name for a young {s}?",
    ),
    answer="{A}",
    heads=("animal", "young"),
)


BODY = Relation(
    name="body",
    topic="science",
    level=_ELEMENTARY,
    pairs=(
        ("pumping blood", "heart"),
        ("breathing", "lungs"),
        ("thinking", "brain"),
        ("seeing", "eyes"),
        ("hearing", "ears"),
        ("smelling", "nose"),
        ("tasting", "tongue"),
        ("chewing", "teeth"),
        ("making urine", "kidneys"),
        ("storing urine", "bladder"),
        ("making bile", "liver"),
        ("feeling touch", "skin"),
        ("moving the bones", "muscles"),
        ("protecting the brain", "skull"),
        ("carrying air to the lungs", "windpipe"),
        ("carrying food to the stomach", "gullet"),
    ),
    tells=(
        "The body uses the {a} for {s}.",
        "Our body has the {a} for {s}.",
        "We use the {a} for {s}.",
        "For {s} the body uses the {a}.",
        "The part of the body for {s}: the {a}.",
        "The {a}: the part of the body used for {s}.",
        "{S} is the work of the {a}.",
    ),
    asks=(
        "Which part of the body do we use for {s}?",
        "What does the body use for {s}?",
        "Name the part of the body used for {s}.",
        "{S} is the work of which part of the body?",
    ),
    answer="The {a}",
    heads=("work", "part of the body"),
)


LACK = Relation(
    name="lack",
    topic="science",
    level=_MIDDLE,
    pairs=(
        ("scurvy", "vitamin C"),
        ("rickets", "vitamin D"),
        ("night blindness", "vitamin A"),
        ("beriberi", "vitamin B1"),
        ("goitre", "iodine"),
        ("anaemia", "iron"),
        ("kwashiorkor", "protein"),
    ),
    tells=(
        "Too little {a} in the food can cause {s}.",
        "{A} protects us from {s}.",
        "{S} comes from a lack of {a}.",
        "A lack of {a} can cause {s}.",
        "Food with enough {a} prevents {s}.",
        "{A} is what people with {s} often lack.",
    ),
    asks=(
        "A lack of what can cause {s}?",
        "What in our food protects us from {s}?",
        "What do people with {s} often lack?",
        "Which nutrient prevents {s}?",
    ),
    answer="{A}",
    back=("Which illness can a lack of {a} cause?", "From which illness does {a} protect us?"),
    heads=("illness", "nutrient"),
)


CARRIER = Relation(
    name="carrier",
    topic="science",
    level=_ELEMENTARY,
    pairs=(
        ("malaria", "mosquito"),
        ("sleeping sickness", "tsetse fly"),
        ("river blindness", "black fly"),
        ("plague", "rat flea"),
        ("Lyme disease", "tick"),
        ("bilharzia", "water snail"),
    ),
    tells=(
        "The {a} spreads {s}.",
        "The {a} carries {s} to people.",
        "{S} is spread by the {a}.",
        "The animal that spreads {s} is the {a}.",
        "Keep away from the {a}, for it spreads {s}.",
        "{S} comes to people from the {a}.",
    ),
    asks=(
        "Which animal spreads {s}?",
        "By which animal is {s} spread?",
        "Name the animal that carries {s} to people.",
    ),
    answer="The {a}",
    back=("Which illness does the {a} spread?", "Which illness comes to people from the {a}?"),
    heads=("illness", "animal"),
)


COUNT = Relation(
    name="count",
    topic="science",
    level=_ELEMENTARY,
    pairs=(
        ("an insect", "6", "legs"),
        ("a spider", "8", "legs"),
        ("a crab", "10", "legs"),
        ("an octopus", "8", "arms"),
        ("an insect", "3", "body parts"),
        ("a butterfly", "4", "wings"),
        ("a housefly", "2", "wings"),
        ("the human heart", "4", "chambers"),
        ("an adult", "206", "bones"),
        ("an adult", "32", "teeth"),
        ("a child", "20", "milk teeth"),
        ("the Solar System", "8", "planets"),
        ("the rainbow", "7", "colours"),
        ("a human cell", "46", "chromosomes"),
        ("the planet Mars", "2", "moons"),
        ("the human hand", "27", "bones"),
    ),
    tells=(
        "{S} has {a} {x}.",
        "Count the {x} that {s} has: {a}.",
        "The number of {x} that {s} has is {a}.",
        "{A} is the number of {x} that {s} has.",
        "{A} {x}: that is what {s} has.",
        "There are {a} {x} if you count those that {s} has.",
    ),
    asks=(
        "How many {x} does {s} have?",
        "What is the number of {x} that {s} has?",
        "How many {x} has {s}?",
    ),
    heads=("counted", "number"),
    key="{name}:{slug}:{extra}",
)


GROUP = Relation(
    name="group",
    topic="science",
    level=_MIDDLE,
    pairs=(
        ("bat", "mammals"),
        ("whale", "mammals"),
        ("penguin", "birds"),
        ("ostrich", "birds"),
        ("crocodile", "reptiles"),
        ("snake", "reptiles"),
        ("frog", "amphibians"),
        ("tilapia", "fish"),
        ("bee", "insects"),
        ("spider", "arachnids"),
        ("crab", "crustaceans"),
        ("snail", "molluscs"),
    ),
    tells=(
        "The {s} belongs to the {a}.",
        "In the animal kingdom the {s} belongs to the {a}.",
        "{A} are a group of animals, and the {s} is one of them.",
        "{A} are the group of the {s}.",
        "The group of animals of the {s}: the {a}.",
        "We count the {s} among the {a}.",
    ),
    asks=(
        "To which group of animals does the {s} belong?",
        "Which group of animals is the {s} in?",
        "Among which animals do we count the {s}?",
    ),
    answer="{A}",
    heads=("animal", "group"),
)
