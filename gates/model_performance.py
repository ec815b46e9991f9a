"""Is the tuned model better than its base, by enough, and did its training converge?"""

from statistics import pstdev

from core.evaluation.reports import EvalReport
from core.evaluation.statistics import (
    Interval,
    detectable_difference,
    mcnemar,
    paired_difference,
    paired_relative_gain,
)
from core.training.reports import TrainReport
from gates.evidence import all_hold, comparable, honest, whole
from gates.thresholds import ModelPerformance
from gates.verdict import ROUNDING, Check, Verdict, at_least, at_most, below, differs, equals, is_true, limit

LOSS_FLOOR = 0.1
"""Nats. A best validation loss below this counts as this much when a rise is computed: near zero,
a doubling is noise."""

POWER = 0.8
"""Chance of detection behind what a test set "could have detected"."""


def model_performance(
    baseline: EvalReport | None,
    tuned: EvalReport | None,
    training: TrainReport | None,
    thresholds: ModelPerformance,
) -> Verdict:
    """Judge the tuned model against its base on the same examples.

    The point gain must reach the threshold, and so must the lower end of its paired bootstrap
    interval: a gain that another draw of examples might not have shown is not yet a gain.

    Args:
        baseline: The base model's evaluation, or None if there is none.
        tuned: The merged model's evaluation, or None if there is none.
        training: What training reported, or None if it left no report.
        thresholds: The limits.
    """
    base, base_presence = whole("baseline", baseline, EvalReport)
    after, after_presence = whole("tuned", tuned, EvalReport)
    run, run_presence = whole("training", training, TrainReport)
    checks = [base_presence, after_presence, run_presence]
    evidence = honest("baseline", base) if base else []
    evidence += honest("tuned", after) if after else []
    if base and after:
        evidence += _paired(base, after)
        checks += _improved(base, after, thresholds, sound=all_hold(evidence))
    if run:
        checks += _converged(run, thresholds)
    if base and after and run:
        evidence += _lineage(base, after, run)
    return Verdict.of("model-performance", [*checks, *evidence])


def _converged(run: TrainReport, thresholds: ModelPerformance) -> list[Check]:
    return [
        is_true("training ended without error", run.error is None, run.error or ""),
        at_least("training steps", run.steps, 1),
        equals("training steps of the plan", run.steps, run.total_steps),
        below("final training loss", run.final_loss, run.first_loss, "last window against the first"),
        limit(_steady(run, thresholds.max_eval_loss_rise)),
    ]


def _steady(run: TrainReport, tolerance: float) -> Check:
    if not run.eval_losses:
        return at_most("validation loss rise", None, tolerance, "no validation loss was recorded")
    best = min(point.loss for point in run.eval_losses)
    last = max(run.eval_losses, key=lambda point: point.step).loss
    rise = (last - best) / max(best, LOSS_FLOOR)
    return at_most("validation loss rise", rise, tolerance, f"best {best:.3f}, last {last:.3f}")


def _lineage(base: EvalReport, after: EvalReport, run: TrainReport) -> list[Check]:
    return [
        equals("baseline model", base.model_digest, run.base_digest, "the one that was tuned"),
        equals("tuned model", after.model_digest, run.merged_digest, "the one that training merged"),
        differs("tuned model is not the base", after.model_digest, run.base_digest),
        is_true("training data known", bool(run.train_digest.strip())),
        differs("training data is not the test file", run.train_digest, after.split_digest),
    ]


def _paired(base: EvalReport, after: EvalReport) -> list[Check]:
    prompts = (after.decoding.prompt_digest, base.decoding.prompt_digest)
    return [
        *comparable("tuned", after, base),
        equals("tuned prompts", *prompts),
        differs("tuned model is not the baseline's", after.model_digest, base.model_digest),
    ]


def _improved(
    base: EvalReport, after: EvalReport, thresholds: ModelPerformance, *, sound: bool
) -> list[Check]:
    wanted = thresholds.min_improvement
    checks = [
        at_least(
            "gain", _gain(base, after, thresholds), wanted, _story(base, after, thresholds, sound=sound)
        ),
        at_least("tuned score", after.value, thresholds.zero_floor),
    ]
    if thresholds.require_interval:
        interval = _interval(base, after, thresholds) if sound else None
        detail = (
            _resolution(base, after, interval) if interval else "not computed: these scores cannot be paired"
        )
        checks.append(at_least("gain, lower end", interval.low if interval else None, wanted, detail))
    return [limit(check) for check in checks]


def _gain(base: EvalReport, after: EvalReport, thresholds: ModelPerformance) -> float:
    gain = after.value - base.value
    return gain if thresholds.mode == "absolute" else gain / max(base.value, thresholds.zero_floor)


def _interval(base: EvalReport, after: EvalReport, thresholds: ModelPerformance) -> Interval:
    before, now = base.scores[base.metric], after.scores[after.metric]
    resamples, confidence, seed = after.resamples, after.confidence, after.seed
    if thresholds.mode == "absolute":
        return paired_difference(before, now, resamples=resamples, confidence=confidence, seed=seed)
    floor = thresholds.zero_floor
    return paired_relative_gain(
        before, now, floor=floor, resamples=resamples, confidence=confidence, seed=seed
    )


def _story(base: EvalReport, after: EvalReport, thresholds: ModelPerformance, *, sound: bool) -> str:
    """Say what changed, in examples, and whether the threshold could be reached at all."""
    parts = [f"{thresholds.mode}: {after.metric} {base.value:.3f} to {after.value:.3f} on {after.n} examples"]
    before, now = base.scores.get(base.metric, ()), after.scores.get(after.metric, ())
    if sound and set(before) | set(now) <= {0.0, 1.0}:
        flips = mcnemar(before, now)
        parts.append(f"{flips.fixed} fixed, {flips.broken} broken, McNemar p = {flips.p_value:.2g}")
    perfect = _gain(base, after.model_copy(update={"value": 1.0}), thresholds)
    if perfect < thresholds.min_improvement:
        parts.append(f"even a perfect score would gain only {perfect:.3f}")
    return "; ".join(parts)


def _resolution(base: EvalReport, after: EvalReport, interval: Interval) -> str:
    """Give the interval, and the difference that this many examples could have detected."""
    text = f"{after.confidence:.4g} interval {interval.low:.3f} to {interval.high:.3f}"
    changes = [b - a for a, b in zip(base.scores[base.metric], after.scores[after.metric], strict=True)]
    spread = pstdev(changes)
    if spread < ROUNDING or after.confidence >= 1:
        return text
    points = 100 * detectable_difference(after.n, confidence=after.confidence, power=POWER, spread=spread)
    return f"{text}; {after.n} examples could not have detected less than {points:.1f} points (power {POWER})"
