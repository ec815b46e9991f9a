"""ONNX models beside the ladder: sound evidence, nothing lost at full precision, and the rounded ones on record.

They are not what ships in the bundle, so a lossy one closes nothing; a wrong export does.
"""

from core.evaluation.reports import EvalReport
from core.quantization.reports import OnnxFile
from gates.evidence import comparable, honest
from gates.rungs import distance_checks, retained
from gates.thresholds import QuantizationVerified
from gates.verdict import Check, above, at_least, at_most, equals, is_true, limit


def onnx_sound(file: OnnxFile, thresholds: QuantizationVerified) -> list[Check]:
    """Check that an ONNX model was really measured, and at full precision equals the merged model.

    Args:
        file: A validated entry of the report.
        thresholds: The limits.
    """
    label = f"ONNX {file.type}"
    checks = [
        at_least(f"{label} bytes", file.bytes, 1),
        is_true(f"{label} digest known", bool(file.digest.strip())),
        *distance_checks(f"{label} prompt logits", file.distance),
        *distance_checks(f"{label} step logits", file.decode_distance),
        at_least(f"{label} share of equal answers", file.text_agreement, 0),
        at_most(f"{label} share of equal answers of all", file.text_agreement, 1),
        above(f"{label} speed", file.benchmark.tokens_per_second, 0),
    ]
    if file.evaluation is not None:
        checks += honest(f"onnx-{file.type}", file.evaluation)
        checks.append(equals(f"{label} measured file", file.evaluation.model_digest, file.digest))
    if file.type == "fp32":
        # Nothing is rounded there: a difference is an error of the export.
        most = thresholds.max_onnx_difference
        prompt, steps = file.distance.max_abs, file.decode_distance.max_abs
        checks.append(limit(at_most(f"{label} prompt difference", prompt, most)))
        checks.append(limit(at_most(f"{label} step difference", steps, most)))
    return checks


def onnx_paired(file: OnnxFile, merged: EvalReport) -> list[Check]:
    """Check that an ONNX model, if it was asked, answered the merged model's questions."""
    return comparable(f"ONNX {file.type}", file.evaluation, merged) if file.evaluation else []


def onnx_retained(file: OnnxFile, merged: EvalReport, thresholds: QuantizationVerified) -> list[Check]:
    """Compare the score of an ONNX model, if it was asked, as those of the ladder are compared."""
    if file.evaluation is None:
        return []
    kept = f"{100 * file.text_agreement:.1f} % said word for word"
    return retained(f"ONNX {file.type}", file.evaluation, merged, thresholds, kept)
