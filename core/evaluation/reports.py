"""Scores of one model on one test set, and of the base in every way of asking it."""

from typing import ClassVar

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


class AtK(Frozen):
    """What k tries at a question are worth, as a mean over questions; see ``core.evaluation.attempts``."""

    k: int
    pass_at: float
    """Chance that one of k answers is right; unbiased (arXiv:2107.03374)."""
    usq_at: float
    """Expected score of the best of k answers, as a user who chooses gets it; unbiased."""
    independent: float
    """pass@k of independent tries at the rate pass@1 on every question."""
    der: float | None
    """DER@k = pass@k / (k pass@1)."""
    der_independent: float | None
    """DER@k of independent tries at the rate pass@1 on every question: the upper reference."""
    der_identical: float
    """DER@k if all k tries are one answer, 1/k: the lower reference."""
    efficiency: float | None
    """Where DER@k lies between its references, 0 for equal tries and 1 for independent ones."""
    absent: dict[str, str] = {}
    """Why a field is null, by its name."""


class SeedSpread(Frozen):
    """A figure of sampled answers by seed."""

    values: tuple[float, ...]
    """In the order of the seeds."""
    deviation: float | None
    """Standard deviation over seeds, with n - 1."""
    absent: dict[str, str] = {}


class Diversity(Frozen):
    """How sampled answers to the same questions differ, and how often one of them is right.

    Every figure is the mean over seeds.
    """

    questions: int
    samples: int
    temperature: float
    top_p: float
    seeds: tuple[int, ...]
    metric: str
    """What graded the samples: the primary metric, or exact_match if that grades no single text."""
    self_bleu: float
    """Mean BLEU-4 of an answer against its siblings; 1 means all the same."""
    distinct: dict[int, float]
    """Share of different n-grams among all, by n; without the n that no answer has words for."""
    type_token_ratio: float | None
    semantic: float | None
    """Mean pairwise cosine distance by the encoder; null without one."""
    mean_words: float
    pass_at: dict[int, float]
    """Chance that one of k answers is right (the metric at 1), for some k, all samples among them; unbiased
    (arXiv:2107.03374)."""
    tries: tuple[AtK, ...]
    """For every k up to the number of samples."""
    collapse_point: int | None
    """Smallest k from which one more answer adds less than ``collapse_below`` to pass@k."""
    collapse_below: float
    spread: dict[str, SeedSpread]
    """By figure, such as self_bleu, distinct_2 or pass_at_5."""
    ids: tuple[str, ...]
    """Of the questions sampled on."""
    by_question: dict[str, tuple[float, ...]]
    """By figure: one number per question, for paired tests; without figures that some question has none of."""
    absent: dict[str, str] = {}
    """Why a figure is missing, such as distinct_3 or collapse_point."""


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

    # The same scores at another speed are the same scores.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"tokens_per_second"})


class BaselineReport(Frozen):
    """The untrained base, asked in every way that was wanted."""

    arms: tuple[EvalReport, ...]
    """At least one; the first is asked exactly as the tuned model is, if zero_shot is among them."""
