"""Baseline: how good is the base model before anything is trained, however one asks it?"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from core.artifacts import Checkpoint, Evaluation, PhaseResult, Splits
from core.data.config import ChatTemplateName
from core.errors import DataError
from core.evaluation.config import Arm, EvaluationConfig
from core.evaluation.reports import BaselineReport
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.measure import (
    ENGINES,
    READS,
    Examinee,
    Files,
    Graded,
    ask_everyday,
    ask_more,
    ask_test_set,
    benchmarks,
    examinee,
    with_suites,
    write_answers,
)
from tasks.phase import Outcome, phase
from tasks.score_figures import track_scores
from tasks.scores import answers_of, forget_arms

if TYPE_CHECKING:
    from core.evaluation.arms import FewShot
    from core.evaluation.evaluate import Ask


class Baselines(PhaseResult[Evaluation, BaselineReport]):
    """The answers of the first arm, and the scores of all."""


class Way(NamedTuple):
    """One way of asking."""

    arm: Arm
    ask: "Ask"


@phase("baseline", Baselines, reads=READS, engines=ENGINES)
def baseline(
    context: RunContext,
    key: str,
    base: Checkpoint,
    splits: Splits,
    config: EvaluationConfig,
    files: Files,
    template: ChatTemplateName,
) -> Outcome:
    """Ask the base model every test question in every way that is wanted."""
    splits.verified()
    track_reads(context, splits, "test")
    one = examinee("baseline", base.verified(), base.digest, splits, config, template)
    graded = list(_arms(context, one))
    del one
    written = [
        write_answers(answers_of(context.workspace.metrics, each.report.arm), each.rows) for each in graded
    ]
    forget_arms(context.workspace.metrics, written)
    first, *others = (each.report for each in graded)
    first = with_suites(first, benchmarks(context, "baseline", base.path, config))
    report = BaselineReport(arms=(first, *others))
    track_scores(context, report.arms)
    note = " · ".join(f"{each.report.arm} {each.note}" for each in graded)
    return Outcome(Baselines(artifact=Evaluation.of(written[0]), report=report), tuple(written), note)


def _arms(context: RunContext, one: Examinee) -> Iterator[Graded]:
    """Ask in one way after the other, and sample in each; everyday knowledge is asked for once."""
    for number, (arm, ask) in enumerate(_ways(context, one)):
        graded = ask_more(context, one, ask_test_set(context, one, arm, ask), ask)
        yield graded if number else ask_everyday(context, one, graded)


def _ways(context: RunContext, one: Examinee) -> Iterator[Way]:
    """Yield the ways of asking that the data allow: a plain text can be read in one way only."""
    from core.evaluation.questions import read_questions

    config, wanted = one.config.baseline, tuple(dict.fromkeys(one.config.baseline.arms))
    questions = read_questions(one.splits.test, one.config.max_examples, texts=True)
    asked = [question.messages for question in questions if question.messages]
    if not asked:
        yield Way("zero_shot", list)
        return
    for arm in wanted:
        if arm != "few_shot":
            yield Way(arm, functools.partial(_worded, arm, config.prompt))
            continue
        try:
            few = _few_shot(one, asked)
        except DataError as error:
            if len(wanted) == 1:
                raise
            context.watcher.noted("baseline", f"few_shot left out: {error.what}")
            continue
        yield Way(arm, few)
        if few.shortened:
            context.watcher.noted(
                "baseline", f"{few.shortened} questions had room for fewer than {few.most} solved examples"
            )


def _few_shot(one: Examinee, asked: list[list[dict[str, Any]]]) -> "FewShot":
    """Make the arm that asks after solved examples; without any it would be zero_shot by another name."""
    from core.evaluation.arms import FewShot, draw_shots

    shots = draw_shots(one.splits.train, one.config.baseline.shots, one.config.seed)
    few = FewShot(shots, one.model.prompt_length, one.model.window, one.config.max_new_tokens)
    if not any(few.room(messages) for messages in asked):
        raise DataError(
            f"the model's window of {one.model.window} tokens has no room for a solved example before any question",
            where="evaluation.baseline.arms",
            fix="take few_shot out of evaluation.baseline.arms, or lower evaluation.max_new_tokens",
        )
    return few


def _worded(arm: Arm, prompt: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from core.evaluation.arms import arm_messages

    return arm_messages(arm, messages, (), prompt)
