"""Ask a model every test question and grade the answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import file_digest
from core.evaluation.aggregate import PERPLEXITY
from core.evaluation.config import EvaluationConfig
from core.evaluation.metrics import Asked, Tools, measure, wanted
from core.evaluation.questions import Question, read_questions
from core.evaluation.reports import Decoding, EvalReport
from core.evaluation.responders import Answer, Message, Responder, Tick
from core.evaluation.subgroups import subgroups

__all__ = ["Answer", "Evaluated", "Message", "Question", "Responder", "Tick", "evaluate", "prompt_digest", "read_questions"]  # fmt: skip

Ask = Callable[[list[Message]], list[Message]]
"""Turns a question's conversation into the one the model is given; see ``core.evaluation.arms``."""


class Evaluated(NamedTuple):
    """The report, and one row per example for people to read."""

    report: EvalReport
    rows: list[dict[str, Any]]


def evaluate(
    responder: Responder,
    test: Path,
    config: EvaluationConfig,
    *,
    arm: str,
    model_digest: str,
    clock: Callable[[], float],
    tick: Tick,
    ask: Ask = list,
    tools: Tools = Tools(),  # noqa: B008 - immutable
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
        ask: Turns a question's conversation into what the model is given.
        tools: What some metrics need beside the answers.

    Raises:
        DataError: If there is nothing to ask, or a metric fails on an example.
        ConfigError: If a metric lacks what it needs.
    """
    names = wanted(config)
    questions = read_questions(test, config.max_examples, texts=names == (PERPLEXITY,))
    prompts = [ask(q.messages) if q.messages else [] for q in questions]
    began = clock()
    answers = _answers(responder, prompts, config.max_new_tokens, tick)
    seconds = max(clock() - began, 1e-9)
    asked = [Asked(*each) for each in zip(questions, prompts, answers, strict=True)]
    measured = {name: measure(name, asked, responder, config, tools) for name in names}
    report = EvalReport(
        arm=arm,
        metric=config.primary_metric,
        value=measured[config.primary_metric].value.value,
        n=len(questions),
        metrics={name: each.value for name, each in measured.items()},
        ids=tuple(q.id for q in questions),
        scores={name: each.scores for name, each in measured.items()},
        weights={name: each.weights for name, each in measured.items() if each.weights},
        subgroups=subgroups([q.metadata for q in questions], measured, config),
        split_digest=file_digest(test),
        model_digest=model_digest,
        decoding=_decoding(answers, config),
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        tokens_per_second=sum(a.n_generated for a in answers) / seconds,
    )
    rows = [_row(one, {name: m.scores[i] for name, m in measured.items()}) for i, one in enumerate(asked)]
    return Evaluated(report, rows)


def prompt_digest(answers: Sequence[Answer]) -> str:
    """Digest every prompt's token ids, in order: equal digests mean equal questions to the model."""
    text = json.dumps([a.prompt_ids for a in answers], separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _answers(
    responder: Responder, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick
) -> list[Answer]:
    if all(not prompt for prompt in prompts):
        return [Answer("", [], 0)] * len(prompts)
    return responder.answer(prompts, max_new_tokens, tick)


def _decoding(answers: Sequence[Answer], config: EvaluationConfig) -> Decoding:
    asked = any(answer.prompt_ids for answer in answers)
    return Decoding(
        strategy="greedy" if asked else "none",
        max_new_tokens=config.max_new_tokens,
        prompt_digest=prompt_digest(answers),
    )


def _said_last(messages: Sequence[Message]) -> str:
    """Return what the user last said; a tool's answer may have come after it."""
    said_by_user = [turn["content"] for turn in messages if turn["role"] == "user"]
    return str((said_by_user or [messages[-1]["content"]])[-1]) if messages else ""


def _row(asked: Asked, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "id": asked.question.id,
        "question": _said_last(asked.question.messages),
        "messages": asked.question.messages,
        "reference": asked.question.reference,
        "answer": asked.answer.text,
        "prompt_ids": asked.answer.prompt_ids,
        "metadata": asked.question.metadata,
        **scores,
    }
