"""Which quantized file is as good as the model, measured through the runtime that will serve it?

The files are a ladder from small to large. The smallest that loses nothing worth mentioning ships; those below it
are on record as tried. If the 16-bit file already differs from the model, the export is wrong, and no file ships.
"""

from collections.abc import Sequence
from itertools import chain

from core.evaluation.reports import EvalReport
from core.quantization.reports import QuantReport
from gates.evidence import all_hold, honest, whole
from gates.onnx_rungs import onnx_paired, onnx_retained, onnx_sound
from gates.pytorch_rungs import pytorch_paired, pytorch_retained, pytorch_sound
from gates.rungs import Wanted, distance_checks, good_enough, judged, ladder, paired, sound
from gates.thresholds import QuantizationVerified
from gates.verdict import Check, Verdict, above, at_least, at_most, equals, is_true, limit


def quantization_verified(
    tuned: EvalReport | None,
    quantized: QuantReport | None,
    thresholds: QuantizationVerified,
    wanted: Wanted = "smallest",
) -> Verdict:
    """Judge the ladder of quantized files against the merged model on the same examples.

    Args:
        tuned: The merged model's evaluation, or None if there is none.
        quantized: What was made of that model, or None if there is no report.
        thresholds: The limits.
        wanted: The type that is to ship; a named one must be good enough itself.
    """
    merged, merged_presence = whole("tuned", tuned, EvalReport)
    made, made_presence = whole("quantization", quantized, QuantReport)
    checks, tried = [merged_presence, made_presence], list[Check]()
    if merged:
        checks += honest("tuned", merged)
        checks.append(above("tuned score", merged.value, 0, "at zero there is nothing to keep"))
    if made:
        checks += _inventory(made)
        checks += _parity(made, thresholds)
        checks += chain.from_iterable(sound(file) for file in made.files)
        checks += chain.from_iterable(onnx_sound(file, thresholds) for file in made.onnx)
        checks += chain.from_iterable(pytorch_sound(file) for file in made.pytorch)
    if merged and made:
        checks.append(equals("quantized model", made.merged_digest, merged.model_digest, "the one evaluated"))
        checks += chain.from_iterable(paired(file, merged) for file in made.files)
        checks += chain.from_iterable(onnx_paired(file, merged) for file in made.onnx)
        checks += chain.from_iterable(pytorch_paired(file, merged) for file in made.pytorch)
        decisive, tried = _ladder(merged, made, thresholds, wanted)
        checks += decisive
        tried += chain.from_iterable(onnx_retained(file, merged, thresholds) for file in made.onnx)
        tried += chain.from_iterable(pytorch_retained(file, merged, thresholds) for file in made.pytorch)
    return Verdict.of("quantization-verified", checks, tried)


def _inventory(made: QuantReport) -> list[Check]:
    types = [file.type for file in made.files]
    both = set(types) & set(made.skipped)
    return [
        at_least("files", len(types), 1),
        equals("types", len(set(types)), len(types), "distinct types against files"),
        equals("types skipped and measured", len(both), 0, ", ".join(sorted(both))),
        at_least("merged bytes", made.merged_bytes, 1),
    ]


def _parity(made: QuantReport, thresholds: QuantizationVerified) -> list[Check]:
    """Hold the 16-bit file against the model: rounding to 16 bits moves logits by next to nothing."""
    found = made.parity
    causes = (
        f"likely causes for {made.family or 'this model'}: {'; '.join(made.causes)}" if made.causes else ""
    )
    told = f"the export of {made.family or 'the model'} is wrong if this fails; {causes}".rstrip("; ")
    if made.reference_dtype not in ("", "float32"):
        told = (
            f"the model's own logits were computed in {made.reference_dtype} for want of memory, "
            f"which alone can be why this fails; else {told}"
        )
    kl, agreement = (found.kl, found.argmax_agreement) if found else (None, None)
    return [
        *distance_checks("16-bit logits", found),
        limit(at_most("16-bit divergence", kl, thresholds.max_parity_kl, told)),
        limit(at_least("16-bit same likeliest token", agreement, thresholds.min_parity_argmax, told)),
    ]


def _ladder(
    merged: EvalReport, made: QuantReport, thresholds: QuantizationVerified, wanted: Wanted
) -> tuple[list[Check], list[Check]]:
    """Return the checks that decide, and those of the rungs that were tried beside them."""
    chosen = judged(merged, made, thresholds, wanted)
    rungs = {f.type: good_enough(f, merged, made.merged_bytes, thresholds) for f in ladder(made.files)}
    decisive = [_a_rung_holds(rungs, wanted)]
    decisive += rungs.pop(chosen.type) if chosen else []
    return decisive, [*chain.from_iterable(rungs.values())]


def _a_rung_holds(rungs: dict[str, list[Check]], wanted: Wanted) -> Check:
    good = [kind for kind, checks in rungs.items() if all_hold(checks)]
    told = "; ".join(_told(kind, checks) for kind, checks in rungs.items())
    if wanted == "smallest":
        return at_least("types good enough", len(good), 1, told)
    instead = [kind for kind in good if kind != wanted]
    if wanted not in good and instead:
        told = f"{told}; deployment.format: smallest would ship {instead[0]}"
    return is_true(f"{wanted} is good enough", wanted in good, told)


def _told(kind: str, checks: Sequence[Check]) -> str:
    failed = [check.name.removeprefix(f"{kind} ") for check in checks if not check.passed]
    return f"{kind}: {', '.join(failed)} failed" if failed else f"{kind} holds"
