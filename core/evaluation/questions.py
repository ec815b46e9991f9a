"""Test questions: the conversations of a split up to their last answers, or its plain texts."""

from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import read_jsonl
from core.data.records import Message as Turn
from core.data.tool_turns import said
from core.errors import DataError
from core.evaluation.responders import Message


class Question(NamedTuple):
    """One test item: the conversation up to its last answer, and that answer."""

    id: str
    messages: list[Message]
    """Empty for a plain text."""
    reference: str
    """What the last turn says, its calls included, or the plain text."""
    metadata: dict[str, Any]
    turn: Message = {}
    """The last turn as it stands in the row."""


def read_questions(test: Path, limit: int | None = None, *, texts: bool = False) -> list[Question]:
    """Read test rows; what the last assistant turn says, its calls included, becomes the reference.

    Plain texts among the rows have no question and are passed over.

    Args:
        test: A split file.
        limit: Use only so many, from the first on.
        texts: Whether a split of plain texts alone will do: they can be scored, not asked.

    Raises:
        DataError: If there is no row, or none with a question.
    """
    rows = list(read_jsonl(test))
    questions = [_question(row) for row in rows if "conversations" in row]
    if rows and not questions and not texts:
        raise DataError(
            "the test split holds plain text only, which has no question to grade",
            where=str(test),
            fix="add sources with questions and answers, or judge the text by evaluation.primary_metric: perplexity "
            "with evaluation.metrics: [perplexity]",
        )
    if not rows:
        raise DataError("the test split is empty", where=str(test), fix="add rows, or raise split.test")
    return (questions or [_text(row) for row in rows])[:limit]


def _question(row: dict[str, Any]) -> Question:
    *before, last = row["conversations"]
    return Question(row["id"], before, said(Turn.model_validate(last)), row.get("metadata", {}), last)


def _text(row: dict[str, Any]) -> Question:
    turn = {"role": "assistant", "content": row["text"]}
    return Question(row["id"], [], row["text"], row.get("metadata", {}), turn)
