"""How a decoder is built, from its config.json or from what its publisher says."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class VisionShape(NamedTuple):
    """A SigLIP image tower as Gemma 3 carries it; text runs load it too."""

    hidden: int = 1152
    layers: int = 27
    intermediate: int = 4304
    image: int = 896
    patch: int = 14


class ModelShape(NamedTuple):
    """The numbers that decide a decoder's size."""

    family: str
    """Its model_type, which names the entry of FAMILIES."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    is_tied: bool
    """The output head is the embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    vision: VisionShape | None = None


class Family(NamedTuple):
    """What a model_type fixes without saying so in config.json."""

    n_norms: int = 2
    """Norms of the hidden width in a block."""
    has_head_norms: bool = False
    """Queries and keys are normalised per head."""
    is_fused: bool = False
    """q, k, v are one linear layer, gate and up another."""
    is_masked: bool = False
    """Attention is told by a mask what it may see, so keys and values are repeated for every head."""
    defaults: Mapping[str, Any] = {}
    """Keys that published config.json files of the family leave out."""


GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "granite": Family(),
    "smollm3": Family(defaults={"tie_word_embeddings": True}),
    "phi3": Family(is_fused=True),
    "qwen2": Family(defaults={"qkv_bias": True}),
    "qwen3": Family(has_head_norms=True, defaults={"head_dim": 128}),
    "gemma": Family(defaults={"tie_word_embeddings": True}),
    "gemma2": Family(n_norms=4, is_masked=True, defaults={"tie_word_embeddings": True}),
    "gemma3_text": Family(n_norms=4, has_head_norms=True, is_masked=True, defaults=GEMMA3_DEFAULTS),
}

SIGLIP = VisionShape()

PUBLISHED: dict[str, ModelShape] = {
    "google/gemma-3-270m-it": ModelShape("gemma3_text", 640, 18, 4, 1, 256, 2048, 262_144, True),
    "google/gemma-3-1b-it": ModelShape("gemma3_text", 1152, 26, 4, 1, 256, 6912, 262_144, True),
    "google/gemma-3-4b-it": ModelShape(
        "gemma3_text", 2560, 34, 8, 4, 256, 10240, 262208, True, vision=SIGLIP
    ),
    "google/gemma-3-12b-it": ModelShape(
        "gemma3_text", 3840, 48, 16, 8, 256, 15360, 262208, True, vision=SIGLIP
    ),
    "google/gemma-3-27b-it": ModelShape(
        "gemma3_text", 5376, 62, 32, 16, 128, 21504, 262208, True, vision=SIGLIP
    ),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape("llama", 4096, 32, 32, 8, 128, 14_336, 128_256, False),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape("llama", 2048, 16, 32, 8, 64, 8192, 128_256, True),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape("llama", 3072, 28, 24, 8, 128, 8192, 128_256, True),
    "meta-llama/Llama-3.1-70B-Instruct": ModelShape("llama", 8192, 80, 64, 8, 128, 28_672, 128_256, False),
    "mistralai/Mistral-7B-Instruct-v0.3": ModelShape("mistral", 4096, 32, 32, 8, 128, 14_336, 32_768, False),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape("qwen2", 896, 24, 14, 2, 64, 4864, 151_936, True, True),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape("qwen2", 1536, 28, 12, 2, 128, 8960, 151_936, True, True),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape("qwen2", 2048, 36, 16, 2, 128, 11_008, 151_936, True, True),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape("qwen2", 3584, 28, 28, 4, 128, 18_944, 152_064, False, True),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape("qwen2", 5120, 48, 40, 8, 128, 13_824, 152_064, False, True),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape("qwen2", 5120, 64, 40, 8, 128, 27_648, 152_064, False, True),
    "Qwen/Qwen3-0.6B": ModelShape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, True),
    "Qwen/Qwen3-1.7B": ModelShape("qwen3", 2048, 28, 16, 8, 128, 6144, 151_936, True),
    "Qwen/Qwen3-4B": ModelShape("qwen3", 2560, 36, 32, 8, 128, 9728, 151_936, True),
    "Qwen/Qwen3-8B": ModelShape("qwen3", 4096, 36, 32, 8, 128, 12_288, 151_936, False),
    "Qwen/Qwen3-14B": ModelShape("qwen3", 5120, 40, 40, 8, 128, 17_408, 151_936, False),
    "Qwen/Qwen3-32B": ModelShape("qwen3", 5120, 64, 64, 8, 128, 25_600, 151_936, False),
    "microsoft/Phi-3-mini-4k-instruct": ModelShape("phi3", 3072, 32, 32, 32, 96, 8192, 32_064, False),
    "microsoft/Phi-3.5-mini-instruct": ModelShape("phi3", 3072, 32, 32, 32, 96, 8192, 32_064, False),
    "microsoft/Phi-4-mini-instruct": ModelShape("phi3", 3072, 32, 24, 8, 128, 8192, 200_064, True),
    "microsoft/phi-4": ModelShape("phi3", 5120, 40, 40, 10, 128, 17_920, 100_352, False),
}
"""Shapes as their publishers give them, for Hub ids whose config.json is not on this machine."""

# Endings that name a variant of the same size: tuned, context length, storage, release.
_VARIANT = re.compile(r"-(it|pt|instruct|base|chat|hf|unsloth|bnb|4bit|4k|128k|bf16|v0\.\d|\d{4})(?=-|$)")


def published_shape(name: str) -> ModelShape | None:
    """Look up a Hub id, or a variant of one such as ``unsloth/gemma-3-4b-it-bnb-4bit``."""
    return next((shape for known, shape in PUBLISHED.items() if _stem(known) == _stem(name)), None)


def _stem(name: str) -> str:
    return _VARIANT.sub("", name.rsplit("/", 1)[-1].lower()).removeprefix("meta-")


def shape_from_config(config: Mapping[str, Any]) -> ModelShape | None:
    """Read the shape out of a model's config.json.

    Args:
        config: The parsed file; a multimodal one is read through its ``text_config``.

    Returns:
        The shape, or None for a family whose size is not known here.
    """
    if config.get("model_type") == "gemma3":
        text = {"model_type": "gemma3_text", **config.get("text_config", {})}
        shape = shape_from_config(text)
        return shape and shape._replace(vision=_vision(config.get("vision_config", {})))
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        return None
    merged = {**FAMILIES[family].defaults, **{k: v for k, v in config.items() if v is not None}}
    try:
        return _shape(family, merged)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _shape(family: str, config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    bias = bool(config.get("attention_bias", False))
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads", heads)),
        head_dim=int(config.get("head_dim", hidden // heads)),
        intermediate=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bool(config.get("qkv_bias", bias)),
        o_bias=bias and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _vision(config: Mapping[str, Any]) -> VisionShape:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")
    return VisionShape(*(int(config.get(key, usual)) for key, usual in zip(keys, SIGLIP, strict=True)))
