"""Make ONNX models from the merged model, and examine each under ONNX Runtime."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from core.artifacts import file_digest
from core.quantization.config import OnnxType
from core.quantization.reports import OnnxFile
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.measure import tools_for
from tasks.uses import use_test_set

if TYPE_CHECKING:
    from tasks.ladder import Bench, Rows


def make_onnx(
    context: RunContext, merged: Path, target: Path, kinds: tuple[OnnxType, ...], bench: "Bench"
) -> list[tuple[OnnxFile, "Rows"]]:
    """Write one folder per type and measure it; the target holds these and nothing else.

    Args:
        context: The run.
        merged: The merged model.
        target: Folder of the ONNX models, such as ``models/onnx``.
        kinds: Types to make.
        bench: What they are held against.

    Returns:
        What was measured of each type, and one row per test question.
    """
    from core.deployment.onnx import export, traced_graph

    forget_others(target, kinds)
    if not kinds:
        return []
    made = []
    context.watcher.advanced("quantize", 0, len(kinds), "tracing for ONNX")
    with traced_graph(merged, target / "traced", threads=context.threads) as traced:
        for number, kind in enumerate(kinds):
            folder = target / kind
            context.watcher.advanced("quantize", number, len(kinds), f"writing ONNX {kind}")
            export(merged, folder, kind, threads=context.threads, traced=traced)
            made.append(measure(context, folder, kind, bench))
    return made


def measure(context: RunContext, folder: Path, kind: OnnxType, bench: "Bench") -> tuple[OnnxFile, "Rows"]:
    """Run one model on the test split and hold it against the merged model."""
    from core.deployment.onnx import OnnxBench, examine_onnx

    arm = f"onnx-{kind}"
    held = OnnxBench(
        bench.merged,
        bench.references,
        bench.test,
        bench.config,
        chat_tokenizer(folder, "chatml"),
        tools_for(context, "quantize", arm),
    )
    measured, rows = examine_onnx(
        folder,
        kind,
        held,
        shown=folder.relative_to(context.workspace.root).as_posix(),
        threads=context.threads,
        tick=lambda done, total: context.watcher.advanced("quantize", done, total, f"{arm} questions"),
    )
    use_test_set(file_digest(bench.test), "quantize", arm)
    return measured, rows


def forget_others(target: Path, kinds: tuple[str, ...]) -> None:
    """Delete the models of types that are no longer made."""
    if target.is_dir():
        for stale in [path for path in target.iterdir() if path.name not in kinds]:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
