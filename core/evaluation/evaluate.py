"""Ask a model every test question and grade the answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from core.artifacts import file_digest, read_jsonl
from core.data.records import Message as Turn
from core.data.tool_turns import said
from core.errors import DataError
from core.evaluation.config import EvaluationConfig
from core.evaluation.graders import GRADERS
from core.evaluation.reports import Decoding, EvalReport, MetricValue
from core.evaluation.statistics import mean_interval

Message = dict[str, Any]
"""A turn as split files hold it: role, content, and what tools need."""
Tick = Callable[[int, int], None]
"""Called with (done, total) as answers arrive."""


class Question(NamedTuple):
    """One test item: the conversation up to its last answer, and that answer."""

    id: str
    messages: list[Message]
    reference: str
    metadata: dict[str, Any]


class Answer(NamedTuple):
    """What a model said."""

    text: str
    prompt_ids: list[int]
    n_generated: int


class Responder(Protocol):
    """Anything that answers conversations greedily: a PyTorch model or a GGUF file."""

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation, in order."""
        ...


class Evaluated(NamedTuple):
    """The report, and one row per example for people to read."""

    report: EvalReport
    rows: list[dict[str, Any]]


def read_questions(test: Path, limit: int | None = None) -> list[Question]:
    """Read test rows; what the last assistant turn says, its calls included, becomes the reference.

    Plain texts among the rows have no question and are passed over.

    Raises:
        DataError: If there is no row, or none with a question.
    """
    rows = list(read_jsonl(test))
    questions = []
    for row in rows:
        if "conversations" in row:
            *before, last = row["conversations"]
            reference = said(Turn.model_validate(last))
            questions.append(Question(row["id"], before, reference, row.get("metadata", {})))
    if rows and not questions:
        raise DataError(
            "the test split holds plain text only, which has no question to grade",
            where=str(test),
            fix="add sources with questions and answers",
        )
    if not questions:
        raise DataError("the test split is empty", where=str(test), fix="add rows, or raise split.test")
    return questions[:limit]


def evaluate(
    responder: Responder,
    test: Path,
    config: EvaluationConfig,
    *,
    arm: str,
    model_digest: str,
    clock: Callable[[], float],
    tick: Tick,
) -> Evaluated:
    """Ask, grade, and compute intervals.

    Args:
        responder: The model.
        test: The test split's file.
        config: Metrics, decoding and bootstrap settings.
        arm: Name of the model's role, kept in the report.
        model_digest: Digest of what answered, kept in the report.
        clock: Seconds, for tokens per second.
        tick: Progress listener.
    """
    questions = read_questions(test, config.max_examples)
    began = clock()
    answers = responder.answer([q.messages for q in questions], config.max_new_tokens, tick)
    seconds = max(clock() - began, 1e-9)
    scores: dict[str, tuple[float, ...]] = {name: tuple(GRADERS[name](a.text, q.reference) for a, q in zip(answers, questions, strict=True))
              for name in config.metrics}  # fmt: skip
    metrics: dict[str, MetricValue] = {name: _interval(values, config) for name, values in scores.items()}
    report = EvalReport(
        arm=arm,
        metric=config.primary_metric,
        value=metrics[config.primary_metric].value,
        n=len(questions),
        metrics=metrics,
        ids=tuple(q.id for q in questions),
        scores=scores,
        split_digest=file_digest(test),
        model_digest=model_digest,
        decoding=Decoding(
            strategy="greedy", max_new_tokens=config.max_new_tokens, prompt_digest=prompt_digest(answers)
        ),
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        tokens_per_second=sum(a.n_generated for a in answers) / seconds,
    )
    return Evaluated(
        report, [_row(q, a, scores, i) for i, (q, a) in enumerate(zip(questions, answers, strict=True))]
    )


def prompt_digest(answers: Sequence[Answer]) -> str:
    """Digest every prompt's token ids, in order: equal digests mean equal questions to the model."""
    text = json.dumps([a.prompt_ids for a in answers], separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _interval(values: Sequence[float], config: EvaluationConfig) -> MetricValue:
    value, low, high = mean_interval(
        values, resamples=config.resamples, confidence=config.confidence, seed=config.seed
    )
    return MetricValue(value=value, low=low, high=high, n=len(values))


def _asked(messages: Sequence[Message]) -> str:
    """Return what the user last said; a tool's answer may have come after it."""
    said_by_user = [turn["content"] for turn in messages if turn["role"] == "user"]
    return str((said_by_user or [messages[-1]["content"]])[-1])


def _row(
    question: Question, answer: Answer, scores: dict[Any, tuple[float, ...]], index: int
) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": _asked(question.messages),
        "messages": question.messages,
        "reference": question.reference,
        "answer": answer.text,
        "prompt_ids": answer.prompt_ids,
        "metadata": question.metadata,
        **{name: values[index] for name, values in scores.items()},
    }
