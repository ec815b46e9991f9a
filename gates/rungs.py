"""One rung of the ladder of quantized files: is its evidence sound, and is it as good as the merged model?

Soundness closes the gate for any file, whether it is shipped or not: numbers that cannot be trusted on one rung
say nothing good about the others. Being too lossy or too large only rejects the rung.
"""

from collections.abc import Sequence
from typing import Literal

from core.evaluation.reports import EvalReport
from core.quantization.config import GgufType
from core.quantization.reports import Distance, QuantizedFile, QuantReport
from gates.evidence import MEGABYTE, all_hold, comparable, honest
from gates.gains import Pair, Unit, gain_interval, point_gain
from gates.thresholds import QuantizationVerified
from gates.verdict import Check, at_least, at_most, below, equals, is_true, limit

SIXTEEN_BITS = frozenset({"f16", "bf16"})
"""Types that store every weight in full: another container, not a smaller model."""

Wanted = GgufType | Literal["smallest"]
"""The type that is to ship: one by name, or the smallest that is good enough."""

CONTAINER_SLACK = 1.1
"""How much larger than the merged model such a file may be, for its vocabulary and padding."""


def shipped(
    tuned: EvalReport, quantized: QuantReport, thresholds: QuantizationVerified, wanted: Wanted = "smallest"
) -> QuantizedFile | None:
    """Return the file that ships: the smallest that is good enough, or the named one if it is.

    Args:
        tuned: The merged model's evaluation.
        quantized: The files made of it; those measured so far are enough.
        thresholds: The limits.
        wanted: The type that is to ship.

    Returns:
        The file, or None if none may ship.
    """
    for file in ladder(quantized.files):
        if wanted in ("smallest", file.type) and _may_ship(file, tuned, quantized, thresholds):
            return file
    return None


def judged(
    tuned: EvalReport, quantized: QuantReport, thresholds: QuantizationVerified, wanted: Wanted = "smallest"
) -> QuantizedFile | None:
    """Return the file whose numbers decide: the one that ships, else the named one, else the most faithful.

    None only if there is no file, or not the named one.
    """
    found = shipped(tuned, quantized, thresholds, wanted)
    if found is not None:
        return found
    asked = [file for file in ladder(quantized.files) if wanted in ("smallest", file.type)]
    return asked[-1] if asked else None


def ladder(files: Sequence[QuantizedFile]) -> list[QuantizedFile]:
    """Sort files from small to large by their real bytes."""
    return sorted(files, key=lambda file: (file.bytes, file.type))


def _may_ship(
    file: QuantizedFile, tuned: EvalReport, quantized: QuantReport, thresholds: QuantizationVerified
) -> bool:
    evidence = [*sound(file), *paired(file, tuned)]
    return all_hold([*evidence, *good_enough(file, tuned, quantized.merged_bytes, thresholds)])


def sound(file: QuantizedFile) -> list[Check]:
    """Check that a file was really measured, as the file it is.

    Args:
        file: A validated entry of the report.
    """
    label = file.type
    return [
        at_least(f"{label} bytes", file.bytes, 1),
        is_true(f"{label} starts with GGUF", file.has_magic),
        at_least(f"{label} prompts compared", file.prompt_mismatches, 0),
        equals(f"{label} measured file", file.evaluation.model_digest, file.digest),
        *distance_checks(f"{label} logits", file.distance),
        at_least(f"{label} answers compared", file.text_agreement, 0),
        at_most(f"{label} share of equal answers", file.text_agreement, 1),
        *_flips(file),
        *honest(label, file.evaluation),
    ]


def distance_checks(label: str, found: Distance | None) -> list[Check]:
    """Check that logits were compared and that the numbers are possible.

    Args:
        label: Names the checks.
        found: The distance, None if nothing was compared.
    """
    if found is None:
        return [at_least(f"{label} compared", None, 1, "positions; without them nothing is known")]
    return [
        at_least(f"{label} compared", found.tokens, 1, "positions"),
        at_least(f"{label} divergence is one", found.kl, 0),
        at_least(f"{label} difference is one", found.max_abs, 0),
        at_least(f"{label} agreement is a share", found.argmax_agreement, 0),
        at_most(f"{label} agreement is a share of all", found.argmax_agreement, 1),
    ]


