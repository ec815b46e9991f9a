"""What the result files of an evaluation hold; ``core.evaluation.results`` makes them of reports."""

from typing import Literal

from core.config import Frozen
from core.evaluation.reports import AtK, MetricValue, SeedSpread


class Greedy(Frozen):
    """Decoding of the deterministic part: one answer to a question, the likeliest token at every step."""

    strategy: str
    samples: Literal[1] = 1
    max_new_tokens: int


class Sampling(Frozen):
    """Decoding of the diverse part: several answers to a question."""

    samples: int
    questions: int
    temperature: float
    top_p: float
    seeds: tuple[int, ...]
    max_new_tokens: int


class ResultFile(Frozen):
    """What every result file says of itself; a null field has its reason under ``absent``."""

    schema_version: Literal[1] = 1
    split_digest: str
    """Digest of the test file."""
    model_digest: str
    """Digest of the tuned model; every arm names its own."""
    deterministic: Greedy
    diverse: Sampling | None
    absent: dict[str, str] = {}
    """Why a field is null, by its name."""


class ArmDiversity(Frozen):
    """How the sampled answers of one arm differ."""

    arm: str
    model_digest: str
    self_bleu: float | None
    distinct: dict[int, float] | None
    type_token_ratio: float | None
    semantic: float | None
    mean_words: float | None
    spread: dict[str, SeedSpread] | None
    absent: dict[str, str] = {}


class DiversityResults(ResultFile):
    """diversity_metrics.json."""

    arms: tuple[ArmDiversity, ...]


class ArmQuality(Frozen):
    """The greedy answers of one arm in every metric."""

    arm: str
    model_digest: str
    prompt_digest: str
    n: int
    metrics: dict[str, MetricValue]


class QualityResults(ResultFile):
    """quality_metrics.json."""

    primary_metric: str
    confidence: float
    resamples: int
    seed: int
    arms: tuple[ArmQuality, ...]


class ArmTries(Frozen):
    """What several tries of one arm are worth."""

    arm: str
    model_digest: str
    metric: str | None
    """What graded the samples."""
    tries: tuple[AtK, ...] | None
    collapse_point: int | None
    collapse_below: float | None
    absent: dict[str, str] = {}


class TriesResults(ResultFile):
    """passk_results.json."""

    arms: tuple[ArmTries, ...]


class ArmJudged(Frozen):
    """The verdicts on one arm's greedy answers."""

    arm: str
    model_digest: str
    value: MetricValue
    scores: dict[str, float]
    """By example id, from 0 to 1."""


class JudgeResults(ResultFile):
    """llm_judge_results.json."""

    judge: str
    """Name of the model that judged."""
    instructions: str
    arms: tuple[ArmJudged, ...]


class Contrast(Frozen):
    """The tuned model against one arm of the base in one metric, by paired scores of examples."""

    against: str
    """The arm."""
    metric: str
    """A metric, with one score per test example, or diversity.FIGURE, with one per question sampled on.
    perplexity is compared by each example's mean loss per token, in nats."""
    higher_is_better: bool
    n: int
    base_mean: float
    tuned_mean: float
    difference: float
    """Mean of tuned minus base."""
    low: float
    high: float
    """Ends of the paired bootstrap interval."""
    fixed: int | None
    broken: int | None
    odds_ratio: float | None
    mcnemar_p: float | None
    wilcoxon_p: float
    rank_biserial: float
    """Signed-rank sum over all ranks, from -1 to 1: which way Wilcoxon's test points. The mean may point elsewhere."""
    t_p: float
    mann_whitney_p: float
    """Knows nothing of pairs, and so sees less than the others."""
    cohens_dz: float | None
    cohens_d: float | None
    cliffs_delta: float
    decided_by: Literal["mcnemar", "wilcoxon"]
    p_value: float
    """Of the deciding test."""
    p_holm: float
    """The same, adjusted for all comparisons of its kind in this file (Holm 1979): over the whole test set, or over
    sampled answers."""
    verdict: Literal["better", "worse", "undecided", "no difference shown"]
    """By p_holm at the file's confidence. Where Wilcoxon's test decides, better and worse are said only if the ranks,
    the mean and its interval point the same way; else it is undecided, for there is a difference."""
    disagreement: tuple[str, ...] = ()
    """What of them points where, if undecided."""
    absent: dict[str, str] = {}


class Unpaired(Frozen):
    """A comparison that was not made."""

    against: str
    metric: str
    reason: str


class StatisticalResults(ResultFile):
    """statistical_tests.json."""

    confidence: float
    resamples: int
    seed: int
    contrasts: tuple[Contrast, ...]
    left_out: tuple[Unpaired, ...]


class ArmSummary(Frozen):
    """One arm in a line."""

    arm: str
    model_digest: str
    n: int
    primary: MetricValue
    diversity: float | None
    """1 - self-BLEU-4."""
    pass_at: dict[int, float] | None
    usq_at: dict[int, float] | None
    collapse_point: int | None
    pareto_optimal: bool | None
    """No other arm is at least as good and as diverse, and better in one."""
    absent: dict[str, str] = {}


class SummaryResults(ResultFile):
    """summary.json."""

    primary_metric: str
    pareto_axes: tuple[str, ...]
    """More is better on each."""
    arms: tuple[ArmSummary, ...]
    headlines: tuple[str, ...]
    """The verdicts in words."""
