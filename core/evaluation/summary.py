"""Every arm in a line, the ones that no other beats in quality and diversity at once, and the verdicts in words."""

from collections.abc import Iterator, Sequence

from core.evaluation.attempts import no_collapse
from core.evaluation.config import LOWER_IS_BETTER
from core.evaluation.diversity import pareto_front
from core.evaluation.reports import Diversity, EvalReport
from core.evaluation.result_reports import ArmSummary, Contrast

UNKNOWN = "this arm's answers were not sampled"


def arm_summaries(arms: Sequence[EvalReport]) -> tuple[ArmSummary, ...]:
    """Sum up each arm, and tell which lie on the front of quality and diversity among those that were sampled.

    The front is of the point values: two arms whose intervals overlap may change places on another test set.

    Args:
        arms: The reports, all in the same primary metric.
    """
    placed = {arm.arm: _place(arm, arm.diversity) for arm in arms if arm.diversity}
    front = dict(zip(placed, pareto_front(list(placed.values())), strict=True))
    return tuple(_summary(arm, front.get(arm.arm)) for arm in arms)


def pareto_axes(metric: str) -> tuple[str, str]:
    """Name what arms are placed by, more being better: the primary metric, and how much answers differ."""
    return (f"-{metric}" if metric in LOWER_IS_BETTER else metric), "1 - self_bleu"


def _place(arm: EvalReport, drawn: Diversity) -> tuple[float, float]:
    """Return an arm's quality and diversity, more of each being better."""
    return (-arm.value if arm.metric in LOWER_IS_BETTER else arm.value), 1 - drawn.self_bleu


def _summary(arm: EvalReport, is_optimal: bool | None) -> ArmSummary:
    drawn = arm.diversity
    names = ("diversity", "pass_at", "usq_at", "collapse_point", "pareto_optimal")
    absent = {} if drawn else dict.fromkeys(names, UNKNOWN)
    if drawn and drawn.collapse_point is None:
        absent["collapse_point"] = _no_collapse(drawn)
    return ArmSummary(
        arm=arm.arm,
        model_digest=arm.model_digest,
        n=arm.n,
        primary=arm.metrics[arm.metric],
        diversity=1 - drawn.self_bleu if drawn else None,
        pass_at=drawn.pass_at if drawn else None,
        usq_at={k: drawn.tries[k - 1].usq_at for k in drawn.pass_at} if drawn else None,
        collapse_point=drawn.collapse_point if drawn else None,
        pareto_optimal=is_optimal,
        absent=absent,
    )


def headlines(
    tuned: EvalReport, summaries: Sequence[ArmSummary], contrasts: Sequence[Contrast]
) -> tuple[str, ...]:
    """Say in words what came out.

    Args:
        tuned: The tuned model's report.
        summaries: Every arm.
        contrasts: The tuned model against each arm of the base.
    """
    return (
        *(_compared(one) for one in contrasts if one.metric == tuned.metric),
        *(_sampled(tuned.diversity) if tuned.diversity else ()),
        *_front(summaries),
    )


def _no_collapse(drawn: Diversity) -> str:
    return no_collapse([one.pass_at for one in drawn.tries])


def _compared(one: Contrast) -> str:
    apart = "".join(f"; {each}" for each in one.disagreement)
    return (
        f"{one.metric}: tuned {one.tuned_mean:.4g} against {one.against} {one.base_mean:.4g}, difference "
        f"{one.difference:+.4g} [{one.low:+.4g}, {one.high:+.4g}], {one.verdict} "
        f"({one.decided_by}, p = {one.p_holm:.2g} after Holm, n = {one.n}){apart}"
    )


def _sampled(drawn: Diversity) -> Iterator[str]:
    last = drawn.tries[-1]
    yield "tuned, sampled: " + ", ".join(
        f"pass@{k} {drawn.tries[k - 1].pass_at:.4g}" for k in sorted({1, last.k})
    )
    if last.efficiency is not None:
        yield (
            f"tuned, sampled: {last.k} tries gain {last.efficiency:.0%} of what as many independent tries would "
            f"(DER@{last.k} {last.der:.3g}, between {last.der_identical:.3g} and {last.der_independent:.3g})"
        )
    few, k = f"one more try adds less than {drawn.collapse_below:g} to pass@k", drawn.collapse_point
    if k is None:
        yield f"tuned, sampled: no k is known from which {few}: {_no_collapse(drawn)}"
    else:
        yield f"tuned, sampled: {few} from k = {k} of {drawn.samples} tries"


def _front(summaries: Sequence[ArmSummary]) -> Iterator[str]:
    known = [one for one in summaries if one.pareto_optimal is not None]
    if len(known) > 1:
        best = ", ".join(one.arm for one in known if one.pareto_optimal)
        yield f"no other arm beats these in quality and diversity at once: {best}"
