"""The schema of the model card, field by field as the product owner wrote it.

A star there is a required field here. On top of it, required texts and lists must say
something: a blank is not information.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import Field, StringConstraints
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from core.config import Frozen

Text = Annotated[str, StringConstraints(pattern=r"\S")]
Texts = tuple[Text, ...]
SomeTexts = Annotated[Texts, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Method = Literal["full_finetune", "lora", "qlora", "prefix_tuning"]


class BaseModelInfo(Frozen):
    """The model that was fine-tuned."""

    id: Text
    provider: Text
    size: Text | None = None
    architecture: Text | None = None


class Domain(Frozen):
    """What the model is about."""

    name: Text
    languages: SomeTexts
    subdomain: Text | None = None
    regions: Texts | None = None
    cultural_context: Text | None = None


class CardSource(Frozen):
    """One origin of the data and its share of the rows, in percent."""

    name: Text
    type: Text
    percentage: Annotated[float, Field(ge=0, le=100)]


class CardSplits(Frozen):
    """Rows of each split."""

    train: Count
    validation: Count
    test: Count


class TrainingData(Frozen):
    """What the model learned from and was tested on."""

    sample_count: Annotated[int, Field(ge=1)]
    sources: Annotated[tuple[CardSource, ...], Field(min_length=1)]
    data_collection_period: Text | None = None
    preprocessing: Text | None = None
    splits: CardSplits | None = None


class Scores(Frozen):
    """Scores of one model; a share lies between 0 and 1."""

    localization_score: float | None = None
    factual_accuracy: float | None = None
    perplexity: Amount | None = None


class TunedScores(Scores):
    """Scores of the fine-tuned model."""

    human_preference_rate: float | None = None


class Improvement(Frozen):
    """Fine-tuned minus base, in the unit of the score."""

    localization_delta: float | None = None
    accuracy_delta: float | None = None
    perplexity_reduction: float | None = None


class Benchmark(Frozen):
    """One metric on the test split."""

    name: Text
    score: float
    baseline_score: float | None = None


class CardEvaluation(Frozen):
    """How the model did, next to the base model on the same questions."""

    baseline: Scores
    finetuned: TunedScores
    improvement: Improvement | None = None
    benchmarks: tuple[Benchmark, ...] | None = None


class IntendedUse(Frozen):
    """What the model is for, and what it is not for."""

    primary_use: Text
    users: SomeTexts
    use_cases: Texts | None = None
    out_of_scope: Texts | None = None


class Hyperparameters(Frozen):
    """Settings of the training run; batch_size is examples per optimizer step."""

    learning_rate: Amount | None = None
    epochs: Amount | None = None
    batch_size: Count | None = None
    max_seq_length: Count | None = None
    lora_r: Count | None = None
    lora_alpha: Count | None = None


class Compute(Frozen):
    """What training ran on and for how long."""

    hardware: Text | None = None
    training_time: Text | None = None
    cost_estimate: Text | None = None


class TrainingProcedure(Frozen):
    """How the model was trained."""

    method: Method | None = None
    framework: Text | None = None
    hyperparameters: Hyperparameters | None = None
    compute: Compute | None = None


class Limitations(Frozen):
    """What a user must know before relying on the model."""

    technical: Texts | None = None
    domain: Texts | None = None
    language: Texts | None = None
    known_issues: Texts | None = None


class Bias(Frozen):
    """What is known about bias."""

    training_data_biases: Texts | None = None
    mitigation_steps: Texts | None = None
    evaluation_results: Text | None = None


class MinRequirements(Frozen):
    """Memory and disk, in units of 10^9 bytes."""

    ram_gb: Amount | None = None
    vram_gb: Amount | None = None
    storage_gb: Amount | None = None


class InferenceSpeed(Frozen):
    """Measured generation speed."""

    cpu_tokens_per_sec: Amount | None = None
    gpu_tokens_per_sec: Amount | None = None


class Registry(Frozen):
    """Where the model is registered."""

    huggingface: Text | None = None
    private: Text | None = None


class CardDeployment(Frozen):
    """What is shipped and what it needs."""

    quantization: Text | None = None
    formats: Texts | None = None
    min_requirements: MinRequirements | None = None
    inference_speed: InferenceSpeed | None = None
    registry: Registry | None = None


class InputFormat(Frozen):
    """What the model takes."""

    max_tokens: Count | None = None
    template: Text | None = None


class OutputFormat(Frozen):
    """What the model gives."""

    max_tokens: Count | None = None
    stop_tokens: tuple[str, ...] | None = None


class Parameters(Frozen):
    """Recommended sampling parameters."""

    temperature: Amount | None = None
    top_p: Amount | None = None
    repetition_penalty: Amount | None = None


class CardApi(Frozen):
    """How to call the model."""

    input_format: InputFormat | None = None
    output_format: OutputFormat | None = None
    recommended_parameters: Parameters | None = None
    system_prompt: Text | None = None


class Ethics(Frozen):
    """Consent, sovereignty, privacy, energy."""

    data_consent: Text | None = None
    data_sovereignty: Text | None = None
    privacy_measures: Texts | None = None
    environmental_impact: Text | None = None


class ModelCard(Frozen):
    """The whole card."""

    model_id: Text
    model_name: Text | None = None
    version: Text | None = None
    base_model: BaseModelInfo
    domain: Domain
    training_data: TrainingData
    training_procedure: TrainingProcedure | None = None
    evaluation: CardEvaluation
    intended_use: IntendedUse
    limitations: Limitations | None = None
    bias_and_fairness: Bias | None = None
    deployment: CardDeployment | None = None
    api: CardApi | None = None
    ethics: Ethics | None = None
    created_at: Text | None = None
    updated_at: Text | None = None
    created_by: Text | None = None
    license: Text | None = None

    def record(self) -> dict[str, Any]:
        """Return the card as JSON holds it: what is unknown is absent, never null."""
        return self.model_dump(mode="json", exclude_none=True)


class _Plain(GenerateJsonSchema):
    """Describes JSON without nulls: an optional field is left out instead."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def model_card_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of ``model-card.json``."""
    return ModelCard.model_json_schema(schema_generator=_Plain)


def validate_card(card: dict[str, Any]) -> tuple[str, ...]:
    """Hold a card against the schema.

    Args:
        card: As read from ``model-card.json``.

    Returns:
        One line per problem, with the field it concerns; empty if the card is valid.
    """
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as problem:
        return (f"card: not JSON: {problem}",)
    errors = Draft202012Validator(model_card_schema()).iter_errors(card)
    return tuple(sorted(f"{_place(error.absolute_path)}: {error.message}" for error in errors))


def _place(path: Iterable[str | int]) -> str:
    return ".".join(str(step) for step in path) or "card"
