"""Evaluate: the same questions to the tuned, merged model."""

from core.artifacts import Checkpoint, Evaluation, PhaseResult, Splits, write_json
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import BaselineReport, EvalReport
from tasks.context import RunContext, current
from tasks.data_figures import track_reads
from tasks.measure import (
    ENGINES,
    READS,
    Files,
    ask_everyday,
    ask_more,
    ask_test_set,
    benchmarks,
    examinee,
    with_suites,
    write_answers,
)
from tasks.phase import Outcome, phase
from tasks.result_files import write_results
from tasks.score_figures import track_scores
from tasks.scores import headed


class Measured(PhaseResult[Evaluation, EvalReport]):
    """The scores of one model."""


def evaluate(
    tuned: Checkpoint, splits: Splits, config: EvaluationConfig, files: Files, template: ChatTemplateName
) -> Measured:
    """Ask the merged model every test question, and hold it against every arm of the base of this run."""
    base = current().reports["baseline"]
    measured: Measured = _evaluate(tuned, splits, base, config, files, template)
    return measured


@phase("evaluate", Measured, reads=(*READS, "tasks.result_files"), engines=ENGINES)
def _evaluate(
    context: RunContext,
    key: str,
    tuned: Checkpoint,
    splits: Splits,
    base: BaselineReport,
    config: EvaluationConfig,
    files: Files,
    template: ChatTemplateName,
) -> Outcome:
    """Ask as the base was asked in the arm zero_shot, and compare with all arms."""
    splits.verified()
    track_reads(context, splits, "test")
    one = examinee("evaluate", tuned.verified(), tuned.digest, splits, config, template)
    graded = ask_more(context, one, ask_test_set(context, one, "tuned", list), list)
    graded = ask_everyday(context, one, graded)
    del one
    report = with_suites(graded.report, benchmarks(context, "evaluate", tuned.path, config))
    folder = context.workspace.metrics
    answers = write_answers(folder / "evaluation-answers.jsonl", graded.rows)
    scores = write_json(folder / "evaluation.json", headed(report))
    results = write_results(folder, base, report, config)
    track_scores(context, (report,))
    outputs = (scores, answers, *results)
    return Outcome(Measured(artifact=Evaluation.of(answers), report=report), outputs, graded.note)
