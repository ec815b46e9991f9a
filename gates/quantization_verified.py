"""Did the model survive quantization, measured through the runtime that will serve it?"""

from itertools import chain

from core.evaluation.reports import EvalReport
from core.evaluation.statistics import Interval, paired_relative_gain
from core.quantization.reports import QuantizedFile, QuantReport
from gates.evidence import MEGABYTE, all_hold, comparable, honest, whole
from gates.thresholds import QuantizationVerified
from gates.verdict import Check, Verdict, above, at_least, at_most, below, equals, is_true, limit

SIXTEEN_BITS = frozenset({"f16", "bf16"})
"""Types that store every weight in full: another container, not a smaller model."""

CONTAINER_SLACK = 1.1
"""How much larger than the merged model such a file may be, for its vocabulary and padding."""


def quantization_verified(
    tuned: EvalReport | None, quantized: QuantReport | None, thresholds: QuantizationVerified
) -> Verdict:
    """Judge every quantized file against the merged model on the same examples.

    Args:
        tuned: The merged model's evaluation, or None if there is none.
        quantized: What was made of that model, or None if there is no report.
        thresholds: The limits.
    """
    merged, merged_presence = whole("tuned", tuned, EvalReport)
    made, made_presence = whole("quantization", quantized, QuantReport)
    checks = [merged_presence, made_presence]
    if merged:
        checks += honest("tuned", merged)
        checks.append(above("tuned score", merged.value, 0, "at zero there is nothing to keep"))
    if made:
        checks += _inventory(made)
        checks += chain.from_iterable(_artifact(file, made, thresholds) for file in made.files)
    if merged and made:
        checks.append(equals("quantized model", made.merged_digest, merged.model_digest, "the one evaluated"))
        checks += chain.from_iterable(_retained(file, merged, thresholds) for file in made.files)
    return Verdict.of("quantization-verified", checks)


def _inventory(made: QuantReport) -> list[Check]:
    types = [file.type for file in made.files]
    return [
        at_least("files", len(types), 1),
        equals("types", len(set(types)), len(types), "distinct types against files"),
        at_least("merged bytes", made.merged_bytes, 1),
    ]


def _artifact(file: QuantizedFile, made: QuantReport, thresholds: QuantizationVerified) -> list[Check]:
    label = file.type
    checks = [
        at_least(f"{label} bytes", file.bytes, 1),
        is_true(f"{label} starts with GGUF", file.has_magic),
        is_true(f"{label} loads and generates", file.loads),
        _smaller(file, made.merged_bytes),
        at_least(f"{label} prompts compared", file.prompt_mismatches, 0),
        limit(
            at_most(
                f"{label} prompts read differently", file.prompt_mismatches, thresholds.max_prompt_mismatches
            )
        ),
        equals(f"{label} measured file", file.evaluation.model_digest, file.digest),
        *honest(label, file.evaluation),
    ]
    if thresholds.max_size_mb is not None:
        checks.append(limit(at_most(f"{label} MB", file.bytes / MEGABYTE, thresholds.max_size_mb)))
    return checks


def _smaller(file: QuantizedFile, merged_bytes: int) -> Check:
    if file.type in SIXTEEN_BITS:
        return at_most(f"{file.type} size", file.bytes, CONTAINER_SLACK * merged_bytes, "a 16-bit container")
    return below(f"{file.type} size", file.bytes, merged_bytes, "bytes, against the merged model's")


def _retained(file: QuantizedFile, merged: EvalReport, thresholds: QuantizationVerified) -> list[Check]:
    label, scored = file.type, file.evaluation
    pairing = comparable(label, scored, merged)
    sound = merged.value > 0 and all_hold([*honest("tuned", merged), *honest(label, scored), *pairing])
    drop = (merged.value - scored.value) / merged.value if merged.value > 0 else None
    interval = _interval(scored, merged) if sound else None
    told = f"{merged.metric} {merged.value:.3f} to {scored.value:.3f} on {scored.n} examples"
    ends = (
        f"{interval.low:.3f} to {interval.high:.3f}" if interval else "not computed: scores cannot be paired"
    )
    upper = interval.high if interval else None
    return [
        *pairing,
        limit(at_most(f"{label} drop", drop, thresholds.max_drop, told)),
        limit(at_most(f"{label} drop, upper end", upper, thresholds.drop_upper, ends)),
    ]


def _interval(scored: EvalReport, merged: EvalReport) -> Interval:
    """Return the relative drop: a gain with its sign turned.

    The floor is one right answer, so it acts only on resamples that drew none at all.
    """
    gain = paired_relative_gain(
        merged.scores[merged.metric],
        scored.scores[scored.metric],
        floor=min(merged.value, 1 / merged.n),
        resamples=merged.resamples,
        confidence=merged.confidence,
        seed=merged.seed,
    )
    return Interval(-gain.value, -gain.high, -gain.low)
