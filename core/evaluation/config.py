"""Settings of the evaluation room."""

from typing import Literal

from pydantic import Field

from core.config import Block

MetricName = Literal["exact_match", "token_f1"]


class EvaluationConfig(Block):
    """How models are asked and graded."""

    primary_metric: MetricName = "exact_match"
    """The metric the gates compare."""
    metrics: tuple[MetricName, ...] = ("exact_match", "token_f1")
    """Metrics to compute."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Longest answer, in tokens."""
    batch_size: int = Field(default=32, ge=1)
    """Questions answered at once."""
    max_examples: int | None = Field(default=None, ge=1)
    """Use only the first rows of the test split; null uses all."""
    resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples behind every interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    seed: int = 3407
    """Seed of the bootstrap."""
