"""The model card: what a model is, how well it was tested, and what nobody knows about it.

Every number on it was measured by the run that made the model. What was not measured is left
out, never estimated, and the limitations say so.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core.data.reports import SourceCount, SplitReport
from core.deployment.card_facts import BaseFacts, CardFacts, GateNote
from core.deployment.card_schema import (
    BaseModelInfo,
    Benchmark,
    Bias,
    CardApi,
    CardDeployment,
    CardEvaluation,
    CardSource,
    CardSplits,
    Compute,
    Domain,
    Ethics,
    Hyperparameters,
    Improvement,
    InferenceSpeed,
    InputFormat,
    IntendedUse,
    Limitations,
    MinRequirements,
    ModelCard,
    OutputFormat,
    Parameters,
    Scores,
    TrainingData,
    TrainingProcedure,
    TunedScores,
    model_card_schema,
    validate_card,
)
from core.deployment.templates import render_page
from core.errors import ConfigError
from core.evaluation.reports import EvalReport

__all__ = [
    "BaseFacts",
    "CardFacts",
    "GateNote",
    "ModelCard",
    "build_card",
    "model_card_schema",
    "render_card",
    "validate_card",
]

GIGABYTE = 1e9
SMALL_TEST = 200
"""Below this many questions, one answer moves the score by more than half a point."""


def build_card(facts: CardFacts) -> ModelCard:
    """Turn a run's settings and reports into its card.

    Args:
        facts: What the run knows about its model.

    Returns:
        A card that holds only measured numbers and stated intentions.

    Raises:
        ConfigError: If a fact the card must state is blank.
    """
    try:
        return _card(facts)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ConfigError(
            f"the model card cannot be written: {first['msg']}",
            where=".".join(["model card", problem.title, *(str(step) for step in first["loc"])]),
            fix="fill in the deployment block of the config",
        ) from problem


def _card(facts: CardFacts) -> ModelCard:
    wanted = facts.deployment
    return ModelCard(
        model_id=facts.name,
        model_name=facts.name,
        version=facts.version,
        base_model=BaseModelInfo(
            id=facts.base.id,
            provider=facts.base.provider,
            size=f"{facts.base.parameters:,} parameters",
            architecture=facts.base.architecture,
        ),
        domain=Domain(name=wanted.domain, languages=wanted.languages),
        training_data=_training_data(facts),
        training_procedure=_procedure(facts),
        evaluation=_evaluation(facts),
        intended_use=IntendedUse(
            primary_use=wanted.primary_use,
            users=wanted.users,
            out_of_scope=wanted.out_of_scope or None,
        ),
        limitations=_limitations(facts),
        bias_and_fairness=_bias(facts),
        deployment=_deployment(facts),
        api=_api(facts),
        ethics=Ethics(environmental_impact=_energy(facts)),
        created_at=facts.created_at,
        created_by=facts.created_by,
        license=wanted.license or None,
    )


def _training_data(facts: CardFacts) -> TrainingData:
    split = facts.split
    taken = sum(source.taken for source in facts.ingest.sources)
    sources = tuple(
        CardSource(
            # An absolute path says more about the machine than about the data.
            name=Path(source.path).name if Path(source.path).is_absolute() else source.path,
            type=_source_type(source),
            percentage=round(100 * source.taken / taken, 2) if taken else 0.0,
        )
        for source in facts.ingest.sources
    )
    return TrainingData(
        sample_count=split.train + split.val + split.test,
        sources=sources,
        preprocessing=(
            f"{facts.ingest.rows} rows gathered; {split.rejected_share:.2%} rejected as unusable; the rest "
            f"turned into conversations and divided by strategy {split.strategy}, seed {split.seed}."
        ),
        splits=CardSplits(train=split.train, validation=split.val, test=split.test),
    )


def _source_type(source: SourceCount) -> str:
    if source.path.startswith("hf:"):
        return "hub dataset"
    if re.match(r"https?://", source.path):
        return "url"
    return "file" if source.files == 1 else "files"


def _procedure(facts: CardFacts) -> TrainingProcedure:
    settings, adapted = facts.training, facts.method in ("lora", "qlora")
    return TrainingProcedure(
        method=facts.method,
        framework=facts.model.framework,
        hyperparameters=Hyperparameters(
            learning_rate=settings.learning_rate,
            epochs=round(facts.trained.epochs, 3),
            batch_size=settings.per_device_train_batch_size * settings.gradient_accumulation_steps,
            max_seq_length=facts.model.max_seq_length,
            lora_r=facts.lora.r if adapted else None,
            lora_alpha=facts.lora.lora_alpha if adapted else None,
        ),
        compute=Compute(hardware=facts.hardware, training_time=f"{facts.trained.seconds:.0f} s"),
    )


def _evaluation(facts: CardFacts) -> CardEvaluation:
    before, after = _mean(facts.baseline, "exact_match"), _mean(facts.tuned, "exact_match")
    surprised, less = _mean(facts.baseline, "perplexity"), _mean(facts.tuned, "perplexity")
    gained, fallen = _difference(facts, before, after), _difference(facts, less, surprised)
    nothing = gained is None and fallen is None
    return CardEvaluation(
        baseline=Scores(factual_accuracy=before, perplexity=surprised),
        finetuned=TunedScores(factual_accuracy=after, perplexity=less),
        improvement=None if nothing else Improvement(accuracy_delta=gained, perplexity_reduction=fallen),
        benchmarks=_benchmarks(facts),
    )


def _difference(facts: CardFacts, start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None or not _comparable(facts) else end - start


def _benchmarks(facts: CardFacts) -> tuple[Benchmark, ...]:
    """List every metric of the trained model, then of the file that is shipped."""
    names = [facts.tuned.metric, *(name for name in facts.tuned.metrics if name != facts.tuned.metric)]
    rows = []
    for report, what in ((facts.tuned, ""), (facts.shipped, f"{facts.gguf_type} file")):
        for name in names:
            score = _mean(report, name)
            base = _mean(facts.baseline, name) if _comparable(facts) else None
            # How the base was asked decides how much its score is worth.
            against = f"base: {facts.baseline.arm}" if base is not None else ""
            note = "; ".join(text for text in (what, against) if text)
            if score is not None:
                title = f"{name} ({note})" if note else name
                rows.append(Benchmark(name=title, score=score, baseline_score=base))
    return tuple(rows)


def _mean(report: EvalReport, metric: str) -> float | None:
    if metric in report.metrics:
        return report.metrics[metric].value
    return report.value if metric == report.metric else None


def _comparable(facts: CardFacts) -> bool:
    """Tell whether all three scores come from the same questions."""
    asked = {(arm.split_digest, arm.ids) for arm in (facts.baseline, facts.tuned, facts.shipped)}
    return len(asked) == 1


def _limitations(facts: CardFacts) -> Limitations:
    wanted = facts.deployment
    return Limitations(
        technical=_technical(facts),
        domain=(
            f"Tested only on held-out questions from the sources above (domain: {wanted.domain}). "
            "How it answers anything else is unknown.",
        ),
        language=(
            f"The data is declared to be in: {', '.join(wanted.languages)}. Other languages were not tested.",
        ),
        known_issues=_known_issues(facts) or None,
    )


def _technical(facts: CardFacts) -> tuple[str, ...]:
    shipped, wanted = facts.shipped, facts.deployment
    lines = [
        _uncertainty(shipped),
        f"Quantized to {facts.gguf_type}: {shipped.metric} {shipped.value:.4f}, against "
        f"{facts.tuned.value:.4f} before quantization.",
        *facts.gguf_story,
        f"The recommended context window is {wanted.context_length} tokens; longer conversations do not fit.",
    ]
    lines += [*_ways_of_asking(facts), *_beyond_the_test(facts)]
    if facts.trained.truncated:
        lines.append(
            f"{facts.trained.truncated} of {facts.trained.samples} training examples were longer than "
            f"{facts.model.max_seq_length} tokens and were cut."
        )
    if wanted.system_prompt:
        lines.append("The scores were measured without the system prompt that is put in front when serving.")
    if wanted.temperature > 0:
        lines.append(
            "The scores were measured with greedy decoding; at the recommended temperature of "
            f"{wanted.temperature:g} answers vary and may be worse."
        )
    return tuple(lines)


def _ways_of_asking(facts: CardFacts) -> list[str]:
    if len(facts.arms) < 2:
        return []
    told = ", ".join(f"{arm.arm} {arm.value:.4f}" for arm in facts.arms)
    metric = facts.baseline.metric
    return [
        f"The base model was asked in {len(facts.arms)} ways ({metric}: {told}); compared is {facts.baseline.arm}."
    ]


def _beyond_the_test(facts: CardFacts) -> list[str]:
    """Say what became of everything else the base was asked."""
    before = {(s.name, s.metric): s for arm in reversed(facts.arms) for s in arm.suites}
    return [
        f"{suite.name}, {suite.n} questions apart from the test split: {suite.metric} {suite.value:.4f}, and "
        f"{known.value:.4f} before training."
        for suite in facts.tuned.suites
        if (known := before.get((suite.name, suite.metric))) and known.digest == suite.digest
    ]


def _uncertainty(report: EvalReport) -> str:
    text = f"The shipped file was tested on {report.n} questions: {report.metric} {report.value:.4f}"
    interval = report.metrics.get(report.metric)
    if interval is None:
        return f"{text}, without an interval."
    return f"{text}, {report.confidence:.0%} bootstrap interval {interval.low:.4f} to {interval.high:.4f}."


def _known_issues(facts: CardFacts) -> tuple[str, ...]:
    issues = [
        f"Gate {gate.name} was {gate.state}: {gate.summary}" for gate in facts.gates if gate.state != "passed"
    ]
    if not _comparable(facts):
        issues.append(
            "The base, trained and shipped models were not asked the same questions; do not compare."
        )
    if facts.shipped.n < SMALL_TEST:
        issues.append(
            f"The test split is small ({facts.shipped.n} questions); read the interval, not the score."
        )
    issues += _leaks(facts.split)
    if facts.trained.error:
        issues.append(f"Training reported: {facts.trained.error}")
    return tuple(issues)


def _leaks(split: SplitReport) -> list[str]:
    return [
        f"The splits {pair} share {leak.normalised} questions and {leak.groups} groups"
        + ("; scores may be too high." if "test" in pair else ".")
        for pair, leak in split.leakage.items()
        if leak.normalised or leak.groups
    ]


def _bias(facts: CardFacts) -> Bias:
    largest = max(_training_data(facts).sources, key=lambda source: source.percentage)
    return Bias(
        training_data_biases=(f"{largest.percentage:g} % of the rows come from one source, {largest.name}.",),
        evaluation_results="Bias was not evaluated.",
    )


def _deployment(facts: CardFacts) -> CardDeployment:
    speed = round(facts.smoke.tokens_per_second, 1)
    on_cpu = facts.smoke_device == "cpu"
    return CardDeployment(
        quantization=facts.gguf_type,
        formats=("gguf",),
        min_requirements=MinRequirements(
            ram_gb=round(facts.smoke.memory_mb / 1000, 3),
            storage_gb=round(facts.gguf_bytes / GIGABYTE, 4),
        ),
        inference_speed=InferenceSpeed(
            cpu_tokens_per_sec=speed if on_cpu else None,
            gpu_tokens_per_sec=None if on_cpu else speed,
        ),
    )


def _api(facts: CardFacts) -> CardApi:
    wanted = facts.deployment
    return CardApi(
        input_format=InputFormat(
            max_tokens=wanted.context_length,
            template="messages with role and content, put through the chat template in the GGUF file",
        ),
        output_format=OutputFormat(max_tokens=wanted.max_tokens, stop_tokens=facts.stop_tokens),
        # 1 means none: the scores were measured without a repetition penalty.
        recommended_parameters=Parameters(temperature=wanted.temperature, repetition_penalty=1.0),
        system_prompt=wanted.system_prompt or None,
    )


def _energy(facts: CardFacts) -> str:
    place = f" on {facts.hardware}" if facts.hardware else ""
    return f"Training took {facts.trained.seconds:.0f} s{place}; energy was not measured."


def render_card(card: ModelCard) -> str:
    """Write a card as Markdown, with the front matter the Hugging Face Hub reads.

    Args:
        card: The card.

    Returns:
        The text of ``model-card.md``.
    """
    matter = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return render_page("model-card", {"card": card, "front_matter": matter.strip()})


def _front_matter(card: ModelCard) -> dict[str, Any]:
    method = card.training_procedure.method if card.training_procedure else None
    matter: dict[str, Any] = {**_license(card.license), "language": list(card.domain.languages)}
    # The Hub checks base_model against its repositories; a local folder is none.
    if card.base_model.provider != "local" and re.fullmatch(r"[\w.-]+/[\w.-]+", card.base_model.id):
        matter |= {"base_model": card.base_model.id, "base_model_relation": "finetune"}
    matter["pipeline_tag"] = "text-generation"
    matter["tags"] = [tag for tag in ("gguf", method, card.domain.name) if tag]
    matter["metrics"] = sorted({row.name.split(" ")[0] for row in card.evaluation.benchmarks or ()})
    return matter


def _license(name: str | None) -> dict[str, str]:
    """Write a licence the way the Hub wants it: a lower-case identifier, or other plus its name."""
    if name is None:
        return {"license": "unknown"}
    if re.fullmatch(r"[A-Za-z0-9.-]+", name):
        return {"license": name.lower()}
    return {"license": "other", "license_name": name}
