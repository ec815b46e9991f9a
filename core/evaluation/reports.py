"""Scores of one model on one test set."""

from core.config import Frozen


class MetricValue(Frozen):
    """A mean over examples with its bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


class Decoding(Frozen):
    """How answers were produced; two reports are comparable only when these agree."""

    strategy: str
    """Always greedy: the most likely token at every step."""
    max_new_tokens: int
    prompt_digest: str
    """Digest of every prompt's token ids, in order."""


class EvalReport(Frozen):
    """Scores of one model on one test set, example by example."""

    arm: str
    """baseline, tuned, or a GGUF type."""
    metric: str
    """Name of the primary metric."""
    value: float
    """Value of the primary metric."""
    n: int
    """Examples answered and graded."""
    metrics: dict[str, MetricValue]
    ids: tuple[str, ...]
    """Example ids, in the order of the scores."""
    scores: dict[str, tuple[float, ...]]
    """By metric: one score per example."""
    split_digest: str
    """Digest of the test file."""
    model_digest: str
    """Digest of the model that answered."""
    decoding: Decoding
    resamples: int
    confidence: float
    seed: int
    tokens_per_second: float
