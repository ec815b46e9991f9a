"""Settings of the evaluation room."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from core.config import Block, without_secrets

BuiltinMetric = Literal[
    "exact_match",
    "token_f1",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "chrf",
    "numeric",
    "json_valid",
    "similarity",
    "perplexity",
    "judge",
]
Arm = Literal["zero_shot", "few_shot", "prompted"]
LOWER_IS_BETTER = frozenset({"perplexity"})
"""Metrics of which a smaller value is the better one."""
ROW_FIELDS = frozenset({"id", "question", "messages", "reference", "answer", "prompt_ids", "metadata"})
"""Fields of a row of answers, beside which every metric has a field of its own."""
TASK_FILES = (".yaml", ".yml")
"""Endings that tell a harness task of the user's own from one by name."""


class GraderConfig(Block):
    """A grader of your own, named by its key."""

    type: Literal["regex", "keywords", "callable"]
    """regex: the answer must match; keywords: it must hold words; callable: a Python function decides."""
    pattern: str | None = None
    """Regular expression searched in the answer; {reference} stands for the row's own answer, escaped."""
    keywords: tuple[str, ...] = ()
    """Words the answer must hold; empty takes the row's metadata under keywords."""
    match: Literal["all", "any"] = "all"
    """all: the share of keywords found is the score; any: one is enough for 1."""
    path: str | None = None
    """FILE.py:FUNCTION, called with (answer, reference, metadata), returns a number from 0 to 1."""

    # The file's digest and the function's name are inputs of the phases.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"path"})


class BaselineConfig(Block):
    """How the untrained base is asked, so that the gain is not owed to a bad prompt."""

    arms: tuple[Arm, ...] = Field(default=("zero_shot", "few_shot", "prompted"), min_length=1)
    """zero_shot: as in training; few_shot: after solved examples; prompted: after an instruction."""
    shots: int = Field(default=4, ge=1, le=32)
    """Solved examples of the training split before each question of the few_shot arm."""
    prompt: str = "Answer the question. Give only the answer, as short as it can be."
    """System text of the prompted arm."""


class EncoderConfig(Block):
    """The encoder behind the metric similarity."""

    model: str | None = None
    """Folder or Hub id of an encoder, such as sentence-transformers/all-MiniLM-L6-v2."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where it computes; on the CPU it takes no GPU memory from the model."""

    # The folder's digest, or else the Hub id, is an input of the phases.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"model", "device"})


class JudgeConfig(Block):
    """A language model that grades answers, behind an OpenAI-compatible endpoint."""

    url: Annotated[str, AfterValidator(without_secrets)] | None = None
    """Base address, such as http://127.0.0.1:8080/v1."""
    model: str = "judge"
    """Name of the model at the endpoint."""
    key_variable: str | None = None
    """Environment variable that holds the key; the key itself never belongs in a config."""
    instructions: str = "Does the answer say the same as the reference? Differences of wording do not count."
    """What the judge is told before it gives a number from 0 to 10."""
    timeout: float = Field(default=60, gt=0)
    """Seconds to wait for one verdict."""
    parallel: int = Field(default=4, ge=1, le=64)
    """Verdicts asked for at once."""

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"timeout", "parallel"})


class DiversityConfig(Block):
    """Several sampled answers per question: how different, and how often one is right."""

    samples: int = Field(default=0, ge=0, le=64)
    """Answers per question, of the tuned model and of the base in each of its arms; 0 samples none."""
    questions: int = Field(default=50, ge=1)
    """Questions to sample on."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus kept in sampling."""
    seeds: tuple[int, ...] = ()
    """Sample anew with each, such as [42, 123, 456], to see what chance does; empty takes evaluation.seed.
    The cost is arms x questions x samples x seeds answers."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("the same seed twice draws the same answers; name each once")
        return self


class GeneralConfig(Block):
    """A small set of everyday knowledge, to see what tuning made the model forget."""

    enabled: bool = True
    """Whether base and tuned model are asked."""
    path: str | None = None
    """A set of your own, JSONL of {question, choices, answer}; null takes the shipped one."""

    # The file's digest is an input of the phases.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"path"})


class HarnessConfig(Block):
    """Public benchmarks through lm-evaluation-harness (extra: harness)."""

    tasks: tuple[str, ...] = ()
    """Task names, or YAML files of your own; none by default."""
    shots: int | None = Field(default=None, ge=0)
    """Solved examples before each question; null takes the task's own number."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first questions of each task."""

    # Names of tasks, and digests of task files with their data, are inputs of the phases.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"tasks"})


class EvaluationConfig(Block):
    """How models are asked and graded."""

    primary_metric: str = "exact_match"
    """The metric the gates compare: one of metrics."""
    metrics: tuple[str, ...] = ("exact_match", "token_f1")
    """Metrics to compute: exact_match, token_f1, rouge_1, rouge_2, rouge_l, chrf, numeric, json_valid, similarity,
    perplexity, judge, or names in graders."""
    graders: dict[str, GraderConfig] = {}
    """Graders of your own by name."""
    baseline: BaselineConfig = BaselineConfig()
    """How the untrained base is asked."""
    subgroups: tuple[str, ...] = ("topic", "language", "difficulty")
    """Metadata keys whose values get a row of scores each; keys that no row has are passed over."""
    general: GeneralConfig = GeneralConfig()
    """The look at what was forgotten."""
    encoder: EncoderConfig = EncoderConfig()
    """Which encoder compares meanings, and where it computes."""
    judge: JudgeConfig = JudgeConfig()
    """The model behind the metric judge."""
    diversity: DiversityConfig = DiversityConfig()
    """Sampled answers, beside the greedy ones."""
    harness: HarnessConfig = HarnessConfig()
    """Public benchmarks."""
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
    """Seed of the bootstrap, of the solved examples and of sampling."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = {*BuiltinMetric.__args__, *self.graders}  # type: ignore[attr-defined]
        unknown = [name for name in (*self.metrics, self.primary_metric) if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]} is no metric; there are {', '.join(sorted(known))}")
        shadowed = sorted(set(self.graders) & set(BuiltinMetric.__args__))  # type: ignore[attr-defined]
        if shadowed:
            raise ValueError(f"graders.{shadowed[0]} has the name of a built-in metric; choose another")
        taken = sorted(set(self.graders) & ROW_FIELDS)
        if taken:
            raise ValueError(
                f"graders.{taken[0]} has the name of a field of the answers' rows; choose another"
            )
        return self
