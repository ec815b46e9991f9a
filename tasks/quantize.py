"""Quantize: make files from the merged model, and examine each as the file it is, from small to large."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from core.artifacts import (
    Checkpoint,
    Evaluation,
    PhaseResult,
    Quantized,
    Splits,
    path_digest,
    scratch_beside,
    write_jsonl,
)
from core.config import Frozen
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import EvalReport
from core.quantization.config import QuantizationConfig
from core.quantization.reports import OnnxFile, PytorchFile, QuantizedFile, QuantReport
from gates.rungs import Wanted, shipped
from gates.thresholds import QuantizationVerified
from tasks.chat_tokens import READS as CHAT
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.gguf_files import Written, write_files
from tasks.ladder import Bench, Rows, examine, measure_parity, set_up
from tasks.measure import Files
from tasks.onnx_files import make_onnx
from tasks.phase import Outcome, library_version, phase
from tasks.pytorch_files import make_pytorch


class QuantizedModels(PhaseResult[Quantized, QuantReport]):
    """The folder of GGUF files and how each of them scored."""


class Enough(Frozen):
    """When to stop climbing the ladder: once a file may ship by these limits."""

    tuned: EvalReport
    """The merged model's evaluation; its answers are an input of the phase, so it need not be in the key twice."""
    limits: QuantizationVerified
    wanted: Wanted

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"tuned"})


AnyFile = QuantizedFile | OnnxFile | PytorchFile
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Plan(Frozen):
    """What to make, when to stop measuring, and with which optional libraries."""

    settings: QuantizationConfig
    enough: Enough | None
    """None measures every file, so that no limit is part of the phase's key."""
    versions: tuple[str, ...]
    serving: int | None = None
    """Context that the file is served with, for models whose angles depend on it."""


def plan_for(
    settings: QuantizationConfig,
    tuned: EvalReport,
    limits: QuantizationVerified,
    wanted: Wanted,
    serving: int | None = None,
) -> Plan:
    """Plan the phase.

    Args:
        settings: The quantization block.
        tuned: The merged model's evaluation.
        limits: The gate's limits.
        wanted: The type that is to ship.
        serving: As ``tasks.ladder.serving_context`` says.
    """
    stops = settings.measure == "until_good"
    enough = Enough(tuned=tuned, limits=limits, wanted=wanted) if stops else None
    return Plan(
        settings=settings,
        enough=enough,
        versions=tuple(library_version(name) for name in ONNX_PACKAGES) if settings.onnx else (),
        serving=serving,
    )


ENGINES = (
    "gguf", "llama-cpp-python", "numpy", "torch", "transformers", "sacrebleu", "rapidfuzz", "scipy",
)  # fmt: skip
READS = (
    "core.deployment.gguf",
    "core.deployment.llama",
    "core.deployment.onnx",
    "core.deployment.pytorch",
    "core.deployment.templates",
    "core.deployment.tokenizer_files",
    "core.evaluation",
    "core.quantization",
    "gates.evidence",
    "gates.gains",
    "gates.rungs",
    "tasks.gguf_files",
    "tasks.ladder",
    "tasks.measure",
    "tasks.onnx_files",
    "tasks.pytorch_files",
    *CHAT,
)


@phase("quantize", QuantizedModels, reads=READS, engines=ENGINES)
def quantize(
    context: RunContext,
    key: str,
    merged: Checkpoint,
    scored: Evaluation,
    splits: Splits,
    plan: Plan,
    config: EvaluationConfig,
    files: Files,
    gguf_path: str,
    name: str,
) -> Outcome:
    """Convert once to 16 bit, quantize from it, and ask the files the same test questions, smallest first."""
    from core.deployment.llama.causes import family_causes
    from core.models.loading import read_hf_config

    merged.verified(), splits.verified()
    track_reads(context, splits, "test")
    target = context.workspace.root / gguf_path
    family = str((read_hf_config(merged.path).get("architectures") or ["unknown"])[0])
    with scratch_beside(target) as work:
        examples = plan.settings.parity_examples
        bench = set_up(merged.path, scored, splits.test, config, examples, work, plan.serving)
        written = write_files(context, merged.path, splits, target, work, plan.settings, name)
        parity = measure_parity(context, written.source, bench)
        report = QuantReport(
            merged_digest=merged.digest,
            merged_bytes=sum(p.stat().st_size for p in merged.path.glob("*.safetensors")),
            parity=parity,
            reference_dtype=bench.dtype,
            family=family,
            causes=family_causes(family),
            source_type=written.source_type,
            importance_tokens=written.importance_tokens,
            files=(),
        )
        report, answers = climb(context, report, written, bench, plan.enough)
        report, others = make_others(context, merged.path, plan.settings, bench, report)
    answers += others
    forget_others(context.workspace.metrics, answers)
    result = QuantizedModels(artifact=Quantized(path=target, digest=path_digest(target)), report=report)
    folders = [context.workspace.root / "models" / form for form, made in beside(report).items() if made]
    return Outcome(result, (target, *folders, *answers), summed_up(report))


