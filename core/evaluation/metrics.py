"""From answers to the scores of a metric, whichever it is: text, likelihood, encoder or judge."""

import math
import re
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import ConfigError, DataError, FactoryError
from core.evaluation.aggregate import PERPLEXITY, Measured, aggregate
from core.evaluation.config import EvaluationConfig
from core.evaluation.graders import GRADERS
from core.evaluation.own_graders import Grade, own_grader
from core.evaluation.questions import Question
from core.evaluation.responders import Answer, Message, Responder, Scorer, Tick

SIMILARITY, JUDGE = "similarity", "judge"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Tools(NamedTuple):
    """What some metrics need beside the answers."""

    base: Path = Path()
    """Folder that the path of a callable grader is relative to: the config's."""
    judge_key: str | None = None
    """Key for the judge's endpoint."""
    verdicts: Path | None = None
    """File that keeps the judge's verdicts, so that none is paid for twice."""
    tick: Tick = lambda done, total: None
    """Progress of what comes after the answers."""


class Asked(NamedTuple):
    """A question, the conversation that the model was given, and what it said."""

    question: Question
    prompt: list[Message]
    answer: Answer


def wanted(config: EvaluationConfig) -> tuple[str, ...]:
    """Return the metrics to compute, each once; the primary one is always among them."""
    return tuple(dict.fromkeys((*config.metrics, config.primary_metric)))


def check_metrics(config: EvaluationConfig, base: Path) -> None:
    """Say before any model is loaded whether the metrics have what they need.

    Args:
        config: The evaluation block.
        base: Folder that the paths of callable graders are relative to.

    Raises:
        ConfigError: If a grader is incomplete, or a metric's encoder or judge is not named.
    """
    names = wanted(config)
    for name in names:
        if name in config.graders:
            own_grader(name, config.graders[name], base)
    if SIMILARITY in names and config.encoder.model is None:
        raise ConfigError(
            "the metric similarity needs an encoder",
            where="evaluation.encoder.model",
            fix="name a folder or Hub id, such as sentence-transformers/all-MiniLM-L6-v2",
        )
    if SIMILARITY in names or config.diversity.samples:
        _check_encoder(config.encoder.model, base)
    if JUDGE in names and config.judge.url is None:
        raise ConfigError(
            "the metric judge needs an endpoint",
            where="evaluation.judge.url",
            fix="give the base address of an OpenAI-compatible server, such as http://127.0.0.1:8080/v1",
        )


def _check_encoder(model: str | None, base: Path) -> None:
    """Find out that a folder is missing or empty before hours of answers; a Hub id is left to the loader."""
    if model is None or (not (base / model).exists() and _HUB_ID.fullmatch(model)):
        return
    if not (base / model / "config.json").is_file():
        raise ConfigError(
            f"there is no encoder in {base / model}",
            where="evaluation.encoder.model",
            fix="name a folder with config.json, tokenizer.json and *.safetensors, or a Hub id",
        )


def measure(
    name: str, asked: Sequence[Asked], responder: Responder, config: EvaluationConfig, tools: Tools
) -> Measured:
    """Compute one metric.

    Args:
        name: The metric.
        asked: Questions with their answers.
        responder: The model that answered, for metrics that need its likelihoods.
        config: Settings of graders, encoder, judge and bootstrap.
        tools: Folder, key and cache for the metrics that need one.

    Raises:
        DataError: If a grader fails on an example; the message names both.
        ConfigError: If the metric lacks what it needs.
    """
    if name == PERPLEXITY:
        scored = _losses(asked, responder, tools)
        return aggregate(name, [s / t for s, t in scored], config, [t for _, t in scored])
    if name == SIMILARITY:
        scores = _similarities(asked, config)
    elif name == JUDGE:
        scores = _verdicts(asked, config, tools)
    elif name in config.graders:
        scores = _graded(name, asked, own_grader(name, config.graders[name], tools.base))
    else:
        scores = _graded(name, asked, _builtin(name))
    return aggregate(name, scores, config)


def _builtin(name: str) -> Grade:
    grader = GRADERS[name]
    return lambda answer, reference, metadata: grader(answer, reference)


def _graded(name: str, asked: Sequence[Asked], grade: Grade) -> list[float]:
    return [_checked(name, one, grade) for one in asked]


def _checked(name: str, asked: Asked, grade: Grade) -> float:
    question = asked.question
    where = f"metric {name}, example {question.id}"
    try:
        score: Any = grade(asked.answer.text, question.reference, question.metadata)
    except FactoryError as error:
        what, fix = getattr(error, "what", str(error)), getattr(error, "fix", "")
        raise DataError(what, where=where, fix=fix) from error
    except (Exception, SystemExit) as error:  # A grader of the user's may raise anything.
        raise DataError(f"the grader failed: {type(error).__name__}: {error}", where=where) from error
    # A bool is what a yes-or-no grader gives; NumPy's own is no Real. NaN is never within bounds.
    is_number = isinstance(score, Real | np.bool_)
    if not is_number or not 0 <= score <= 1:
        raise DataError(f"the grader gave {score!r}, which is no number from 0 to 1", where=where)
    return float(score)


def _losses(asked: Sequence[Asked], responder: Responder, tools: Tools) -> list[tuple[float, int]]:
    if not isinstance(responder, Scorer):
        raise ConfigError(
            f"{type(responder).__name__} cannot tell likelihoods, which perplexity needs",
            where="evaluation.metrics",
            fix="leave perplexity out",
        )
    scored = responder.score([a.prompt for a in asked], [a.question.turn for a in asked], tools.tick)
    for one, each in zip(asked, scored, strict=True):
        if each.tokens < 1 or not math.isfinite(each.nll):
            raise DataError(
                f"a loss of {each.nll} over {each.tokens} tokens has no perplexity",
                where=f"metric perplexity, example {one.question.id}",
            )
    return [(each.nll, each.tokens) for each in scored]


def _similarities(asked: Sequence[Asked], config: EvaluationConfig) -> list[float]:
    check_metrics(config.model_copy(update={"metrics": (SIMILARITY,), "primary_metric": SIMILARITY}), Path())
    from core.evaluation.similarity import load_encoder

    encoder = load_encoder(str(config.encoder.model), config.encoder.device)
    return encoder.similarities([(a.answer.text, a.question.reference) for a in asked])


def _verdicts(asked: Sequence[Asked], config: EvaluationConfig, tools: Tools) -> list[float]:
    check_metrics(config.model_copy(update={"metrics": (JUDGE,), "primary_metric": JUDGE}), Path())
    from core.evaluation.judge import Case, Judge

    judge = Judge.of(config.judge, key=tools.judge_key, verdicts=tools.verdicts)
    return judge.scores(
        [Case(a.question.id, a.question.messages, a.question.reference, a.answer.text) for a in asked]
    )


def sample_metric(config: EvaluationConfig) -> str:
    """Name the metric that grades sampled answers: the primary one, or exact match if that is no text grader."""
    name = config.primary_metric
    return name if name in config.graders or name in GRADERS else "exact_match"


def answer_grader(config: EvaluationConfig, base: Path) -> Callable[[Question, str], float]:
    """Return what scores any answer to a question from 0 to 1, by ``sample_metric``.

    Args:
        config: Metrics and graders.
        base: Folder that the path of a callable grader is relative to.

    Raises:
        ConfigError: If the grader is incomplete.
    """
    name = sample_metric(config)
    grade = own_grader(name, config.graders[name], base) if name in config.graders else _builtin(name)

    def graded(question: Question, text: str) -> float:
        return _checked(name, Asked(question, [], Answer(text, [], 0)), grade)

    return graded
