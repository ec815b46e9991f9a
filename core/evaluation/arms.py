"""Ways of asking the untrained base: as it is, after solved examples, after an instruction."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from core.data.records import Conversation, Message, read_conversations, turn_row
from core.errors import DataError
from core.evaluation.config import Arm
from core.evaluation.responders import Message as Turn

LONGEST_SHOT = 2000
"""Characters of a solved example beyond which it is taken only if there are too few shorter ones."""


class Shot(NamedTuple):
    """A solved example: a question and its answer."""

    question: str
    answer: str


def draw_shots(train: Path, count: int, seed: int) -> tuple[Shot, ...]:
    """Draw solved examples from the training split, the same ones for the same file and seed.

    Only conversations of one question and one answer without tools are drawn, and of these the shorter
    half, so that several fit a small window. Their system turns are dropped: the question's own counts.

    Args:
        train: The training split's file; never the test split's.
        count: How many; fewer if the split has no more.
        seed: Decides the draw.

    Raises:
        DataError: If no conversation will do.
    """
    known = {shot: _size(shot) for row in read_conversations(train) if (shot := _shot(row))}
    if not known:
        raise DataError(
            "the training split has no single question with an answer to show as an example",
            where=str(train),
            fix="take few_shot out of evaluation.baseline.arms",
        )
    # Sorted before drawing, so that the order of the rows does not matter.
    order = sorted(known, key=lambda shot: (known[shot], shot))
    half = [shot for shot in order[: max(count, (len(order) + 1) // 2)] if known[shot] <= LONGEST_SHOT]
    pool = half if len(half) >= count else order[:count]
    return tuple(random.Random(seed).sample(pool, min(count, len(pool))))


def arm_messages(arm: Arm, messages: Sequence[Turn], shots: Sequence[Shot], prompt: str) -> list[Turn]:
    """Return the conversation that a model is given in one arm.

    Args:
        arm: zero_shot leaves it as it is; few_shot puts solved examples before the first user turn, as turns;
            prompted adds the prompt to the system turn, or makes one.
        messages: The question's conversation.
        shots: Solved examples, for few_shot.
        prompt: System text, for prompted.
    """
    turns = list(messages)
    system = turns[:1] if turns and turns[0]["role"] == "system" else []
    rest = turns[len(system) :]
    if arm == "few_shot":
        return [*system, *(turn for shot in shots for turn in _turns(shot)), *rest]
    if arm == "prompted":
        before = f"{system[0]['content']}\n\n" if system else ""
        return [{"role": "system", "content": before + prompt}, *rest]
    return turns


class FewShot:
    """Asks after as many solved examples as the model's window holds, and counts where that was not all."""

    def __init__(
        self, shots: Sequence[Shot], length: Callable[[Sequence[Turn]], int], window: int | None, answer: int
    ) -> None:
        """Take the examples and the window.

        Args:
            shots: Solved examples.
            length: Counts the tokens of a conversation as a prompt.
            window: Positions that the model knows; None is no limit.
            answer: Tokens to keep free for the answer.
        """
        self._shots, self._length = tuple(shots), length
        self._limit = None if window is None else window - answer
        self.most = len(self._shots)
        """Examples there are."""
        self.shortened = 0
        """Questions asked with fewer examples than there are."""

    def __call__(self, messages: Sequence[Turn]) -> list[Turn]:
        """Return a question's conversation with as many examples before it as fit."""
        count = self.room(messages)
        self.shortened += count < len(self._shots)
        return arm_messages("few_shot", messages, self._shots[:count], "")

    def room(self, messages: Sequence[Turn]) -> int:
        """Return how many examples fit before a question."""
        for count in range(len(self._shots), 0, -1):
            asked = arm_messages("few_shot", messages, self._shots[:count], "")
            if self._limit is None or self._length(asked) <= self._limit:
                return count
        return 0


def _shot(row: Conversation) -> Shot | None:
    turns = [turn for turn in row.messages if turn.role != "system"]
    if [turn.role for turn in turns] != ["user", "assistant"] or turns[1].tool_calls:
        return None
    return Shot(turns[0].content, turns[1].content)


def _turns(shot: Shot) -> list[Turn]:
    said = (Message(role="user", content=shot.question), Message(role="assistant", content=shot.answer))
    return [turn_row(turn) for turn in said]


def _size(shot: Shot) -> int:
    return len(shot.question) + len(shot.answer)
