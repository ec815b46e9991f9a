"""What MLflow shows of an evaluation: every metric by arm and by subgroup, with its interval."""

from collections.abc import Iterator, Sequence

from core.evaluation.reports import EvalReport, MetricValue
from tasks.context import RunContext


def track_scores(context: RunContext, arms: Sequence[EvalReport]) -> None:
    """Log the scores of arms as metrics, and those of subgroups as a table too."""
    if run := context.phase_run:
        run.log(0, dict(score_figures(arms)))
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
    yield f"{name}.type_token_ratio", found.type_token_ratio
    yield f"{name}.mean_words", found.mean_words
    if found.semantic is not None:
        yield f"{name}.semantic", found.semantic
    yield from ((f"{name}.distinct_{n}", value) for n, value in found.distinct.items())
    yield from ((f"{name}.pass_at_{k}", value) for k, value in found.pass_at.items())


def _plain(text: str) -> str:
    # A slash would make MLflow file it under a folder.
    return text.replace("/", "_")
