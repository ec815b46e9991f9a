"""Evaluate: the same questions to the tuned, merged model."""

from core.artifacts import Checkpoint, Evaluation, PhaseResult, Splits, write_json
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import EvalReport
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.measure import (
    ENGINES,
    READS,
    Files,
    ask_more,
    ask_test_set,
    benchmarks,
    examinee,
    with_suites,
    write_answers,
)
from tasks.phase import Outcome, phase
from tasks.score_figures import track_scores
from tasks.scores import headed


class Measured(PhaseResult[Evaluation, EvalReport]):
    """The scores of one model."""


@phase("evaluate", Measured, reads=READS, engines=ENGINES)
def evaluate(
    context: RunContext,
    key: str,
    tuned: Checkpoint,
    splits: Splits,
    config: EvaluationConfig,
    files: Files,
    template: ChatTemplateName,
) -> Outcome:
    """Ask the merged model every test question, as the base was asked in the arm zero_shot."""
    splits.verified()
    track_reads(context, splits, "test")
    one = examinee("evaluate", tuned.verified(), tuned.digest, splits, config, template)
    graded = ask_more(context, one, ask_test_set(context, one, "tuned", list), list)
    del one
    report = with_suites(graded.report, benchmarks(context, "evaluate", tuned.path, config))
    answers = write_answers(context.workspace.metrics / "evaluation-answers.jsonl", graded.rows)
    scores = write_json(context.workspace.metrics / "evaluation.json", headed(report))
    track_scores(context, (report,))
    return Outcome(Measured(artifact=Evaluation.of(answers), report=report), (scores, answers), graded.note)
