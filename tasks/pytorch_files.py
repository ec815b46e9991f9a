"""Make quantized PyTorch models from the merged model, and examine each as it is loaded from its file."""

from pathlib import Path

from core.artifacts import path_digest
from core.errors import ModelError
from core.quantization.config import PytorchType
from core.quantization.reports import PytorchFile
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.ladder import Bench, Rows, ask, text_agreement
from tasks.onnx_files import forget_others


def make_pytorch(
    context: RunContext, merged: Path, target: Path, kinds: tuple[PytorchType, ...], bench: Bench
) -> list[tuple[PytorchFile, Rows]]:
    """Write one folder per type and measure it, on the CPU; the target holds these and nothing else.

    Args:
        context: The run.
        merged: The merged model.
        target: Folder of the models, such as ``models/pytorch``.
        kinds: Types to make.
        bench: What they are held against.

    Returns:
        What was measured of each type, and one row per test question.
    """
    forget_others(target, kinds)
    if not kinds:
        return []
    from core.deployment.pytorch import export_pytorch

    made = []
    for number, kind in enumerate(kinds):
        context.watcher.advanced("quantize", number, len(kinds), f"writing PyTorch {kind}")
        export_pytorch(merged, target / kind)
        made.append(measure(context, target / kind, kind, bench))
    return made


def measure(context: RunContext, folder: Path, kind: PytorchType, bench: Bench) -> tuple[PytorchFile, Rows]:
    """Run one model on the test split, as merged models are run, and hold it against the merged one.

    Raises:
        ModelError: If it computes logits that are no numbers.
    """
    from core.evaluation.generation import TorchResponder
    from core.quantization.byte_model import WEIGHTS_FILE
    from core.quantization.dynamic import load_dynamic
    from core.quantization.reference import distance, model_logits

    arm, digest, model = f"pytorch-{kind}", path_digest(folder), load_dynamic(folder)
    apart = distance(model_logits(model), bench.references, answers_only=False)
    if apart is None:
        fix = "leave this type out of quantization.pytorch"
        raise ModelError("the 8-bit model computes logits that are no numbers", where=str(folder), fix=fix)
    responder = TorchResponder(model, chat_tokenizer(folder, "chatml"), bench.config.batch_size)
    result = ask(context, responder, arm, digest, bench)
    measured = PytorchFile(
        type=kind,
        path=folder.relative_to(context.workspace.root).as_posix(),
        digest=digest,
        bytes=(folder / WEIGHTS_FILE).stat().st_size,
        distance=apart,
        text_agreement=text_agreement(bench.merged, result.rows),
        evaluation=result.report,
    )
    return measured, result.rows
