"""Rotary position settings and their scalings, as metadata keys and factor tensors."""

import math
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType
from numpy.typing import NDArray

from core.deployment.gguf.families import Family, head_width
from core.errors import ModelError

Factors = dict[str, NDArray[np.float32]]


def write_rope(writer: GGUFWriter, config: Any, family: Family) -> Factors:
    """Write a model's rotary settings.

    Args:
        writer: File under construction.
        config: transformers config of the language model.
        family: Its family.

    Returns:
        Tensors that must be stored with the weights, by their GGUF name.

    Raises:
        ModelError: If llama.cpp does not apply the scaling to this family.
    """
    rope = dict(config.rope_parameters)
    if family.alternates_window:
        local, rope = rope["sliding_attention"], dict(rope["full_attention"])
        _write_local(writer, local)
    kind = rope.get("rope_type", "default")
    if kind not in family.rope_types:
        raise ModelError(
            f"rope type {kind} cannot be written for {family.arch}",
            where="config.json:rope_parameters",
            fix=f"use one of {', '.join(family.rope_types)}",
        )
    width = _rotated_width(rope, config, family)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    return _SCALINGS[kind](writer, rope, config, width)


def _write_local(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            "llama.cpp does not scale positions in sliding-window layers", where="config.json:rope_parameters"
        )
    writer.add_rope_freq_base_swa(float(rope["rope_theta"]))


def _rotated_width(rope: dict[str, Any], config: Any, family: Family) -> int:
    share = float(rope.get("partial_rotary_factor") or 1.0)
    if share != 1.0 and not family.partial_rotary:
        raise ModelError(
            f"llama.cpp rotates whole heads in {family.arch}", where="config.json:partial_rotary_factor"
        )
    return int(head_width(config) * share)


def _default(writer: GGUFWriter, rope: dict[str, Any], config: Any, width: int) -> Factors:
    return {}


def _linear(writer: GGUFWriter, rope: dict[str, Any], config: Any, width: int) -> Factors:
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    return {}


def _llama3(writer: GGUFWriter, rope: dict[str, Any], config: Any, width: int) -> Factors:
    """Divide each frequency by what Llama 3.1 divides it by; llama.cpp reads the divisors as a tensor."""
    frequency = float(rope["rope_theta"]) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    # 1 where the wave is short (kept as it is), 0 where it is long (divided by the whole factor).
    kept = np.clip((turns - low) / (high - low), 0, 1)
    divisors = 1 / (kept + (1 - kept) / float(rope["factor"]))
    return {"rope_freqs.weight": divisors.astype(np.float32)}


def _yarn(writer: GGUFWriter, rope: dict[str, Any], config: Any, width: int) -> Factors:
    """Write YaRN (arXiv:2309.00071); llama.cpp applies the paper's attention scale by itself."""
    # llama.cpp has keys for the bounds but ignores them in these families (measured: README).
    bounds = (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1, rope.get("truncate", True))
    if bounds != (32, 1, True):
        raise ModelError(
            "llama.cpp runs YaRN with beta_fast 32, beta_slow 1 and rounded bounds only",
            where="config.json:rope_parameters",
        )
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope["factor"] or config.max_position_embeddings / original)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original)
    wanted = _yarn_attention(rope, factor)
    writer.add_rope_scaling_attn_factors(wanted / _mscale(factor, 1.0))
    return {}


def _yarn_attention(rope: dict[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    return _mscale(factor, over) / _mscale(factor, under) if over and under else _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(writer: GGUFWriter, rope: dict[str, Any], config: Any, width: int) -> Factors:
    """Write LongRoPE (arXiv:2402.13753); llama.cpp picks short or long factors by the context it is given."""
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or config.max_position_embeddings / original)
    attention = rope.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors(float(attention))
    return {
        f"rope_factors_{span}.weight": np.asarray(rope[f"{span}_factor"], dtype=np.float32)
        for span in ("long", "short")
    }


_SCALINGS = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
