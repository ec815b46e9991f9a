"""Evaluate: the same questions to the tuned, merged model."""

from core.artifacts import Checkpoint, Splits
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig
from tasks.context import RunContext
from tasks.measure import ENGINES, READS, Measured, measure
from tasks.phase import Outcome, phase


@phase("evaluate", Measured, reads=READS, engines=ENGINES)
def evaluate(
    context: RunContext,
    key: str,
    tuned: Checkpoint,
    splits: Splits,
    config: EvaluationConfig,
    template: ChatTemplateName,
) -> Outcome:
    """Ask the merged model every test question."""
    return measure(context, "evaluate", "tuned", tuned.verified(), tuned.digest, splits, config, template)
