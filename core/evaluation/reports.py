"""Scores of one model on one test set."""

from core.config import Frozen
from core.evaluation.config import LOWER_IS_BETTER as LOWER_IS_BETTER


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


class Subgroup(Frozen):
    """Scores of the examples that share one value of one metadata key."""

    key: str
    """Metadata key, such as topic."""
    name: str
    """Its value."""
    n: int
    metrics: dict[str, MetricValue]


class Suite(Frozen):
    """Scores on another set than the test split: everyday knowledge, or a public benchmark."""

    name: str
    """general, or the harness's task name."""
    metric: str
    value: float
    low: float
    high: float
    n: int
    digest: str
    """Digest of the questions: equal digests mean the same questions."""
    scores: tuple[float, ...] = ()
    """One score per question where there is one."""
    higher_is_better: bool = True
    """A smaller value is worse; false for a benchmark's perplexity."""


class Diversity(Frozen):
    """How sampled answers to the same questions differ, and how often one of them is right."""

    questions: int
    samples: int
    temperature: float
    top_p: float
    self_bleu: float
    """Mean BLEU-4 of an answer against its siblings; 1 means all the same."""
    distinct: dict[int, float]
    """Share of different n-grams among all, by n."""
    type_token_ratio: float
    semantic: float | None
    """Mean pairwise cosine distance by the encoder; null without one."""
    mean_words: float
    pass_at: dict[int, float]
    """Chance that one of k answers is right (primary metric at 1), by k; unbiased (arXiv:2107.03374)."""


class EvalReport(Frozen):
    """Scores of one model on one test set, example by example."""

    arm: str
    """zero_shot, few_shot, prompted, tuned, or the type of a quantized file."""
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
    """By metric: one score per example; for perplexity the mean loss per token, in nats."""
    weights: dict[str, tuple[float, ...]] = {}
    """By metric, where examples count unequally: for perplexity the tokens of each example."""
    subgroups: tuple[Subgroup, ...] = ()
    suites: tuple[Suite, ...] = ()
    diversity: Diversity | None = None
    split_digest: str
    """Digest of the test file."""
    model_digest: str
    """Digest of the model that answered."""
    decoding: Decoding
    resamples: int
    confidence: float
    seed: int
    tokens_per_second: float


class BaselineReport(Frozen):
    """The untrained base, asked in every way that was wanted."""

    arms: tuple[EvalReport, ...]
    """At least one; the first is asked exactly as the tuned model is, if zero_shot is among them."""
