"""What MLflow shows of an evaluation: every metric by arm and by subgroup, with its interval."""

from collections.abc import Iterator, Sequence

from core.evaluation.reports import EvalReport, MetricValue
from tasks.context import RunContext


def track_scores(context: RunContext, arms: Sequence[EvalReport]) -> None:
    """Log the scores of arms as metrics, what k tries are worth as curves over k, and subgroups as a table too."""
    if run := context.phase_run:
        run.log(0, dict(score_figures(arms)))
        for k, figures in tries_curve(arms).items():
            run.log(k, figures)
        run.table(subgroup_rows(arms), "subgroups")


def score_figures(arms: Sequence[EvalReport]) -> Iterator[tuple[str, float]]:
    """Name every number of every arm, such as ``zero_shot.exact_match.low``."""
    for arm in arms:
        for metric, value in arm.metrics.items():
            yield from _ends(f"{arm.arm}.{metric}", value)
        for group in arm.subgroups:
            name = f"{arm.arm}.{_plain(group.key)}.{_plain(group.name)}"
            yield from ((f"{name}.{metric}", value.value) for metric, value in group.metrics.items())
        for suite in arm.suites:
            yield f"{arm.arm}.{_plain(suite.name)}.{_plain(suite.metric)}", suite.value
        if arm.diversity:
            yield from _diversity(arm)


def tries_curve(arms: Sequence[EvalReport]) -> dict[int, dict[str, float]]:
    """Name what k tries of every arm are worth, by k: MLflow draws it with k as the step."""
    curves: dict[int, dict[str, float]] = {}
    for arm in arms:
        for one in arm.diversity.tries if arm.diversity else ():
            values = {"pass_at": one.pass_at, "usq_at": one.usq_at, "independent_pass_at": one.independent,
                      "der": one.der, "der_independent": one.der_independent, "der_identical": one.der_identical,
                      "tries_efficiency": one.efficiency}  # fmt: skip
            named = {
                f"{arm.arm}.diversity.{what}_k": value for what, value in values.items() if value is not None
            }
            curves.setdefault(one.k, {}).update(named)
    return curves


def subgroup_rows(arms: Sequence[EvalReport]) -> list[dict[str, object]]:
    """Lay out subgroups as the rows of a table."""
    return [
        {
            "arm": arm.arm,
            "key": group.key,
            "value": group.name,
            "metric": metric,
            "score": value.value,
            "low": value.low,
            "high": value.high,
            "n": group.n,
        }
        for arm in arms
        for group in arm.subgroups
        for metric, value in group.metrics.items()
    ]


def _ends(name: str, value: MetricValue) -> Iterator[tuple[str, float]]:
    yield name, value.value
    yield f"{name}.low", value.low
    yield f"{name}.high", value.high


def _diversity(arm: EvalReport) -> Iterator[tuple[str, float]]:
    found, name = arm.diversity, f"{arm.arm}.diversity"
    if found is None:
        return
    yield f"{name}.self_bleu", found.self_bleu
    if found.type_token_ratio is not None:
        yield f"{name}.type_token_ratio", found.type_token_ratio
    yield f"{name}.mean_words", found.mean_words
    if found.semantic is not None:
        yield f"{name}.semantic", found.semantic
    yield from ((f"{name}.distinct_{n}", value) for n, value in found.distinct.items())
    for k, value in found.pass_at.items():
        yield f"{name}.pass_at_{k}", value
        yield f"{name}.usq_at_{k}", found.tries[k - 1].usq_at
    if found.collapse_point is not None:
        yield f"{name}.collapse_point", float(found.collapse_point)
    for figure, spread in found.spread.items():
        if spread.deviation is not None:
            yield f"{name}.{figure}.deviation", spread.deviation


def _plain(text: str) -> str:
    # A slash would make MLflow file it under a folder.
    return text.replace("/", "_")
