"""Settings of the five gates: the ``gates`` block of a run config."""

from typing import Literal, Self

from pydantic import Field, model_validator

from core.config import Block
from gates.verdict import Waiver


class DatasetValidated(Block):
    """What a divided dataset must satisfy."""

    min_rows: int = Field(default=100, ge=1)
    """Fewest rows, all splits together."""
    min_test: int = Field(default=30, ge=1)
    """Fewest rows in the test split."""
    max_leaked: int = Field(default=0, ge=0)
    """Most questions, and most groups, that any two splits may share."""
    max_near_leaked: int = Field(default=0, ge=0)
    """Most questions of a split that may be nearly equal to one of another split."""
    max_duplicates: int = Field(default=0, ge=0)
    """Most rows that may equal another row of their split."""
    ratio_tolerance: float = Field(default=0.05, ge=0, le=1)
    """How far a split's share of the rows may be from the share asked for."""
    max_rejected: float | None = Field(default=None, ge=0, le=1)
    """Largest share of unusable raw rows; null uses the format phase's budget."""
    mix_tolerance: float = Field(default=0.02, ge=0, le=1)
    """How far a weighted source's share of the kept rows may be from its weight."""
    max_secrets: int = Field(default=0, ge=0)
    """Most keys, passwords, card, account and identity numbers left in the rows."""
    max_contacts: float = Field(default=0.05, ge=0)
    """Most e-mail addresses and phone numbers left in the rows, per row."""
    max_contaminated: int = Field(default=0, ge=0)
    """Most rows that share a passage with a benchmark."""
    max_test_uses: int = Field(default=100, ge=0)
    """Most earlier runs judged on this very test set; the more, the less its scores mean."""


class BaselineEstablished(Block):
    """What a measurement of the base model must satisfy."""

    min_examples: int = Field(default=50, ge=1)
    """Fewest test examples answered and graded."""


class MetricLimit(Block):
    """What the tuned model must reach in one metric."""

    min: float | None = None
    """Smallest value."""
    max: float | None = None
    """Largest value."""
    min_gain: float | None = None
    """Smallest gain over the base, in the metric's own unit."""
    max_ratio: float | None = Field(default=None, gt=0)
    """Largest value as a share of the base's; 0.85 asks for 15 % less."""

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if all(value is None for value in (self.min, self.max, self.min_gain, self.max_ratio)):
            raise ValueError("needs at least one of min, max, min_gain, max_ratio")
        return self


class ModelPerformance(Block):
    """How much better than the base the tuned model must be."""

    compare_to: Literal["best", "zero_shot", "few_shot", "prompted"] = "best"
    """The way of asking the base that must be beaten; best is the one that scored highest."""
    mode: Literal["relative", "absolute"] = "relative"
    """relative: share of the baseline score. absolute: difference of the scores, 0.2 is 20 points."""
    min_improvement: float = Field(default=0.20, ge=0)
    """Smallest gain, in the unit that mode names."""
    zero_floor: float = Field(default=0.05, gt=0, le=1)
    """Smallest score that counts as a score: the tuned model must reach it, and a baseline below it
    counts as this much when a relative gain is computed."""
    require_interval: bool = True
    """The lower end of the gain's interval must reach min_improvement too."""
    max_eval_loss_rise: float = Field(default=0.10, ge=0)
    """How far the last validation loss may lie above the best one, as a share of the best."""
    max_merge_loss_rise: float = Field(default=0.10, ge=0)
    """How far the merged model's validation loss may lie above that of the kept adapter, as a share of it."""
    max_forgetting: float | None = Field(default=0.10, ge=0, le=1)
    """Largest fall of the score on everyday knowledge, in points of 1, that is larger than chance; null allows any."""
    require: dict[str, MetricLimit] = {}
    """Further demands on the tuned model by metric, such as perplexity: {max_ratio: 0.85}."""


class QuantizationVerified(Block):
    """What the quantized file that ships must keep; the gate opens for the smallest that does."""

    max_drop: float = Field(default=0.05, ge=-1, le=1)
    """Largest loss of score, as a share of the merged model's score."""
    max_drop_upper: float | None = Field(default=None, ge=-1, le=2)
    """Largest upper end of the loss's interval; null means twice max_drop."""
    max_size_mb: float | None = Field(default=None, gt=0)
    """Largest file, in millions of bytes; null sets no limit beyond the merged model's size."""
    max_prompt_mismatches: int = Field(default=0, ge=0)
    """Most test prompts that the file's own tokenizer may read differently."""
    max_kl: float | None = Field(default=None, gt=0)
    """Largest mean divergence of a file's next-token distributions from the merged model's, in nats."""
    max_parity_kl: float = Field(default=1e-3, gt=0)
    """Largest divergence of the 16-bit file: more is no rounding but an export bug."""
    min_parity_argmax: float = Field(default=0.98, ge=0, le=1)
    """Smallest share of positions at which the 16-bit file's likeliest token is the merged model's."""
    max_onnx_difference: float = Field(default=1e-3, gt=0)
    """Largest logit difference of an fp32 ONNX model from the merged model."""

    @property
    def drop_upper(self) -> float:
        """The bound on the upper end that applies."""
        return 2 * self.max_drop if self.max_drop_upper is None else self.max_drop_upper


class DeploymentReady(Block):
    """How the bundle must behave once started."""

    min_tokens_per_second: float = Field(default=5, ge=0)
    """Slowest acceptable generation."""
    max_memory_gb: float | None = Field(default=8, gt=0)
    """Most memory of the serving process, 1 GB being 1000 MB; null sets no limit."""
    max_size_mb: float | None = Field(default=None, gt=0)
    """Largest model file, in millions of bytes; null sets no limit."""


class GatesConfig(Block):
    """Thresholds of every gate, and the gates a person has waived."""

    dataset_validated: DatasetValidated = DatasetValidated()
    """After the data is divided."""
    baseline_established: BaselineEstablished = BaselineEstablished()
    """After the base model is measured."""
    model_performance: ModelPerformance = ModelPerformance()
    """After the tuned model is measured."""
    quantization_verified: QuantizationVerified = QuantizationVerified()
    """After the quantized files are measured."""
    deployment_ready: DeploymentReady = DeploymentReady()
    """After the bundle was started once."""
    waivers: tuple[Waiver, ...] = ()
    """Gates to pass although closed, each with a reason."""

    @model_validator(mode="after")
    def _one_waiver_per_gate(self) -> Self:
        named = [waiver.gate for waiver in self.waivers]
        twice = sorted({gate for gate in named if named.count(gate) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is waived twice; keep one reason")
        return self
