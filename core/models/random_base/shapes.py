"""Decoders of published sizes, described by their settings alone: nothing of theirs is downloaded."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import file_digest, fingerprint


class Chat(NamedTuple):
    """How a family writes a conversation."""

    bos: str
    end: str
    pad: str
    others: tuple[str, ...]
    template: str


LLAMA = Chat(
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
)
CHATML = Chat(
    "",
    "<|im_end|>",
    "<|endoftext|>",
    ("<|im_start|>",),
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)
GEMMA = Chat(
    "<bos>",
    "<end_of_turn>",
    "<pad>",
    ("<start_of_turn>", "<eos>"),
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
)


def _llama(
    hidden: int, layers: int, heads: int, kv: int, inner: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": inner, "head_dim": hidden // heads, "vocab_size": 128_256, "tie_word_embeddings": tied,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, **more,
    }  # fmt: skip


SHAPES: dict[str, tuple[Chat, dict[str, Any]]] = {
    "llama-1b": (LLAMA, _llama(2048, 16, 32, 8, 8192, True)),
    "llama-8b": (LLAMA, _llama(4096, 32, 32, 8, 14_336, False)),
    "qwen3-4b": (CHATML, {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 9728, "head_dim": 128,
        "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }),
    "gemma3-1b": (GEMMA, {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 6912,
        "head_dim": 256, "vocab_size": 262_144, "tie_word_embeddings": True, "max_position_embeddings": 32_768,
        "query_pre_attn_scalar": 256, "sliding_window": 512,
    }),
    "gemma3-4b": (GEMMA, {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 2560,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 10_240,
        "head_dim": 256, "vocab_size": 262_208, "tie_word_embeddings": True, "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256, "sliding_window": 1024,
    }),
    "phi-3-mini": (CHATML, {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 32_064,
        "tie_word_embeddings": False, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }),
}  # fmt: skip

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "head_dim": 16, "vocab_size": 1024, "query_pre_attn_scalar": 16,
}  # fmt: skip

MADE = "made-from.json"
"""Says what a folder was made from; written last."""


def settings_of(name: str, *, tiny: bool = False, layers: int | None = None) -> dict[str, Any]:
    """Return the settings of a family, of the real size or of a size for trying this on a CPU.

    Args:
        name: A key of ``SHAPES``.
        tiny: 64 wide and two layers deep.
        layers: Another depth than the published one.
    """
    settings = dict(SHAPES[name][1])
    if tiny:
        settings.update({key: value for key, value in SMALL.items() if key in settings})
    return settings | ({"num_hidden_layers": layers} if layers else {})


def recipe(name: str, *, tiny: bool = False, seed: int = 0, layers: int | None = None) -> str:
    """Return what decides every byte of a base: its settings, its chat format, the seed, and the code that writes it."""
    settings = settings_of(name, tiny=tiny, layers=layers)
    writer = file_digest(Path(__file__).with_name("making.py"))
    return fingerprint(settings, SHAPES[name][0]._asdict(), seed, writer)


def is_made(folder: Path, name: str, *, tiny: bool = False) -> bool:
    """Tell whether a folder holds a whole base as it would be made now."""
    try:
        return bool(json.loads((folder / MADE).read_text(encoding="utf-8")) == recipe(name, tiny=tiny))
    except (OSError, ValueError):
        return False