def _flips(file: QuantizedFile) -> list[Check]:
    changed = file.broken + file.fixed
    return [
        at_least(f"{file.type} broken answers", file.broken, 0),
        at_least(f"{file.type} fixed answers", file.fixed, 0),
        at_most(f"{file.type} changed answers", changed, file.evaluation.n, "of all that were asked"),
    ]


def paired(file: QuantizedFile, merged: EvalReport) -> list[Check]:
    """Check that a file answered the merged model's questions, in the same way."""
    return comparable(file.type, file.evaluation, merged)


def good_enough(
    file: QuantizedFile, merged: EvalReport, merged_bytes: int, thresholds: QuantizationVerified
) -> list[Check]:
    """Check that a file does as well as the merged model, within the limits; it may ship if all of them hold.

    Args:
        file: A validated entry of the report.
        merged: The merged model's validated evaluation.
        merged_bytes: Size of the merged model.
        thresholds: The limits.
    """
    label, mismatches = file.type, thresholds.max_prompt_mismatches
    checks = [
        is_true(f"{label} loads and generates", file.loads),
        _smaller(file, merged_bytes),
        limit(at_most(f"{label} prompts read differently", file.prompt_mismatches, mismatches)),
        *retained(label, file.evaluation, merged, thresholds, _told_flips(file)),
    ]
    if thresholds.max_kl is not None:
        kl = file.distance.kl if file.distance else None
        checks.append(limit(at_most(f"{label} divergence", kl, thresholds.max_kl, "nats, on its answers")))
    if thresholds.max_size_mb is not None:
        checks.append(limit(at_most(f"{label} MB", file.bytes / MEGABYTE, thresholds.max_size_mb)))
    return checks


def _smaller(file: QuantizedFile, merged_bytes: int) -> Check:
    if file.type in SIXTEEN_BITS:
        return at_most(f"{file.type} size", file.bytes, CONTAINER_SLACK * merged_bytes, "a 16-bit container")
    return below(f"{file.type} size", file.bytes, merged_bytes, "bytes, against the merged model's")


def retained(
    label: str, scored: EvalReport, merged: EvalReport, thresholds: QuantizationVerified, told: str
) -> list[Check]:
    """Check that the score fell by no more than the limits allow, for all that chance can hide.

    Args:
        label: Names the checks.
        scored: A validated evaluation of a quantized model.
        merged: The merged model's.
        thresholds: The limits.
        told: What else to say about the answers.
    """
    metric = merged.metric
    evidence = [*honest("tuned", merged), *honest(scored.arm, scored), *comparable(label, scored, merged)]
    can_pair = merged.value > 0 and all_hold(evidence)
    drop = upper = None
    ends = "not computed: scores cannot be paired"
    if can_pair:
        # One right answer is the floor, so it acts only on resamples that drew none at all.
        unit = Unit("relative", min(merged.value, 1 / merged.n))
        gain = gain_interval(Pair(metric, merged, scored), unit)
        # Subtracting from zero, as -0.0 would look like a gain.
        upper, ends = 0.0 - gain.low, f"{0.0 - gain.high:.3f} to {0.0 - gain.low:.3f}"
    if merged.value > 0 and scored.metric == metric:
        lost = point_gain(metric, merged.value, scored.value, Unit("relative", 0.0))
        drop = None if lost is None else 0.0 - lost
    story = f"{metric} {merged.value:.3f} to {scored.value:.3f} on {scored.n} examples"
    return [
        limit(at_most(f"{label} drop", drop, thresholds.max_drop, "; ".join(filter(None, (story, told))))),
        limit(at_most(f"{label} drop, upper end", upper, thresholds.drop_upper, ends)),
    ]


def _told_flips(file: QuantizedFile) -> str:
    kept = "" if file.text_agreement is None else f", {100 * file.text_agreement:.1f} % said word for word"
    return f"{file.broken} broken, {file.fixed} fixed{kept}"
