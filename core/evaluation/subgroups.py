"""Scores by topic, language, or whatever else the rows' metadata tell apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.evaluation.aggregate import Measured, aggregate
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import MetricValue, Subgroup

SMALLEST = 5
"""Examples below which a value is pooled with others of its kind: an interval over four says nothing."""
MOST = 20
"""Values of a key that get a row of their own, the most frequent ones."""
OTHER = "(other)"


def subgroups(
    metadata: Sequence[dict[str, Any]], measured: Mapping[str, Measured], config: EvaluationConfig
) -> tuple[Subgroup, ...]:
    """Return scores with intervals for every value of the configured metadata keys.

    Rows without a key are in none of its groups. A list puts an example into each of its values. Rare
    values, and those beyond the most frequent ones, are pooled; the pool may itself be small.

    Args:
        metadata: Of each example.
        measured: Scores of each metric, in the same order.
        config: Keys, and settings of the bootstrap.
    """
    found = []
    for key in config.subgroups:
        for name, places in _grouped(metadata, key).items():
            metrics = {metric: _part(metric, each, places, config) for metric, each in measured.items()}
            found.append(Subgroup(key=key, name=name, n=len(places), metrics=metrics))
    return tuple(found)


def _grouped(metadata: Sequence[dict[str, Any]], key: str) -> dict[str, list[int]]:
    """Return the places of each value, the most frequent one first, the pool last."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(metadata):
        for value in dict.fromkeys(_values(row.get(key))):
            groups.setdefault(value, []).append(place)
    order = sorted(groups, key=lambda name: (-len(groups[name]), name))
    own = [name for name in order[:MOST] if len(groups[name]) >= SMALLEST and name != OTHER]
    pooled = {place for name in order if name not in own for place in groups[name]}
    named = {name: groups[name] for name in own}
    return named | ({OTHER: sorted(pooled)} if pooled else {})


def _values(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for item in value for text in _values(item)]
    is_plain = isinstance(value, str | int | float) and str(value).strip()
    return [str(value).strip()] if is_plain else []


def _part(metric: str, whole: Measured, places: Sequence[int], config: EvaluationConfig) -> MetricValue:
    weights = [whole.weights[i] for i in places] if whole.weights else ()
    return aggregate(metric, [whole.scores[i] for i in places], config, weights).value
