"""What baseline and evaluate share: ask a PyTorch model the test questions and keep every answer."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from core.artifacts import Evaluation, PhaseResult, Splits, file_digest, write_json, write_jsonl
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import EvalReport
from tasks.context import RunContext
from tasks.phase import Outcome

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer

READS = (
    "core.evaluation.evaluate",
    "core.evaluation.generation",
    "core.evaluation.graders",
    "core.evaluation.statistics",
    "core.data.chat",
    "core.data.templates",
    "core.models.loading",
    "tasks.measure",
)


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
) -> Outcome:
    """Evaluate a model folder on the test split and write its scores and answers."""
    from core.evaluation.evaluate import evaluate
    from core.evaluation.generation import TorchResponder
    from core.models.loading import load_folder

    splits.verified()
    if context.phase_run:
        context.phase_run.dataset(splits.test, file_digest(splits.test), "evaluation")
    model = load_folder(folder)
    result = evaluate(
        TorchResponder(model, chat_tokenizer(context, folder), config.batch_size),
        splits.test,
        config,
        arm=arm,
        model_digest=digest,
        clock=time.monotonic,
        tick=lambda done, total: context.watcher.advanced(phase, done, total, "questions"),
    )
    name = "baseline" if arm == "baseline" else "evaluation"
    scores = write_json(context.workspace.metrics / f"{name}.json", result.report)
    answers = context.workspace.metrics / f"{name}-answers.jsonl"
    write_jsonl(answers, result.rows)
    value = result.report.metrics[config.primary_metric]
    note = f"{config.primary_metric} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], n={value.n}"
    return Outcome(Measured(artifact=Evaluation.of(scores), report=result.report), (scores, answers), note)


def chat_tokenizer(context: RunContext, folder: Path) -> "ChatTokenizer":
    """Load a model's tokenizer with the chat template it speaks."""
    from core.data.chat import ChatTokenizer
    from core.data.templates import template_for
    from core.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    return ChatTokenizer(tokenizer, template_for(tokenizer, context.chat_template))
