"""The forgetting guard: everyday multiple-choice questions, scored by likelihood."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from core.artifacts import fingerprint
from core.config import Frozen
from core.errors import ConfigError, DataError
from core.evaluation.reports import Suite
from core.evaluation.responders import Message, Responder, Scored, Scorer, Tick
from core.evaluation.statistics import mean_interval

SHIPPED = Path(__file__).parents[2] / "data" / "general" / "general.jsonl"


class Choice(Frozen):
    """A question with several answers, one of them right."""

    question: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)
    """Index of the right choice, from 0."""
    topic: str = ""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} names none of {len(self.choices)} choices")
        if len(set(self.choices)) < len(self.choices) or not all(text.strip() for text in self.choices):
            raise ValueError("choices must differ and hold text")
        return self


def read_choices(path: Path | None = None) -> list[Choice]:
    """Read a set of multiple-choice questions, JSONL; without a path the shipped one.

    Raises:
        DataError: If the file is missing or empty, or a line is no such question.
    """
    file = path or SHIPPED
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the set of general questions cannot be read ({type(error).__name__})",
            where=str(file),
            fix="set evaluation.general.path to a set of your own, or evaluation.general.enabled: false",
        ) from error
    found = [_choice(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError("the set of general questions is empty", where=str(file))
    return found


def general(
    responder: Responder,
    choices: Sequence[Choice],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    tick: Tick = lambda done, total: None,
) -> Suite:
    """Ask everyday questions, and see whether the right choice is the likeliest answer.

    Every choice is scored on its own as the assistant's answer to the question, in the template that the model is
    asked everything else in. Its likelihood is divided by its bytes, so that long choices are not at a
    disadvantage; the token that ends the answer does not count, for a base may never have seen it.

    Args:
        responder: The model.
        choices: The questions.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval.
        seed: Decides the resamples.
        tick: Progress listener.

    Raises:
        ConfigError: If the responder cannot tell likelihoods.
    """
    if not isinstance(responder, Scorer):
        raise ConfigError(
            f"{type(responder).__name__} cannot tell likelihoods, which general questions need",
            where="evaluation.general",
            fix="set enabled: false",
        )
    prompts: list[list[Message]] = [
        [{"role": "user", "content": one.question}] for one in choices for _ in one.choices
    ]
    texts = [text for one in choices for text in one.choices]
    scored = responder.score(prompts, [{"role": "assistant", "content": text} for text in texts], tick)
    likeliness = iter([_per_byte(each, text) for each, text in zip(scored, texts, strict=True)])
    scores = tuple(_right(one, [next(likeliness) for _ in one.choices]) for one in choices)
    ends = mean_interval(scores, resamples=resamples, confidence=confidence, seed=seed)
    return Suite(
        name="general",
        metric="accuracy",
        value=ends.value,
        low=ends.low,
        high=ends.high,
        n=len(scores),
        digest=fingerprint(*(one.model_dump(mode="json") for one in choices)),
        scores=scores,
    )


def _per_byte(scored: Scored, text: str) -> float:
    return -(scored.nll - scored.end) / len(text.encode())


def _right(question: Choice, likeliness: Sequence[float]) -> float:
    """Return 1 if the right choice is likelier than every other; a tie is no knowledge."""
    own = likeliness[question.answer]
    return float(all(own > other for place, other in enumerate(likeliness) if place != question.answer))


def _choice(line: str, where: str) -> Choice:
    try:
        return Choice.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        what = f"no JSON ({error})"
    raise DataError(what, where=where, fix="write {question, choices, answer} on each line")
