"""Is the tuned model better than its base, by enough, and did its training converge?"""

from collections.abc import Iterator, Sequence
from itertools import chain

from core.evaluation.reports import BaselineReport, EvalReport
from core.training.reports import TrainReport
from gates.baseline_established import inventory
from gates.evidence import adds_up, all_hold, comparable, honest, whole
from gates.forgetting import remembered
from gates.gains import Pair, Unit, better, changes, gain_interval, point_gain, resolution
from gates.thresholds import MetricLimit, ModelPerformance
from gates.verdict import Check, Verdict, at_least, at_most, below, differs, equals, is_true, limit

LOSS_FLOOR = 0.1
"""Nats. A best validation loss below this counts as this much when a rise is computed: near zero,
a doubling is noise."""


def model_performance(
    baseline: BaselineReport | None,
    tuned: EvalReport | None,
    training: TrainReport | None,
    thresholds: ModelPerformance,
) -> Verdict:
    """Judge the tuned model against its base on the same examples.

    The base was asked in several ways, and the gain is taken over one of them: the best unless the
    thresholds name another. The point gain must reach the threshold, and so must the lower end of its
    paired bootstrap interval: a gain that another draw of examples might not have shown is not yet a gain.

    Args:
        baseline: The base model's evaluations, or None if there are none.
        tuned: The merged model's evaluation, or None if there is none.
        training: What training reported, or None if it left no report.
        thresholds: The limits.
    """
    base, base_presence = whole("baseline", baseline, BaselineReport)
    after, after_presence = whole("tuned", tuned, EvalReport)
    run, run_presence = whole("training", training, TrainReport)
    checks = [base_presence, after_presence, run_presence]
    evidence = _arms_hold(base) if base else []
    evidence += honest("tuned", after) if after else []
    champion = compared_arm(base, thresholds.compare_to) if base else None
    if base:
        checks.append(_compared_with(base, champion, thresholds))
    if base and champion and after:
        evidence += list(chain.from_iterable(_paired(arm, after) for arm in base.arms))
        checks += _improved(champion, after, thresholds, sound=all_hold(evidence))
        checks += chain.from_iterable(
            _required(name, wanted, champion, after) for name, wanted in thresholds.require.items()
        )
        checks += remembered(base, after, thresholds.max_forgetting)
    if run:
        checks += _converged(run, thresholds)
    if champion and after and run:
        evidence += _lineage(champion, after, run)
    return Verdict.of("model-performance", [*checks, *evidence])


# The arm to beat


def compared_arm(base: BaselineReport, wanted: str) -> EvalReport | None:
    """Return the arm that the tuned model is held against; None if it was not measured.

    The best of several arms was chosen by the very scores it is judged on, which makes it look a
    little better than it is: an error on the strict side.

    Args:
        base: The base model's arms.
        wanted: An arm's name, or best.
    """
    if wanted != "best":
        return next((arm for arm in base.arms if arm.arm == wanted), None)
    champion: EvalReport | None = None
    for arm in base.arms:
        if champion is None or better(arm.metric, arm.value, champion.value):
            champion = arm
    return champion


def arm_to_beat(base: BaselineReport, wanted: str) -> EvalReport:
    """Return the arm that pages and cards show as the base: the one compared with, or the first there is."""
    return compared_arm(base, wanted) or base.arms[0]


def _compared_with(base: BaselineReport, champion: EvalReport | None, thresholds: ModelPerformance) -> Check:
    measured = ", ".join(f"{arm.arm} {arm.value:.3f}" for arm in base.arms) or "none"
    wanted = thresholds.compare_to
    if champion is None:
        return equals("arm to beat", "not measured", wanted, f"the base was asked: {measured}")
    return equals("arm to beat", champion.arm, champion.arm if wanted == "best" else wanted, measured)


def _arms_hold(base: BaselineReport) -> list[Check]:
    return [*inventory(base), *chain.from_iterable(honest(arm.arm, arm) for arm in base.arms)]


def _paired(arm: EvalReport, after: EvalReport) -> list[Check]:
    """Check that an arm was asked what the tuned model was, and zero_shot in the very same words."""
    label = f"tuned and {arm.arm},"
    prompts = equals if arm.arm == "zero_shot" else differs
    return [
        *comparable(label, after, arm),
        prompts(f"{label} prompts", after.decoding.prompt_digest, arm.decoding.prompt_digest),
        differs(f"{label} models", after.model_digest, arm.model_digest),
    ]


# The gain


def _improved(
    base: EvalReport, after: EvalReport, thresholds: ModelPerformance, *, sound: bool
) -> list[Check]:
    wanted, unit = thresholds.min_improvement, Unit(thresholds.mode, thresholds.zero_floor)
    pair = Pair(after.metric, base, after)
    gain = point_gain(after.metric, base.value, after.value, unit)
    checks = [at_least("gain", gain, wanted, _story(pair, thresholds, unit, sound=sound))]
    if not pair.falls:
        checks.append(at_least("tuned score", after.value, thresholds.zero_floor))
    if thresholds.require_interval:
        interval = gain_interval(pair, unit) if sound else None
        detail = resolution(pair, interval) if interval else "not computed: these scores cannot be paired"
        checks.append(at_least("gain, lower end", interval.low if interval else None, wanted, detail))
    return [limit(check) for check in checks]


