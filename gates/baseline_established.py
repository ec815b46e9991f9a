"""Do we know what the base model can do, well enough to compare with it?"""

from core.data.reports import SplitReport
from core.evaluation.reports import EvalReport
from gates.evidence import honest, whole
from gates.thresholds import BaselineEstablished
from gates.verdict import Check, Verdict, at_least, at_most, equals, is_true, limit


def baseline_established(
    baseline: EvalReport | None, splits: SplitReport | None, thresholds: BaselineEstablished
) -> Verdict:
    """Judge the base model's measurement: on this test file, on enough examples, adding up.

    A low score does not close this gate. It is a measurement, not a merit.

    Args:
        baseline: The base model's evaluation, or None if there is none.
        splits: What the split phase counted, or None if it left no report.
        thresholds: The limits.
    """
    scored, scored_presence = whole("baseline", baseline, EvalReport)
    split, split_presence = whole("split", splits, SplitReport)
    checks = [scored_presence, split_presence]
    if scored is not None:
        checks += honest("baseline", scored)
        checks += _identified(scored)
        checks.append(limit(at_least("examples", scored.n, thresholds.min_examples)))
    if scored is not None and split is not None:
        checks.append(equals("test file", scored.split_digest, split.digests.get("test")))
        checks.append(at_most("examples within the test split", scored.n, split.test))
    return Verdict.of("baseline-established", checks)


def _identified(scored: EvalReport) -> list[Check]:
    """Check that later reports will have something to be compared with."""
    return [
        is_true("model known", bool(scored.model_digest.strip())),
        is_true("prompts known", bool(scored.decoding.prompt_digest.strip())),
    ]
