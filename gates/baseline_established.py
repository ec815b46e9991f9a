"""Do we know what the base model can do, well enough to compare with it?"""

from itertools import chain

from core.data.reports import SplitReport
from core.evaluation.reports import BaselineReport, EvalReport
from gates.evidence import comparable, honest, whole
from gates.thresholds import BaselineEstablished
from gates.verdict import Check, Verdict, at_least, at_most, equals, is_true, limit

ARMS = ("zero_shot", "few_shot", "prompted")
"""Ways of asking an untrained model."""


def baseline_established(
    baseline: BaselineReport | None,
    splits: SplitReport | None,
    thresholds: BaselineEstablished,
    compare_to: str = "best",
) -> Verdict:
    """Judge the base model's measurement, arm by arm: on this test file, on enough examples, adding up.

    A low score does not close this gate. It is a measurement, not a merit.

    Args:
        baseline: The base model's evaluations, or None if there are none.
        splits: What the split phase counted, or None if it left no report.
        thresholds: The limits.
        compare_to: The arm that the tuned model must beat; it must be there before anything is trained.
    """
    measured, presence = whole("baseline", baseline, BaselineReport)
    split, split_presence = whole("split", splits, SplitReport)
    checks = [presence, split_presence]
    if measured is not None:
        checks += [*inventory(measured), *_arm_to_beat(measured, compare_to)]
        checks += chain.from_iterable(_measured(arm, thresholds) for arm in measured.arms)
        checks += chain.from_iterable(_like_the_first(arm, measured.arms[0]) for arm in measured.arms[1:])
    if measured is not None and split is not None:
        checks += chain.from_iterable(_on_the_test_file(arm, split) for arm in measured.arms)
    return Verdict.of("baseline-established", checks)


def inventory(measured: BaselineReport) -> list[Check]:
    """Check that there are arms, each once, and none by a name that is no way of asking the base."""
    names = [arm.arm for arm in measured.arms]
    strangers = sorted(set(names) - set(ARMS))
    return [
        at_least("baseline arms", len(names), 1),
        equals("baseline distinct arms", len(set(names)), len(names)),
        is_true("baseline arms known", not strangers, ", ".join(strangers)),
    ]


def _arm_to_beat(measured: BaselineReport, wanted: str) -> list[Check]:
    names = [arm.arm for arm in measured.arms]
    told = (
        f"gates.model_performance.compare_to is {wanted}; the base was asked: {', '.join(names) or 'nothing'}"
    )
    return [] if wanted == "best" else [is_true("baseline arm to beat", wanted in names, told)]


def _measured(scored: EvalReport, thresholds: BaselineEstablished) -> list[Check]:
    """Check one arm, and that later reports will have something to be compared with."""
    label = scored.arm
    return [
        *honest(label, scored),
        is_true(f"{label} model known", bool(scored.model_digest.strip())),
        is_true(f"{label} prompts known", bool(scored.decoding.prompt_digest.strip())),
        limit(at_least(f"{label} examples of the config", scored.n, thresholds.min_examples)),
    ]


def _like_the_first(scored: EvalReport, first: EvalReport) -> list[Check]:
    label = f"{scored.arm} and {first.arm},"
    return [
        *comparable(label, scored, first),
        equals(f"{label} model", scored.model_digest, first.model_digest),
    ]


def _on_the_test_file(scored: EvalReport, split: SplitReport) -> list[Check]:
    return [
        equals(f"{scored.arm} test file", scored.split_digest, split.digests.get("test")),
        at_most(f"{scored.arm} examples within the test split", scored.n, split.test),
    ]
