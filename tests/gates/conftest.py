"""One set of reports that opens every gate; each test spoils one thing in it.

600 rows: 480 train, 60 val, 60 test. The base answers 12 of 60 however it is asked, the tuned model 48 of 60,
Q8_0 the same 48, Q4_K_M 47 of them.
"""

import pytest

from core.data.reports import (
    Contamination,
    FormatReport,
    Histogram,
    IngestReport,
    Leakage,
    LengthProfile,
    PiiReport,
    QualityReport,
    SourceCount,
    SplitReport,
)
from core.deployment.reports import BundledFile, BundleReport, Smoke
from core.evaluation.reports import BaselineReport, Decoding, EvalReport, MetricValue
from core.quantization.reports import Distance, QuantizedFile, QuantReport
from core.training.reports import EvalLoss, TrainReport


def digest(name: str) -> str:
    """A made-up digest that is the same for the same name."""
    return "sha256:" + name.encode().hex().ljust(64, "0")[:64]


def prompts(arm: str) -> str:
    """The words a model is asked in: solved examples and instructions change them."""
    return f"{arm} prompts" if arm in ("few_shot", "prompted") else "prompts"


def evaluation(arm: str, scores: tuple[float, ...], model: str) -> EvalReport:
    value = sum(scores) / len(scores)
    return EvalReport(
        arm=arm,
        metric="exact_match",
        value=value,
        n=len(scores),
        metrics={"exact_match": MetricValue(value=value, low=0.0, high=1.0, n=len(scores))},
        ids=tuple(f"row-{place}" for place in range(len(scores))),
        scores={"exact_match": scores},
        split_digest=digest("test"),
        model_digest=digest(model),
        decoding=Decoding(strategy="greedy", max_new_tokens=64, prompt_digest=digest(prompts(arm))),
        resamples=2000,
        confidence=0.95,
        seed=3407,
        tokens_per_second=100.0,
    )


def right(count: int, n: int = 60) -> tuple[float, ...]:
    return (1.0,) * count + (0.0,) * (n - count)


@pytest.fixture
def scored():
    """Build an evaluation: scored(arm, scores, model)."""
    return evaluation


@pytest.fixture
def ingested():
    return IngestReport(
        rows=650,
        sources=(
            SourceCount(path="a.jsonl", files=1, rows=500, taken=500, wanted=0.75, digest=digest("a")),
            SourceCount(path="b.jsonl", files=1, rows=150, taken=150, wanted=0.25, digest=digest("b")),
        ),
        is_weighted=True,
    )


@pytest.fixture
def formatted():
    profile = LengthProfile(
        unit="words",
        n=600,
        mean=10.0,
        median=9.0,
        p95=20.0,
        largest=30,
        histogram=Histogram(edges=(0, 40), counts=(600,)),
    )
    quality = QualityReport(
        words=profile,
        languages={"en": 600},
        language_sample=600,
        unexpected_languages=0,
        scripts={"Latin": 600},
        markers={},
        mixed_script_rows=0,
        mixed_script_examples=(),
        labels=(),
        pii=PiiReport(looked=True, redacted=False, rows=3, findings={"email": 3}),
        contamination=Contamination(items=20, ngram=8, rows=2, items_hit=1, removed=2),
        changed_by_normalisation=0,
    )
    return FormatReport(
        rows=650,
        kept=600,
        rejected=7,
        duplicates=20,
        near_duplicates=5,
        contaminated=2,
        mixed_out=16,
        reasons={"no answer": 7},
        formats={"alpaca": 643},
        max_rejected=0.05,
        kept_by_source={"a.jsonl": 450, "b.jsonl": 150},
        quality=quality,
    )


@pytest.fixture
def split():
    none = Leakage(exact=0, normalised=0, groups=0, near=0)
    return SplitReport(
        train=480,
        val=60,
        test=60,
        requested={"train": 0.8, "val": 0.1, "test": 0.1},
        duplicates=0,
        leakage={"train/val": none, "train/test": none, "val/test": none},
        digests={name: digest(name) for name in ("train", "val", "test")},
        rejected_share=0.01,
        max_rejected=0.05,
        strategy="random",
        seed=3407,
        near_threshold=0.8,
    )


@pytest.fixture
def arms():
    """Build a baseline of one score for each arm: arms(zero_shot=..., prompted=...)."""

    def build(**scores: tuple[float, ...]) -> BaselineReport:
        return BaselineReport(arms=tuple(evaluation(arm, each, "base") for arm, each in scores.items()))

    return build


@pytest.fixture
def baseline(arms):
    return arms(zero_shot=right(12), few_shot=right(12), prompted=right(12))


@pytest.fixture
def tuned():
    return evaluation("tuned", right(48), "merged")


@pytest.fixture
def training():
    return TrainReport(
        base_digest=digest("base"),
        train_digest=digest("train"),
        adapter_digest=digest("adapter"),
        merged_digest=digest("merged"),
        steps=180,
        total_steps=180,
        epochs=3.0,
        samples=480,
        truncated=0,
        tokens=9000,
        first_loss=2.5,
        final_loss=0.4,
        window=10,
        eval_losses=(
            EvalLoss(step=60, loss=1.2),
            EvalLoss(step=120, loss=0.8),
            EvalLoss(step=180, loss=0.82),
        ),
        trainable_parameters=1000,
        parameters=100_000,
        merge_error=1e-5,
        merged_eval_loss=0.82,
        seconds=30.0,
        device="cpu",
        error=None,
    )


def quantized_file(kind: str, count: int, size: int) -> QuantizedFile:
    return QuantizedFile(
        type=kind,
        path=f"model-{kind}.gguf",
        digest=digest(kind),
        bytes=size,
        has_magic=True,
        loads=True,
        prompt_mismatches=0,
        distance=Distance(max_abs=0.6, kl=2e-3, argmax_agreement=0.99, tokens=90),
        broken=48 - count,
        text_agreement=0.95,
        load_seconds=0.3,
        evaluation=evaluation(kind, right(count), kind),
    )


@pytest.fixture
def quantized():
    return QuantReport(
        merged_digest=digest("merged"),
        merged_bytes=10_000_000,
        family="LlamaForCausalLM",
        parity=Distance(max_abs=0.01, kl=1e-6, argmax_agreement=1.0, tokens=300),
        causes=("the rotary base", "query and key order"),
        files=(quantized_file("Q8_0", 48, 5_500_000), quantized_file("Q4_K_M", 47, 3_000_000)),
    )


@pytest.fixture
def bundle():
    return BundleReport(
        gguf_type="Q4_K_M",
        gguf_digest=digest("Q4_K_M"),
        verified_digest=digest("Q4_K_M"),
        files=(
            BundledFile(path="model.gguf", digest=digest("Q4_K_M"), bytes=3_000_000),
            BundledFile(path="model-card.md", digest=digest("card"), bytes=2000),
        ),
        missing=(),
        card_errors=(),
        smoke=Smoke(
            prompt="What is 2 + 2?",
            answer="4",
            tokens=2,
            tokens_per_second=20.0,
            load_seconds=0.4,
            memory_mb=900.0,
        ),
    )
