"""Tiny random models of the dense families, made from their configs; nothing is downloaded."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = 5
"""Tokens a sliding layer sees; shorter than the documents."""

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama3-rope": LlamaConfig(
        **SIZES,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "phi3": Phi3Config(**SIZES, sliding_window=WINDOW),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
                           final_logit_softcapping=2.0, attn_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
                               layer_types=["sliding_attention", "full_attention"]),
    "granite": GraniteConfig(**SIZES, logits_scaling=3.0, residual_multiplier=0.5),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0]),
}  # fmt: skip


def build(name: str, attention: str = "sdpa"):
    """Build a family's model with weights large enough that attention and caps matter."""
    torch.manual_seed(5)
    # The soft cap inside Gemma 2's attention has no place in PyTorch's own.
    attention = "eager" if name == "gemma2" else attention
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6.0)
    return model.eval()
