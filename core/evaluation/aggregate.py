"""From the scores of examples to one value with its interval."""

from collections.abc import Sequence
from typing import NamedTuple

from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import MetricValue
from core.evaluation.statistics import mean_interval, perplexity_interval

PERPLEXITY = "perplexity"


class Measured(NamedTuple):
    """A metric's value, and what it is made of."""

    value: MetricValue
    scores: tuple[float, ...]
    """One per example."""
    weights: tuple[float, ...] = ()
    """One per example where they count unequally."""


def aggregate(
    name: str, scores: Sequence[float], config: EvaluationConfig, weights: Sequence[float] = ()
) -> Measured:
    """Make a metric's value and interval of the scores of examples.

    Args:
        name: The metric; perplexity is the exponential of the weighted mean loss, all others are means.
        scores: One per example.
        config: Resamples, confidence and seed.
        weights: Tokens per example, for perplexity.
    """
    resamples, confidence, seed = config.resamples, config.confidence, config.seed
    if name == PERPLEXITY:
        ends = perplexity_interval(scores, weights, resamples=resamples, confidence=confidence, seed=seed)
    else:
        ends = mean_interval(scores, resamples=resamples, confidence=confidence, seed=seed)
    value = MetricValue(value=ends.value, low=ends.low, high=ends.high, n=len(scores))
    return Measured(value, tuple(scores), tuple(weights))
