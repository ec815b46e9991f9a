"""The pretraining text of the quickstart's base model: ``documents(seed)``, without end.

Run ``python data/tutor_base/corpus.py --count 20`` to read some of it.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tutor_base.calculations import arithmetic_document
from data.tutor_base.chat import chat_document
from data.tutor_base.statements import fact_document, unit_document
from data.tutor_base.stories import story_document

Writer = Callable[[random.Random], str]

KINDS: dict[str, Writer] = {
    "arithmetic": arithmetic_document,
    "units": unit_document,
    "facts": fact_document,
    "stories": story_document,
    "chat": chat_document,
}
ODDS: dict[str, int] = {"arithmetic": 28, "units": 11, "facts": 29, "stories": 8, "chat": 24}
"""How many of a hundred documents are of each kind; chats are short, so they weigh less in tokens."""


def labelled_documents(seed: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of kind and document, for those who count.

    Args:
        seed: Decides the whole stream.
    """
    rng = random.Random(f"tutor base {seed}")
    kinds, odds = tuple(ODDS), tuple(ODDS.values())
    while True:
        kind = rng.choices(kinds, odds)[0]
        yield kind, KINDS[kind](rng)


def documents(seed: int) -> Iterator[str]:
    """Yield short documents without end; the same seed gives the same stream.

    Args:
        seed: Decides the whole stream.
    """
    for _, document in labelled_documents(seed):
        yield document


def main(arguments: Sequence[str] | None = None) -> int:
    """Print some documents, with a line between them."""
    parser = argparse.ArgumentParser(description="Print documents of the pretraining text.")
    parser.add_argument("--count", type=int, default=10, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which stream")
    chosen = parser.parse_args(arguments)
    print("\n---\n".join(islice(documents(chosen.seed), chosen.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