def beside(report: QuantReport) -> dict[str, Sequence[AnyFile]]:
    """Return the models beside the ladder, by the name of their form."""
    return {"onnx": report.onnx, "pytorch": report.pytorch}


def summed_up(report: QuantReport) -> str:
    """Say in one line what everything made scored and takes."""
    others = [f"{form} {told(file)}" for form, files in beside(report).items() for file in files]
    return " · ".join([*map(told, report.files), *others])


def told(file: AnyFile) -> str:
    """Say in a few words what a file scored and takes."""
    scored = f"{file.evaluation.value:.3f}" if file.evaluation else "not asked"
    return f"{file.type} {scored} ({file.bytes / 1e6:.1f} MB)"


def make_others(
    context: RunContext, merged: Path, settings: QuantizationConfig, bench: Bench, report: QuantReport
) -> tuple[QuantReport, list[Path]]:
    """Make the forms beside the ladder; return the report with them, and where each one's answers lie."""
    models = context.workspace.root / "models"
    onnx = make_onnx(context, merged, models / "onnx", settings.onnx, bench)
    pytorch = make_pytorch(context, merged, models / "pytorch", settings.pytorch, bench)
    answers = []
    for form, files in (("onnx", onnx), ("pytorch", pytorch)):
        for file, rows in files:
            answers.append(write_rows(context, f"{form}-{file.type}", rows))
            log_rung(context, f"{form}-{file.type}", file)
    made = {"onnx": tuple(file for file, _ in onnx), "pytorch": tuple(file for file, _ in pytorch)}
    return report.model_copy(update=made), answers


def climb(
    context: RunContext, report: QuantReport, written: Written, bench: Bench, enough: Enough | None
) -> tuple[QuantReport, list[Path]]:
    """Examine files from small to large; with ``enough`` stop at the first that may ship.

    Returns:
        The report with the files examined and the types left out, and where each one's answers lie.
    """
    answers = []
    by_size = sorted(written.files, key=lambda kind: (written.files[kind].stat().st_size, kind))
    for done, kind in enumerate(by_size):
        measured, rows = examine(context, written.files[kind], kind, bench)
        answers.append(write_rows(context, kind, rows))
        report = report.model_copy(update={"files": (*report.files, measured)})
        log_rung(context, kind, measured)
        if enough and shipped(enough.tuned, report, enough.limits, enough.wanted):
            return report.model_copy(update={"skipped": tuple(by_size[done + 1 :])}), answers
    return report, answers


def log_rung(context: RunContext, label: str, file: AnyFile) -> None:
    """Track one file's numbers under a name of its own: a list of files has no place among metrics."""
    if context.phase_run is not None:
        context.phase_run.log(0, {f"quantize.{label}.{name}": value for name, value in figures(file)})


def figures(file: AnyFile) -> Iterator[tuple[str, float]]:
    """Yield the numbers that tell files apart."""
    if (scored := file.evaluation) is not None:
        yield from ((name, metric.value) for name, metric in scored.metrics.items())
        yield "tokens_per_second", scored.tokens_per_second
    for name in ("bytes", "prompt_mismatches", "broken", "fixed", "text_agreement", "load_seconds"):
        if (value := getattr(file, name, None)) is not None:
            yield name, float(value)
    if file.distance is not None:
        yield "kl", file.distance.kl
        yield "argmax_agreement", file.distance.argmax_agreement
        yield "max_logit_difference", file.distance.max_abs


def write_rows(context: RunContext, kind: str, rows: Rows) -> Path:
    """Keep what one file answered."""
    path = context.workspace.metrics / f"quantization-{kind}-answers.jsonl"
    write_jsonl(path, rows)
    return path


def forget_others(metrics: Path, answers: list[Path]) -> None:
    """Delete answers of files that are no longer made."""
    for stale in metrics.glob("quantization-*-answers.jsonl"):
        if stale not in answers:
            stale.unlink()
