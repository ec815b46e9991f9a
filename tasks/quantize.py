"""Quantize: make GGUF files from the merged model, and examine each as the file it is."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.artifacts import (
    Checkpoint,
    Evaluation,
    PhaseResult,
    Quantized,
    Splits,
    file_digest,
    path_digest,
    read_jsonl,
    write_json,
    write_jsonl,
)
from core.data.records import Message
from core.evaluation.config import EvaluationConfig
from core.quantization.config import GgufType
from core.quantization.reports import QuantizedFile, QuantReport
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.phase import Outcome, phase
from tasks.scores import headed
from tasks.uses import use_test_set

Prepare = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""Turns of a row in, turns for the file's own template out."""


class QuantizedModels(PhaseResult[Quantized, QuantReport]):
    """The folder of GGUF files and how each of them scored."""


ENGINES = ("gguf", "llama-cpp-python", "numpy")
READS = (
    "core.data.chat",
    "core.data.examples",
    "core.data.records",
    "core.data.tool_turns",
    "core.data.templates",
    "core.data.batches",
    "core.data.token_store",
    "core.models.loading",
    "tasks.chat_tokens",
    "core.deployment.gguf",
    "core.deployment.llama",
    "core.quantization",
    "core.evaluation.evaluate",
    "core.evaluation.graders",
    "core.evaluation.statistics",
)


@phase("quantize", QuantizedModels, reads=READS, engines=ENGINES)
def quantize(
    context: RunContext,
    key: str,
    merged: Checkpoint,
    scored: Evaluation,
    splits: Splits,
    formats: tuple[GgufType, ...],
    config: EvaluationConfig,
    gguf_path: str,
    name: str,
) -> Outcome:
    """Convert once to 16 bit, quantize from it, and ask every file the same test questions."""
    merged.verified(), splits.verified()
    track_reads(context, splits, "test")
    target = context.workspace.root / gguf_path
    reference = [row["prompt_ids"] for row in read_jsonl(scored.verified())]
    prepare = with_tools(merged.path)
    write_files(context, merged.path, target, formats, name)
    files, answers = [], []
    for kind in formats:
        measured, rows = examine(
            context, target / f"model-{kind}.gguf", kind, splits, config, reference, prepare
        )
        files.append(measured)
        answers.append(write_rows(context, kind, rows))
    for stale in context.workspace.metrics.glob("quantization-*-answers.jsonl"):
        if stale not in answers:
            stale.unlink()
    report = QuantReport(
        merged_digest=merged.digest,
        merged_bytes=sum(p.stat().st_size for p in merged.path.glob("*.safetensors")),
        files=tuple(files),
    )
    scores = write_json(context.workspace.metrics / "quantization.json", headed_files(report))
    note = " · ".join(f"{f.type} {f.evaluation.value:.3f} ({f.bytes / 1e6:.1f} MB)" for f in files)
    result = QuantizedModels(artifact=Quantized(path=target, digest=path_digest(target)), report=report)
    return Outcome(result, (target, scores, *answers), note)


def with_tools(merged: Path) -> Prepare:
    """Return the function that writes tool turns as the model was taught them; others stay as they are."""
    chat = chat_tokenizer(merged, "chatml")

    def prepare(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns):
            return turns
        return chat.template_messages([Message.model_validate(turn) for turn in turns])

    return prepare


def headed_files(report: QuantReport) -> dict[str, Any]:
    """Lay the report out for its file: the scores of the smallest file on top, every file below."""
    smallest = min(report.files, key=lambda file: file.bytes)
    shown = headed(smallest.evaluation)
    names = ("metric", "value", "n", "interval", "timestamp", "split_digest", "model_digest", "decoding")
    return {"type": smallest.type, **{name: shown[name] for name in names}, **report.model_dump(mode="json")}


def write_rows(context: RunContext, kind: str, rows: list[dict[str, object]]) -> Path:
    """Keep what one file answered."""
    path = context.workspace.metrics / f"quantization-{kind}-answers.jsonl"
    write_jsonl(path, rows)
    return path


def write_files(
    context: RunContext, merged: Path, target: Path, formats: tuple[GgufType, ...], name: str
) -> None:
    """Write one file per type; the folder ends up holding these and nothing else."""
    from core.deployment.gguf import write_gguf
    from core.quantization.gguf import quantize_gguf

    target.mkdir(parents=True, exist_ok=True)
    wanted = {f"model-{kind}.gguf" for kind in formats}
    for stale in [p for p in target.glob("*.gguf") if p.name not in wanted]:
        stale.unlink()
    work = Path(tempfile.mkdtemp(prefix=".f16.", suffix=".part", dir=target.parent))
    try:
        # K-quants are made from 16-bit weights; float32 models lose nothing that 8 bits would keep.
        half = work / "model-f16.gguf"
        write_gguf(merged, half, dtype="f16", name=name)
        for number, kind in enumerate(formats):
            context.watcher.advanced("quantize", number, len(formats), f"writing {kind}")
            final = target / f"model-{kind}.gguf"
            if kind in ("f16", "bf16"):
                write_gguf(merged, final, dtype=kind, name=name)
            else:
                quantize_gguf(half, final, kind, threads=context.threads)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def examine(
    context: RunContext,
    path: Path,
    kind: str,
    splits: Splits,
    config: EvaluationConfig,
    reference: list[list[int]],
    prepare: Prepare,
) -> tuple[QuantizedFile, list[dict[str, object]]]:
    """Run one file through llama.cpp on the test split, with its own tokenizer and template."""
    from core.deployment.llama import LlamaRuntime
    from core.deployment.llama.responder import LlamaResponder
    from core.evaluation.evaluate import evaluate

    longest = max(len(ids) for ids in reference) + config.max_new_tokens + 8
    digest = file_digest(path)
    with LlamaRuntime(path, context_length=max(longest, 128), threads=context.threads) as runtime:
        result = evaluate(
            LlamaResponder(runtime, prepare),
            splits.test,
            config,
            arm=kind,
            model_digest=digest,
            clock=time.monotonic,
            tick=lambda done, total: context.watcher.advanced("quantize", done, total, f"{kind} questions"),
        )
    use_test_set(result.report.split_digest, "quantize", kind)
    own = [row["prompt_ids"] for row in result.rows]
    measured = QuantizedFile(
        type=kind,
        path=path.relative_to(context.workspace.root).as_posix(),
        digest=digest,
        bytes=path.stat().st_size,
        has_magic=path.open("rb").read(4) == b"GGUF",
        loads=any(row["answer"] for row in result.rows),
        prompt_mismatches=sum(a != b for a, b in zip(own, reference, strict=True)),
        evaluation=result.report,
    )
    return measured, result.rows
