"""Small stories with a question and its resolution, for every kind of calculation.

The question rows use context and question, the pretraining text context and resolution.
"""

from typing import NamedTuple


class Scene(NamedTuple):
    """A situation, the questions about it, and the sentences that answer them.

    Templates know the numbers {x}, {y}, {w} and the result {z}, a person {n} with
    {he}, {his}, {him} (and capital forms), a second person {m}, items {i}, {j}, {k}
    with plurals {ii}, and countable {things} in {boxes}.
    """

    label: str
    context: str
    asks: tuple[str, ...]
    tells: tuple[str, ...]
    answer: str = "GH₵{z}"


ADD = (
    Scene(
        "Total",
        "{n} buys a {i} for GH₵{x} and a {j} for GH₵{y}.",
        ("How much does {he} pay?", "How much does {he} pay in all?", "What does {he} pay altogether?"),
        ("{He} pays GH₵{z}.", "{He} pays GH₵{z} in all.", "Altogether {he} pays GH₵{z}."),
    ),
    Scene(
        "Total",
        "A {i} costs GH₵{x} and a {j} costs GH₵{y}.",
        ("How much do they cost together?", "What is the total price?"),
        ("Together they cost GH₵{z}.", "The total price is GH₵{z}."),
    ),
    Scene(
        "Total",
        "{n} has GH₵{x}. {His} mother gives {him} GH₵{y} more.",
        ("How much does {he} have now?", "How much money has {he} now?"),
        ("{He} has GH₵{z} now.", "Now {he} has GH₵{z}."),
    ),
    Scene(
        "Total",
        "{n} saves GH₵{x} and {m} saves GH₵{y}.",
        ("How much do they save together?", "How much do the two save in all?"),
        ("Together they save GH₵{z}.", "The two save GH₵{z} in all."),
    ),
    Scene(
        "Total",
        "Price list\n{i}: GH₵{x}\n{j}: GH₵{y}",
        ("What do the {i} and the {j} cost together?", "How much are the {i} and the {j} together?"),
        ("The {i} and the {j} cost GH₵{z} together.", "Together the {i} and the {j} are GH₵{z}."),
    ),
    Scene(
        "Total",
        "There are {x} {things} in one basket and {y} {things} in another.",
        ("How many {things} are there in all?", "How many {things} are in the two baskets?"),
        ("There are {z} {things} in all.", "In the two baskets there are {z} {things}."),
        "{z}",
    ),
    Scene(
        "Total",
        "{n} picks {x} {things} in the morning and {y} in the afternoon.",
        ("How many {things} does {he} pick in all?",),
        ("{He} picks {z} {things} in all.", "In all {he} picks {z} {things}."),
        "{z}",
    ),
    Scene(
        "Total",
        "A school has {x} girls and {y} boys in one class.",
        ("How many pupils are in the class?",),
        ("There are {z} pupils in the class.", "The class has {z} pupils."),
        "{z}",
    ),
)
ADD_BARE = (
    Scene(
        "Sum",
        "",
        (
            "What is {x} + {y}?",
            "Add {x} and {y}.",
            "Work out {x} + {y}.",
            "What do {x} and {y} make?",
            "{x} + {y} = ?",
        ),
        (
            "{x} + {y} = {z}",
            "{x}+{y}={z}",
            "{x} + {y} is {z}.",
            "{x} and {y} make {z}.",
            "{x} plus {y} is {z}.",
            "The sum of {x} and {y} is {z}.",
            "{z} is {x} + {y}.",
            "{z} = {x} + {y}",
        ),
        "{z}",
    ),
    Scene(
        "Sum",
        "",
        (
            "What is GH₵{x} + GH₵{y}?",
            "How much are GH₵{x} and GH₵{y} together?",
            "Add GH₵{x} and GH₵{y}.",
        ),
        (
            "GH₵{x} + GH₵{y} = GH₵{z}",
            "GH₵{x} and GH₵{y} make GH₵{z}.",
            "GH₵{x} and GH₵{y} are GH₵{z} together.",
            "GH₵{z} is GH₵{x} + GH₵{y}.",
        ),
    ),
)
CHANGE = (
    Scene(
        "Change",
        "A {i} costs GH₵{y}. {n} pays with GH₵{x}.",
        ("How much change does {he} get?", "What is {his} change?"),
        ("{He} gets GH₵{z} change.", "{His} change is GH₵{z}."),
    ),
    Scene(
        "Change",
        "{n} buys a {i} for GH₵{y} and gives the seller GH₵{x}.",
        ("How much change does {he} get?", "How much does the seller give back?"),
        ("{He} gets GH₵{z} change.", "The seller gives back GH₵{z}."),
    ),
    Scene(
        "Change",
        "Price: GH₵{y}\nPaid: GH₵{x}",
        ("Work out the change.", "How much is the change?"),
        ("The change is GH₵{z}.", "That makes GH₵{z} change."),
    ),
)
TAKE = (
    Scene(
        "Left",
        "{n} has GH₵{x} and spends GH₵{y}.",
        ("How much does {he} have left?", "How much money is left?"),
        ("{He} has GH₵{z} left.", "GH₵{z} is left."),
    ),
    Scene(
        "Left",
        "{n} has {x} {things} and sells {y}.",
        ("How many {things} are left?", "How many {things} does {he} have left?"),
        ("{z} {things} are left.", "{He} has {z} {things} left."),
        "{z}",
    ),
    Scene(
        "Difference",
        "A {i} costs GH₵{x} and a {j} costs GH₵{y}.",
        ("How much more does the {i} cost?", "What is the difference in price?"),
        ("The {i} costs GH₵{z} more.", "The difference in price is GH₵{z}."),
    ),
    Scene(
        "Still needed",
        "{n} wants a {i} for GH₵{x}. {He} has saved GH₵{y}.",
        ("How much does {he} still need?",),
        ("{He} still needs GH₵{z}.", "GH₵{z} is still needed."),
    ),
    Scene(
        "Left",
        "There are {x} people at the lorry station. {y} of them leave.",
        ("How many people stay?",),
        ("{z} people stay.", "So {z} people stay."),
        "{z}",
    ),
)
TAKE_BARE = (
    Scene(
        "Difference",
        "",
        (
            "What is {x} - {y}?",
            "Subtract {y} from {x}.",
            "Take {y} away from {x}.",
            "Work out {x} - {y}.",
            "{x} - {y} = ?",
        ),
        (
            "{x} - {y} = {z}",
            "{x}-{y}={z}",
            "{x} - {y} is {z}.",
            "{x} minus {y} is {z}.",
            "Taking {y} away from {x} leaves {z}.",
            "{y} from {x} leaves {z}.",
            "{z} is {x} - {y}.",
        ),
        "{z}",
    ),
)
TIMES = (
    Scene(
        "Total",
        "{n} buys {x} {ii} at GH₵{y} each.",
        ("How much does {he} pay?", "How much does {he} pay in all?"),
        ("{He} pays GH₵{z}.", "{He} pays GH₵{z} in all."),
    ),
    Scene(
        "Total",
        "There are {x} {boxes} with {y} {things} in each.",
        ("How many {things} are there in all?",),
        ("There are {z} {things} in all.", "In all there are {z} {things}."),
        "{z}",
    ),
    Scene(
        "Saved",
        "{n} saves GH₵{y} every week for {x} weeks.",
        ("How much does {he} save?", "How much has {he} saved at the end?"),
        ("{He} saves GH₵{z}.", "At the end {he} has saved GH₵{z}."),
    ),
)
TIMES_BARE = (
    Scene(
        "Product",
        "",
        (
            "What is {x} × {y}?",
            "Multiply {x} by {y}.",
            "What is {x} times {y}?",
            "Work out {x} × {y}.",
            "{x} × {y} = ?",
        ),
        (
            "{x} × {y} = {z}",
            "{x}×{y}={z}",
            "{x} × {y} is {z}.",
            "{x} times {y} is {z}.",
            "{x} multiplied by {y} is {z}.",
            "{z} is {x} × {y}.",
        ),
        "{z}",
    ),
)
SHARE = (
    Scene(
        "Each",
        "{n} shares GH₵{x} equally among {y} friends.",
        ("How much does each friend get?",),
        ("Each friend gets GH₵{z}.", "GH₵{z} goes to each friend."),
    ),
    Scene(
        "Each",
        "{y} children share {x} {things} equally.",
        ("How many {things} does each child get?",),
        ("Each child gets {z} {things}.", "{z} {things} go to each child."),
        "{z}",
    ),
    Scene(
        "One",
        "{n} pays GH₵{x} for {y} {ii}.",
        ("How much does one {i} cost?", "What is the price of one {i}?"),
        ("One {i} costs GH₵{z}.", "The price of one {i} is GH₵{z}."),
    ),
)
SHARE_BARE = (
    Scene(
        "Quotient",
        "",
        ("What is {x} ÷ {y}?", "Divide {x} by {y}.", "Work out {x} ÷ {y}."),
        (
            "{x} ÷ {y} = {z}",
            "{x} ÷ {y} is {z}.",
            "{x} divided by {y} is {z}.",
            "{z} is {x} ÷ {y}.",
        ),
        "{z}",
    ),
)
THREE = (
    Scene(
        "Total",
        "{n} buys a {i} for GH₵{x}, a {j} for GH₵{y} and a {k} for GH₵{w}.",
        ("How much does {he} pay?", "How much does {he} pay in all?"),
        ("{He} pays GH₵{z}.", "{He} pays GH₵{z} in all."),
    ),
    Scene(
        "Total",
        "Price list\n{i}: GH₵{x}\n{j}: GH₵{y}\n{k}: GH₵{w}",
        ("What do the three things cost together?",),
        ("The three things cost GH₵{z} together.",),
    ),
    Scene(
        "Sum",
        "",
        ("What is {x} + {y} + {w}?", "Add {x}, {y} and {w}."),
        ("{x} + {y} + {w} = {z}", "{x}, {y} and {w} make {z}.", "{x} + {y} + {w} is {z}."),
        "{z}",
    ),
)
