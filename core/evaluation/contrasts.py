"""The tuned model against every way of asking the base, metric by metric, by paired tests over examples."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from core.evaluation.effects import Comparison, comparison, holm
from core.evaluation.reports import LOWER_IS_BETTER, EvalReport
from core.evaluation.result_reports import Contrast, Unpaired
from core.evaluation.statistics import Interval

SAMPLED = "diversity."
LESS_IS_MORE = frozenset({*LOWER_IS_BETTER, f"{SAMPLED}self_bleu"})
"""What is better, or more diverse, when smaller."""
NO_DIRECTION = f"{SAMPLED}mean_words"
"""Longer answers are neither better nor worse."""
Side = Literal["better", "worse"]
Verdict = Side | Literal["undecided", "no difference shown"]


class _Side(NamedTuple):
    """Scores of one model in one metric."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]


class _Compared(NamedTuple):
    against: str
    metric: str
    before: float
    after: float
    found: Comparison

    @property
    def decided_by(self) -> Literal["mcnemar", "wilcoxon"]:
        return "mcnemar" if self.found.flips else "wilcoxon"

    @property
    def p_value(self) -> float:
        return self.found.flips.p_value if self.found.flips else self.found.wilcoxon_p


def contrasts(
    arms: Sequence[EvalReport], tuned: EvalReport
) -> tuple[tuple[Contrast, ...], tuple[Unpaired, ...]]:
    """Compare the tuned model with every arm in all that both have scores of, example by example.

    Args:
        arms: Reports of the base.
        tuned: Report of the tuned model; its bootstrap settings are used.

    Returns:
        The comparisons, their p-values adjusted for their number, and what could not be compared.

    Raises:
        ValueError: If a score is not finite.
    """
    made: list[_Compared] = []
    left: list[Unpaired] = []
    for arm in arms:
        mine, theirs = _sides(tuned), _sides(arm)
        passed_over = {NO_DIRECTION, *(_doubles(mine) & _doubles(theirs))}
        for metric in dict.fromkeys(name for name in (*mine, *theirs) if name not in passed_over):
            reason = _unpaired(mine.get(metric), theirs.get(metric), arm, tuned)
            if reason:
                left.append(Unpaired(against=arm.arm, metric=metric, reason=reason))
            else:
                made.append(_compare(arm.arm, metric, theirs[metric], mine[metric], tuned))
    return tuple(_judged(made, 1 - tuned.confidence)), tuple(left)


def _sides(report: EvalReport) -> dict[str, _Side]:
    """Return every metric that has one number per example, or per question sampled on."""
    found = {metric: _Side(report.ids, scores) for metric, scores in report.scores.items()}
    drawn = report.diversity
    figures = drawn.by_question.items() if drawn else ()
    return found | {f"{SAMPLED}{name}": _Side(drawn.ids, values) for name, values in figures if drawn}


def _doubles(sides: dict[str, _Side]) -> set[str]:
    """Name the USQ@k that are pass@k, as they are for scores of 0 and 1: one comparison is enough."""
    twins = {
        name: name.replace("usq_at_", "pass_at_") for name in sides if name.startswith(f"{SAMPLED}usq_at_")
    }
    return {name for name, twin in twins.items() if sides.get(twin) == sides[name]}


def _unpaired(mine: _Side | None, theirs: _Side | None, arm: EvalReport, tuned: EvalReport) -> str:
    """Say why two models cannot be compared in a metric; nothing if they can."""
    if mine is None or theirs is None:
        return f"{'tuned' if mine is None else arm.arm} has no scores in it"
    if mine.ids != theirs.ids or arm.split_digest != tuned.split_digest:
        return "they were not asked the same questions"
    return "" if mine.scores else "there is no question"


def _compare(against: str, metric: str, base: _Side, tuned: _Side, report: EvalReport) -> _Compared:
    found = comparison(
        base.scores,
        tuned.scores,
        resamples=report.resamples,
        confidence=report.confidence,
        seed=report.seed,
    )
    means = [sum(side.scores) / len(side.scores) for side in (base, tuned)]
    return _Compared(against, metric, means[0], means[1], found)


def _judged(made: Sequence[_Compared], level: float) -> Iterator[Contrast]:
    """Give every comparison its verdict, adjusted among those of its kind."""
    kinds = [
        [place for place, one in enumerate(made) if one.metric.startswith(SAMPLED) is kind]
        for kind in (False, True)
    ]
    adjusted: dict[int, float] = {}
    for places in kinds:
        adjusted |= dict(zip(places, holm([made[place].p_value for place in places]), strict=True))
    yield from (_contrast(one, adjusted[place], level) for place, one in enumerate(made))


def _contrast(one: _Compared, p_holm: float, level: float) -> Contrast:
    found, flips, higher = one.found, one.found.flips, one.metric not in LESS_IS_MORE
    absent = (
        {}
        if flips
        else dict.fromkeys(("fixed", "broken", "odds_ratio", "mcnemar_p"), "not all scores are 0 or 1")
    )
    absent |= {} if found.cohens_dz is not None else {"cohens_dz": "all differences are the same"}
    absent |= {} if found.cohens_d is not None else {"cohens_d": "neither model's scores vary"}
    verdict, disagreement = _verdict(found, p_holm, level, higher)
    return Contrast(
        against=one.against,
        metric=one.metric,
        higher_is_better=higher,
        n=found.n,
        base_mean=one.before,
        tuned_mean=one.after,
        difference=found.difference.value,
        low=found.difference.low,
        high=found.difference.high,
        fixed=flips.fixed if flips else None,
        broken=flips.broken if flips else None,
        odds_ratio=found.odds_ratio,
        mcnemar_p=flips.p_value if flips else None,
        wilcoxon_p=found.wilcoxon_p,
        rank_biserial=found.rank_biserial,
        t_p=found.t_p,
        mann_whitney_p=found.mann_whitney_p,
        cohens_dz=found.cohens_dz,
        cohens_d=found.cohens_d,
        cliffs_delta=found.cliffs_delta,
        decided_by=one.decided_by,
        p_value=one.p_value,
        p_holm=p_holm,
        verdict=verdict,
        disagreement=disagreement,
        absent=absent,
    )


def _verdict(found: Comparison, p_holm: float, level: float, higher: bool) -> tuple[Verdict, tuple[str, ...]]:
    """Say which model is better, or that tests point apart, and what of them points where.

    A mean and its interval weigh how far scores moved, ranks how many did: a few examples that fell far can
    outweigh many that rose a little. McNemar's test is of the same count as the mean, and cannot point elsewhere.
    """
    if p_holm >= level:
        return "no difference shown", ()
    by_mean, by_ranks = _direction(found.difference.value, higher), _direction(found.rank_biserial, higher)
    told = () if found.flips else tuple(_disagreement(found.difference, by_mean, by_ranks))
    return (by_mean if by_mean and not told else "undecided"), told


def _disagreement(ends: Interval, by_mean: Side | None, by_ranks: Side | None) -> Iterator[str]:
    if by_mean != by_ranks:
        yield f"{by_ranks or 'equal'} by ranks, {by_mean or 'equal'} by the mean"
    if not (ends.low > 0 if ends.value > 0 else ends.high < 0):
        yield f"the interval of the mean, {ends.low:+.4g} to {ends.high:+.4g}, holds 0"


def _direction(difference: float, higher: bool) -> Side | None:
    """Name the side that a difference speaks for; none if it is 0."""
    if difference == 0:
        return None
    return "better" if (difference > 0) == higher else "worse"
