"""Baseline: how good is the base model before anything is trained?"""

from core.artifacts import Checkpoint, Splits
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig
from tasks.context import RunContext
from tasks.measure import ENGINES, READS, Measured, measure
from tasks.phase import Outcome, phase


@phase("baseline", Measured, reads=READS, engines=ENGINES)
def baseline(
    context: RunContext,
    key: str,
    base: Checkpoint,
    splits: Splits,
    config: EvaluationConfig,
    template: ChatTemplateName,
) -> Outcome:
    """Ask the base model every test question."""
    return measure(context, "baseline", "baseline", base.verified(), base.digest, splits, config, template)
