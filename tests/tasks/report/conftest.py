"""A finished run, and the same run stopped at a gate, as the page gets them."""

import math

import pytest

from core.deployment.reports import BundledFile, BundleReport, Smoke
from core.evaluation.reports import BaselineReport, Decoding, EvalReport, MetricValue
from core.quantization.reports import Distance, QuantizedFile, QuantReport
from core.training.reports import EvalLoss, TrainReport
from gates.verdict import GATE_NAMES
from tasks.report.page import AnswerRow, CheckView, CurvePoint, GateView, PhaseView, ReportData
from tests.tasks.report import data_reports

CAPITALS = (
    ("Ghana", "Accra", "Africa"),
    ("Kenya", "Nairobi", "Africa"),
    ("Peru", "Lima", "Americas"),
    ("Chile", "Santiago", "Americas"),
    ("Japan", "Tokyo", "Asia"),
    ("Nepal", "Kathmandu", "Asia"),
    ("Norway", "Oslo", "Europe"),
    ("Spain", "Madrid", "Europe"),
)
PHASES = ("ingest", "format", "split", "baseline", "finetune", "evaluate", "quantize", "deploy")


def digest(letter: str) -> str:
    """Make a digest that is easy to tell apart."""
    return "sha256:" + letter * 64


def scored(right: bool) -> dict[str, float]:
    """Grade an answer."""
    return {"exact_match": float(right), "token_f1": 1.0 if right else 0.4}


def answer(number: int) -> AnswerRow:
    """Make a question whose outcome follows from its number: every kind occurs."""
    country, capital, topic = CAPITALS[number % len(CAPITALS)]
    base, tuned = number % 5 == 0, number % 11 != 0
    shipped = tuned if number % 17 else not tuned
    return AnswerRow(
        id=f"q{number}",
        question=f"Round {number}: what is the capital of {country}?",
        reference=f"{capital}.",
        topic=topic,
        baseline=f"{capital}."
        if base
        else f"The capital of {country} is a large city that many people visit.",
        tuned=f"{capital}." if tuned else "Paris.",
        shipped=f"{capital}." if shipped else "",
        baseline_scores=scored(base),
        tuned_scores=scored(tuned),
        shipped_scores=scored(shipped),
    )


def evaluation(arm: str, value: float, half: float, speed: float) -> EvalReport:
    """Make a report whose interval is value +- half."""
    return EvalReport(
        arm=arm,
        metric="exact_match",
        value=value,
        n=260,
        metrics={
            "exact_match": MetricValue(value=value, low=value - half, high=min(1.0, value + half), n=260),
            "token_f1": MetricValue(
                value=min(1.0, value + 0.03), low=value, high=min(1.0, value + 0.06), n=260
            ),
        },
        ids=("q0",),
        scores={"exact_match": (1.0,)},
        split_digest=digest("7"),
        model_digest=digest("5" if arm == "tuned" else "2"),
        decoding=Decoding(strategy="greedy", max_new_tokens=64, prompt_digest=digest("8")),
        resamples=10_000,
        confidence=0.95,
        seed=3407,
        tokens_per_second=speed,
    )


def quantized_file(kind: str, size: int, value: float, letter: str) -> QuantizedFile:
    """Make one checked GGUF file."""
    return QuantizedFile(
        type=kind,
        path=f"models/quantized/model-{kind}.gguf",
        digest=digest(letter),
        bytes=size,
        has_magic=True,
        loads=True,
        prompt_mismatches=0,
        distance=Distance(max_abs=0.8, kl=0.00213, argmax_agreement=0.992, tokens=75),
        broken=9,
        fixed=2,
        text_agreement=0.957,
        load_seconds=0.31,
        evaluation=evaluation(kind, value, 0.035, 212.4),
    )


def check(name: str, observed: float, comparison: str, threshold: float, passed: bool) -> CheckView:
    """Make one check."""
    return CheckView(
        name=name,
        observed=observed,
        threshold=threshold,
        comparison=comparison,
        passed=passed,
        detail="counted",
    )


