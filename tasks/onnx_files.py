"""Make and examine the ONNX models of the quantize phase, if any are asked for."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from core.artifacts import write_jsonl
from core.evaluation.config import EvaluationConfig
from core.quantization.config import OnnxType
from core.quantization.reports import OnnxFile
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.ladder import Bench

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxMade(NamedTuple):
    """What was made, and everything that was written."""

    files: tuple[OnnxFile, ...]
    outputs: tuple[Path, ...]


def onnx_versions(kinds: tuple[OnnxType, ...]) -> tuple[str, ...]:
    """Name the versions of the extra's packages; nothing if no model is asked for, as they may be absent then."""
    return tuple(_named(package) for package in PACKAGES) if kinds else ()


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"


def make_onnx(context: RunContext, merged: Path, kinds: tuple[OnnxType, ...], bench: Bench) -> OnnxMade:
    """Export the merged model as each type and hold it against the bench; the folder holds these types alone.

    Args:
        context: The run.
        merged: The merged model.
        kinds: Types to make; none removes the folder.
        bench: The merged model's answers and logits.
    """
    folder = context.workspace.root / "models" / "onnx"
    clear_others(folder, kinds)
    if not kinds:
        return OnnxMade((), ())
    from core.deployment.onnx import OnnxBench, examine_onnx, export, traced_graph

    with traced_graph(merged, folder / "traced", threads=context.threads) as traced:
        for number, kind in enumerate(kinds):
            context.watcher.advanced("quantize", number, len(kinds), f"writing ONNX {kind}")
            export(merged, folder / kind, kind, threads=context.threads, traced=traced)
    held = OnnxBench(
        bench.merged,
        bench.references,
        bench.test,
        asked_of_onnx(bench.config),
        chat_tokenizer(merged, "chatml"),
    )
    files, outputs = [], [folder]
    for kind in kinds:
        measured, rows = examine_onnx(
            folder / kind,
            kind,
            held,
            shown=(folder / kind).relative_to(context.workspace.root).as_posix(),
            threads=context.threads,
            tick=lambda done, total, kind=kind: context.watcher.advanced(  # type: ignore[misc]
                "quantize", done, total, f"ONNX {kind} questions"
            ),
        )
        answers = context.workspace.metrics / f"quantization-onnx-{kind}-answers.jsonl"
        write_jsonl(answers, rows)
        files.append(measured)
        outputs.append(answers)
    return OnnxMade(tuple(files), tuple(outputs))


def asked_of_onnx(config: EvaluationConfig) -> EvaluationConfig:
    """Leave out the metric that needs likelihoods, which are compared as logits here anyway."""
    kept = tuple(name for name in config.metrics if name != "perplexity")
    return config.model_copy(update={"metrics": kept})


def clear_others(folder: Path, kinds: tuple[OnnxType, ...]) -> None:
    """Delete models of types that are no longer asked for."""
    if not kinds:
        shutil.rmtree(folder, ignore_errors=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [path for path in folder.iterdir() if path.name not in kinds]:
        shutil.rmtree(stale, ignore_errors=True)
