"""Is the bundle complete, is it the verified model, and does it answer on this machine?"""

from core.deployment.reports import BundleReport, Smoke
from core.quantization.reports import QuantReport
from gates.evidence import MEGABYTE, whole
from gates.thresholds import DeploymentReady
from gates.verdict import Check, Verdict, above, at_least, at_most, equals, is_true, limit


def deployment_ready(
    bundle: BundleReport | None,
    quantized: QuantReport | None,
    thresholds: DeploymentReady,
    chosen: str | None,
) -> Verdict:
    """Judge the bundle: the file that was chosen, whole, documented, fast and small enough.

    Args:
        bundle: What was bundled and how it behaved, or None if there is no report.
        quantized: The report that quantization-verified judged, or None if there is none.
        thresholds: The limits.
        chosen: Digest of the file that the ladder chose, or None if it chose none.
    """
    packed, packed_presence = whole("bundle", bundle, BundleReport)
    made, made_presence = whole("quantization", quantized, QuantReport)
    checks = [packed_presence, made_presence]
    if packed:
        checks += _complete(packed, thresholds)
        checks += _answers(packed.smoke, thresholds)
    if packed and made:
        checks += _verified(packed, made, chosen)
    return Verdict.of("deployment-ready", checks)


def _complete(packed: BundleReport, thresholds: DeploymentReady) -> list[Check]:
    size = _model_bytes(packed)
    checks = [
        equals("bundled model", packed.gguf_digest, packed.verified_digest, "the file that was verified"),
        at_least("bundled model bytes", size, 1, "the bundle's entry with the model's digest"),
        equals("missing files", len(packed.missing), 0, ", ".join(packed.missing)),
        equals("model card errors", len(packed.card_errors), 0, "; ".join(packed.card_errors)),
    ]
    if thresholds.max_size_mb is not None:
        checks.append(limit(at_most("MB", None if size is None else size / MEGABYTE, thresholds.max_size_mb)))
    return checks


def _answers(smoke: Smoke, thresholds: DeploymentReady) -> list[Check]:
    checks = [
        is_true("a question was asked", bool(smoke.prompt.strip())),
        is_true("the answer is not blank", bool(smoke.answer.strip())),
        at_least("answer tokens", smoke.tokens, 1),
        above("speed measured", smoke.tokens_per_second, 0),
        limit(at_least("tokens per second", smoke.tokens_per_second, thresholds.min_tokens_per_second)),
        above("memory measured", smoke.memory_mb, 0, "MB; a process without memory was not measured"),
    ]
    if thresholds.max_memory_gb is not None:
        checks.append(limit(at_most("memory GB", smoke.memory_mb / 1000, thresholds.max_memory_gb)))
    return checks


def _verified(packed: BundleReport, made: QuantReport, chosen: str | None) -> list[Check]:
    file = next((file for file in made.files if file.digest == packed.gguf_digest), None)
    return [
        is_true("bundled model was quantized here", file is not None),
        equals("bundled file", packed.gguf_digest, chosen, "the one the ladder chose"),
        equals("bundled type", packed.gguf_type, file.type if file else None),
        equals("bundled bytes", _model_bytes(packed), file.bytes if file else None),
    ]


def _model_bytes(packed: BundleReport) -> int | None:
    return next((file.bytes for file in packed.files if file.digest == packed.gguf_digest), None)