def _story(pair: Pair, thresholds: ModelPerformance, unit: Unit, *, sound: bool) -> str:
    """Say what changed, in examples, and whether the threshold could be reached at all."""
    base, after = pair.base, pair.after
    parts = [
        f"{unit.mode}: {after.metric} {base.value:.3f} ({base.arm}) to {after.value:.3f} on {after.n} examples"
    ]
    parts += changes(pair) if sound else []
    # No perplexity is better than 1, as no score is.
    perfect = point_gain(pair.metric, base.value, 1.0, unit)
    if perfect is not None and perfect < thresholds.min_improvement:
        parts.append(f"even a perfect score would gain only {perfect:.3f}")
    return "; ".join(parts)


# Further demands


def _required(name: str, wanted: MetricLimit, base: EvalReport, after: EvalReport) -> Iterator[Check]:
    """Hold one metric against its demands; one that was not computed meets none of them."""
    now = _value(after, name)
    yield is_true(f"{name} measured", now is not None, "" if now is not None else "it is in no report")
    if now is not None:
        yield from adds_up(f"tuned {name}", after, name, now)
    if wanted.min is not None:
        yield limit(at_least(f"{name} min", now, wanted.min))
    if wanted.max is not None:
        yield limit(at_most(f"{name} max", now, wanted.max))
    if wanted.min_gain is not None or wanted.max_ratio is not None:
        yield from _against_base(name, wanted, base, now)


def _against_base(name: str, wanted: MetricLimit, base: EvalReport, now: float | None) -> Iterator[Check]:
    before = _value(base, name)
    yield from adds_up(f"{base.arm} {name}", base, name, before)
    told, gain, ratio = f"{base.arm} was not measured", None, None
    if before is not None and now is not None:
        told = f"{base.arm} {before:.3f}"
        gain = point_gain(name, before, now, Unit("absolute", 0.0))
        ratio = now / before if before > 0 else None
    if wanted.min_gain is not None:
        yield limit(at_least(f"{name} min_gain", gain, wanted.min_gain, told))
    if wanted.max_ratio is not None:
        yield limit(at_most(f"{name} max_ratio", ratio, wanted.max_ratio, told))


def _value(report: EvalReport, metric: str) -> float | None:
    entry = report.metrics.get(metric)
    return entry.value if entry else None


# The training


def _converged(run: TrainReport, thresholds: ModelPerformance) -> list[Check]:
    planned = at_most if run.stopped_early else equals
    early = "ended early: the validation loss no longer fell" if run.stopped_early else ""
    return [
        is_true("training ended without error", run.error is None, run.error or ""),
        at_least("training steps", run.steps, 1),
        planned("training steps of the plan", run.steps, run.total_steps, early),
        below("final training loss", run.final_loss, run.first_loss, "last window against the first"),
        limit(_steady(run, thresholds.max_eval_loss_rise)),
        *_survived(run, thresholds.max_merge_loss_rise),
    ]


def _steady(run: TrainReport, tolerance: float) -> Check:
    """Judge the adapter that was kept: what validation said at its step, against the best it ever said."""
    points = run.eval_losses
    if not points:
        return at_most("validation loss rise", None, tolerance, "no validation loss was recorded")
    best = min(point.loss for point in points)
    kept = [point.loss for point in points if point.step == run.kept_step]
    last = kept[-1] if kept else max(points, key=lambda point: point.step).loss
    rise = (last - best) / max(best, LOSS_FLOOR)
    which = f"kept at step {run.kept_step}" if kept else "last"
    return at_most("validation loss rise", rise, tolerance, f"best {best:.3f}, {which} {last:.3f}")


def _survived(run: TrainReport, tolerance: float) -> list[Check]:
    """Judge whether merging kept what was trained: a base held in 4 bits is not the one that is merged into."""
    if not run.eval_losses:
        return []
    last = max(run.eval_losses, key=lambda point: point.step)
    trained = next((point.loss for point in run.eval_losses if point.step == run.kept_step), last.loss)
    merged, name = run.merged_eval_loss, "merged validation loss rise"
    if merged is None:
        return [limit(at_most(name, None, tolerance, "the merged model's loss was not measured"))]
    rise = (merged - trained) / max(trained, LOSS_FLOOR)
    return [limit(at_most(name, rise, tolerance, f"{trained:.3f} trained, {merged:.3f} merged"))]


def _lineage(base: EvalReport, after: EvalReport, run: TrainReport) -> Sequence[Check]:
    return [
        equals("baseline model", base.model_digest, run.base_digest, "the one that was tuned"),
        equals("tuned model", after.model_digest, run.merged_digest, "the one that training merged"),
        differs("tuned model is not the base", after.model_digest, run.base_digest),
        is_true("training data known", bool(run.train_digest.strip())),
        differs("training data is not the test file", run.train_digest, after.split_digest),
    ]
