"""Tiny models of the real classes, with what makes each family special."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.families.vocabularies import PUBLISHED, tokenizer_for

# Its constructors have no types.
hub: Any = transformers
FAMILIES: tuple[str, ...] = (
    *("gemma-3", "llama-3.1", "llama-3.2", "mistral"),
    *("qwen2.5", "qwen3", "phi-3", "phi-4"),
)
VARIANTS: tuple[str, ...] = ("phi-3-128k", "phi-4-mini")
"""Further models of the same families: scaled positions, another vocabulary."""

CLASSES = {
    "gemma": "Gemma3",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2.5": "Qwen2",
    "qwen3": "Qwen3",
    "phi": "Phi3",
}


def build(
    family: str,
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Save a tiny random model of a family with its tokenizer and chat template.

    Args:
        family: One of ``FAMILIES`` or ``VARIANTS``.
        folder: Where to save it.
        hidden: Width, a multiple of 16; with a multiple of 256 every GGUF type fits.
        layers: Layers; Gemma has at least six, so that one of them is full.
        seed: Draws the weights.
        dtype: Type of the saved weights.

    Returns:
        The folder.
    """
    tokenizer = tokenizer_for(family)
    model = random_model(family, tokenizer, hidden=hidden, layers=layers, seed=seed)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_model(family: str, tokenizer: Any, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Any:
    """Return a tiny model of a family in float32, every weight off its initial value."""
    kind = next(name for prefix, name in CLASSES.items() if family.startswith(prefix))
    settings = _common(tokenizer, hidden, layers) | _PECULIAR[family](hidden, layers)
    config = getattr(hub, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")(**settings)
    model = getattr(hub, f"{kind}ForCausalLM")(config)
    perturb(model, seed)
    names = PUBLISHED["phi-3" if family == "phi-3-128k" else family].stops
    stops = [tokenizer.convert_tokens_to_ids(name) for name in names]
    model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops
    return model.eval()


def perturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Move every norm and bias off its initial value, and sharpen the rest, so mapping errors show."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
            else:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.06)


def _common(tokenizer: Any, hidden: int, layers: int) -> dict[str, Any]:
    return {
        # Published embeddings have more rows than tokens.
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def _gemma(hidden: int, layers: int) -> dict[str, Any]:
    width = hidden // 2
    return {
        "num_hidden_layers": max(layers, 6),
        "head_dim": width,
        "query_pre_attn_scalar": width,
        "sliding_window": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    }


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


def _llama31(hidden: int, layers: int) -> dict[str, Any]:
    return {"rope_parameters": _llama3_rope(8.0), "rms_norm_eps": 1e-5}


def _llama32(hidden: int, layers: int) -> dict[str, Any]:
    return {"rope_parameters": _llama3_rope(32.0), "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def _mistral(hidden: int, layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return {"sliding_window": None, "rms_norm_eps": 1e-5, "rope_parameters": rope}


def _qwen25(hidden: int, layers: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6}


def _qwen3(hidden: int, layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return {
        "head_dim": hidden // 2,
        "rope_parameters": rope,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }


def _phi3(hidden: int, layers: int) -> dict[str, Any]:
    # The published 4k model slides a window of half its context, which llama.cpp leaves out.
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return {"num_key_value_heads": 4, "sliding_window": 1024, "rope_parameters": rope}


def _long_rope(pairs: int, share: float = 1.0) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "partial_rotary_factor": share,
        "short_factor": [1 + 0.1 * n for n in range(pairs)],
        "long_factor": [1 + 0.5 * n for n in range(pairs)],
    }


def _phi3_long(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 256,
        "rope_parameters": _long_rope(hidden // 8),
    }


def _phi4(hidden: int, layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 250_000.0, "partial_rotary_factor": 0.75}
    return {"rope_parameters": rope}


def _phi4_mini(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 256,
        "rope_parameters": _long_rope(hidden * 3 // 32, 0.75),
    }


_PECULIAR = {
    "gemma-3": _gemma,
    "llama-3.1": _llama31,
    "llama-3.2": _llama32,
    "mistral": _mistral,
    "qwen2.5": _qwen25,
    "qwen3": _qwen3,
    "phi-3": _phi3,
    "phi-3-128k": _phi3_long,
    "phi-4": _phi4,
    "phi-4-mini": _phi4_mini,
}
