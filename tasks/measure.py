"""What baseline and evaluate share: ask a PyTorch model the test questions and keep every answer."""

import time
from pathlib import Path

from core.artifacts import Evaluation, PhaseResult, Splits, write_json, write_jsonl
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import EvalReport
from tasks.chat_tokens import READS as CHAT
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.phase import Outcome
from tasks.scores import headed
from tasks.uses import use_test_set

READS = (
    "core.evaluation.evaluate",
    "core.evaluation.generation",
    "core.evaluation.graders",
    "core.evaluation.statistics",
    "tasks.measure",
    "tasks.scores",
    *CHAT,
)
ENGINES = ("torch", "transformers", "tokenizers")


class Measured(PhaseResult[Evaluation, EvalReport]):
    """The scores of one model."""


def measure(
    context: RunContext,
    phase: str,
    arm: str,
    folder: Path,
    digest: str,
    splits: Splits,
    config: EvaluationConfig,
    template: ChatTemplateName,
) -> Outcome:
    """Evaluate a model folder on the test split and write its scores and answers."""
    from core.evaluation.evaluate import evaluate
    from core.evaluation.generation import TorchResponder
    from core.models.loading import load_folder

    splits.verified()
    track_reads(context, splits, "test")
    model = load_folder(folder)
    result = evaluate(
        TorchResponder(model, chat_tokenizer(folder, template), config.batch_size),
        splits.test,
        config,
        arm=arm,
        model_digest=digest,
        clock=time.monotonic,
        tick=lambda done, total: context.watcher.advanced(phase, done, total, "questions"),
    )
    use_test_set(result.report.split_digest, phase, arm)
    name = "baseline" if arm == "baseline" else "evaluation"
    scores = write_json(context.workspace.metrics / f"{name}.json", headed(result.report))
    answers = context.workspace.metrics / f"{name}-answers.jsonl"
    write_jsonl(answers, result.rows)
    value = result.report.metrics[config.primary_metric]
    note = f"{config.primary_metric} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], n={value.n}"
    return Outcome(Measured(artifact=Evaluation.of(answers), report=result.report), (scores, answers), note)
