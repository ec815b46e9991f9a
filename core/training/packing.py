"""Which models keep documents of one row apart; known from config.json, without PyTorch."""

from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError
from core.models.fused.costs import FAMILIES

DENSE = frozenset({
    "cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3",
    "qwen2", "qwen3", "smollm3", "starcoder2",
})  # fmt: skip
"""Model types whose layers mix tokens by attention alone, so that a mask keeps documents apart."""
FUSED = FAMILIES
"""Model types that the fused engine keeps apart: its attention is told where documents begin."""
SCALED = frozenset({"longrope", "su", "dynamic"})
"""Rope types whose angles depend on the longest document of a batch; su is an old name of longrope."""


_KNOWN = {"hf": DENSE, "fused": FUSED}


def packing_obstacle(settings: Mapping[str, Any], framework: str, window: int | None) -> ConfigError | None:
    """Say why documents of one row could see each other; None if they cannot.

    Args:
        settings: The model's config.json; an empty one says nothing against it.
        framework: Engine that trains.
        window: Tokens of a row.
    """
    kind = settings.get("model_type")
    if framework not in _KNOWN:
        return unpackable(f"the {framework} engine is not known to keep documents of one row apart")
    if kind is not None and kind not in _KNOWN[framework]:
        reason = f"models of type {kind} are not known to keep documents of one row apart"
        if kind in DENSE:
            return unpackable(f"{reason} under the {framework} engine", " or model.framework: hf")
        return unpackable(reason)
    scaled, original = _scaling(settings)
    if scaled and (window or 0) > original:
        reason = f"its positions are scaled by the longest document of a batch beyond {original} tokens"
        return unpackable(reason, f" or model.max_seq_length: {original}")
    return None


def unpackable(reason: str, way_out: str = "") -> ConfigError:
    """Word the refusal."""
    return ConfigError(
        f"this model cannot be trained on packed rows: {reason}",
        where="training.packing",
        fix=f"set training.packing: false{way_out}",
    )


def _scaling(settings: Mapping[str, Any]) -> tuple[bool, int]:
    """Tell whether angles depend on the length, and from which length on."""
    text = settings.get("text_config")
    text = text if isinstance(text, Mapping) else settings
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    rope = rope if isinstance(rope, Mapping) else {}
    name = "original_max_position_embeddings"
    original = rope.get(name) or text.get(name)
    return rope.get("rope_type", rope.get("type")) in SCALED, original if isinstance(original, int) else 0
