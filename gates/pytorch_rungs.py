"""Quantized PyTorch models beside the ladder: sound evidence closes the gate, a lossy model is on record.

They are not what ships in the bundle, as ONNX models are not. Every one of them was asked the test questions.
"""

from core.evaluation.reports import EvalReport
from core.quantization.reports import PytorchFile
from gates.evidence import comparable, honest
from gates.rungs import distance_checks, retained
from gates.thresholds import QuantizationVerified
from gates.verdict import Check, at_least, at_most, equals, is_true


def pytorch_sound(file: PytorchFile) -> list[Check]:
    """Check that a PyTorch model was really measured, as the files it was loaded from.

    Args:
        file: A validated entry of the report.
    """
    label = f"PyTorch {file.type}"
    return [
        at_least(f"{label} bytes", file.bytes, 1),
        is_true(f"{label} digest known", bool(file.digest.strip())),
        equals(f"{label} measured file", file.evaluation.model_digest, file.digest),
        *distance_checks(f"{label} logits", file.distance),
        at_least(f"{label} share of equal answers", file.text_agreement, 0),
        at_most(f"{label} share of equal answers of all", file.text_agreement, 1),
        *honest(f"pytorch-{file.type}", file.evaluation),
    ]


def pytorch_paired(file: PytorchFile, merged: EvalReport) -> list[Check]:
    """Check that a PyTorch model was asked the merged model's questions, in the very same words.

    Args:
        file: A validated entry of the report.
        merged: The merged model's validated evaluation.
    """
    label = f"PyTorch {file.type}"
    mine, theirs = file.evaluation.decoding.prompt_digest, merged.decoding.prompt_digest
    return [*comparable(label, file.evaluation, merged), equals(f"{label} prompts", mine, theirs)]


def pytorch_retained(file: PytorchFile, merged: EvalReport, thresholds: QuantizationVerified) -> list[Check]:
    """Compare the score of a PyTorch model as those of the ladder are compared."""
    kept = f"{100 * file.text_agreement:.1f} % said word for word"
    return retained(f"PyTorch {file.type}", file.evaluation, merged, thresholds, kept)