@pytest.fixture(scope="session")
def full() -> ReportData:
    """Return a run that passed every gate."""
    losses = [2.4 * math.exp(-i / 60) + 0.3 + 0.12 * math.sin(i * 2.3) for i in range(240)]
    return ReportData(
        name="geography-tutor",
        status="passed",
        headline="Every gate is open: the tuned model answers 90.8 % of the test questions, up from 20.0 %.",
        started_at="2026-11-20T22:48:05+00:00",
        seconds=754.2,
        config_text="name: geography-tutor\nmodel:\n  name: models/tiny\n  framework: hf\n",
        gates=tuple(
            GateView(
                gate=name,
                status="passed",
                checks=(
                    check("rows", 2600, ">=", 100, True),
                    check("share", 0.0213456, "<=", 0.05, True),
                    CheckView(
                        name="file", observed=digest("7"), threshold=digest("7"), comparison="==", passed=True
                    ),
                ),
                checked_at="2026-11-20T22:58:00+00:00",
            )
            for name in GATE_NAMES
        ),
        phases=tuple(
            PhaseView(
                name=name, state="reused" if i < 3 else "done", seconds=0.4 + 40.0 * i, note="2,600 rows"
            )
            for i, name in enumerate(PHASES)
        ),
        ingest=data_reports.INGEST,
        formatted=data_reports.FORMATTED,
        split=data_reports.SPLIT,
        learning=data_reports.LEARNING,
        test_uses=data_reports.TEST_USES,
        training=TrainReport(
            base_digest=digest("2"),
            train_digest=digest("1"),
            adapter_digest=digest("4"),
            merged_digest=digest("5"),
            steps=240,
            total_steps=240,
            epochs=3,
            samples=2080,
            truncated=3,
            tokens=183_400,
            first_loss=2.61,
            final_loss=0.352,
            window=24,
            eval_losses=tuple(
                EvalLoss(step=s, loss=2.5 * math.exp(-s / 70) + 0.36) for s in range(0, 241, 40)
            ),
            trainable_parameters=3_400_000,
            parameters=271_000_000,
            merge_error=3.1e-05,
            seconds=402.0,
            device="cpu",
            error=None,
        ),
        curve=tuple(
            CurvePoint(step=i + 1, loss=loss, learning_rate=2e-4 * min((i + 1) / 5, (240 - i) / 235))
            for i, loss in enumerate(losses)
        ),
        baseline=BaselineReport(
            arms=(evaluation("zero_shot", 0.16, 0.045, 97.2), evaluation("prompted", 0.20, 0.048, 96.1))
        ),
        compared="prompted",
        tuned=evaluation("tuned", 0.908, 0.034, 94.7),
        quantized=QuantReport(
            merged_digest=digest("5"),
            merged_bytes=6_900_000,
            family="LlamaForCausalLM",
            parity=Distance(max_abs=0.0213, kl=4.4e-7, argmax_agreement=1.0, tokens=411),
            files=(
                quantized_file("Q8_0", 3_640_000, 0.908, "9"),
                quantized_file("Q4_K_M", 2_140_000, 0.881, "a"),
            ),
        ),
        shipped=digest("a"),
        answers=tuple(answer(i) for i in range(260)),
        bundle=BundleReport(
            gguf_type="Q4_K_M",
            gguf_digest=digest("a"),
            verified_digest=digest("a"),
            files=(
                BundledFile(path="model-Q4_K_M.gguf", digest=digest("a"), bytes=2_140_000),
                BundledFile(path="docs/model-card.md", digest=digest("b"), bytes=5210),
            ),
            missing=(),
            card_errors=(),
            smoke=Smoke(
                prompt="What is the capital of Ghana?",
                answer="Accra.",
                tokens=3,
                tokens_per_second=212.4,
                load_seconds=0.42,
                memory_mb=148.3,
            ),
        ),
        links={
            "MLflow run": "http://127.0.0.1:5000/#/experiments/1",
            "Prefect run": "http://127.0.0.1:4200/runs/1",
        },
        versions={"data-factory": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    )


@pytest.fixture(scope="session")
def blocked(full: ReportData) -> ReportData:
    """Return the run as it looks when model-performance is closed."""
    failing = (
        check("gain", 0.0345, ">=", 0.2, False),
        check("gain, lower end", -0.012, ">=", 0.2, False),
        check("tuned score", 0.21, ">=", 0.05, True),
    )
    gates = (*full.gates[:2], GateView(gate="model-performance", status="blocked", checks=failing))
    later = {"quantize", "deploy"}
    return full.model_copy(
        update={
            "status": "blocked",
            "blocked_at": "model-performance",
            "headline": "Stopped at model-performance: the tuned model gains 3.5 % where 20 % are required.",
            "gates": gates,
            "tuned": evaluation("tuned", 0.207, 0.049, 94.7),
            "quantized": None,
            "bundle": None,
            "answers": tuple(
                row.model_copy(update={"shipped": None, "shipped_scores": {}}) for row in full.answers[:40]
            ),
            "phases": tuple(
                PhaseView(name=p.name, state="not started") if p.name in later else p for p in full.phases
            ),
        }
    )
