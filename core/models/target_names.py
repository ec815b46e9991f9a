"""Which layers get an adapter, as far as their names tell; no framework is needed."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from core.models.config import LoraConfig

FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Layers that some families (Phi-3, Phi-4) keep as one matrix."""
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value"}
MLP = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc"}


class Matched(NamedTuple):
    """Target names against the layers that a model has."""

    chosen: tuple[str, ...]
    """Layers to adapt, as the model calls them."""
    absent: tuple[str, ...]
    """Names that were asked for and have no layer."""


def is_wanted(name: str, config: LoraConfig) -> bool:
    """Tell whether the finetune_* switches leave a layer in."""
    if not config.finetune_language_layers:
        return False
    if name in ATTENTION:
        return config.finetune_attention_modules
    return config.finetune_mlp_modules if name in MLP else True


def match_targets(config: LoraConfig, linears: Sequence[str], present: Collection[str]) -> Matched:
    """Choose the layers an adapter goes on.

    Where a family keeps several projections in one matrix, naming one of them adapts that matrix: its adapter
    sees the same inputs, and reaches the outputs of all.

    Args:
        config: The lora block.
        linears: Last names of the model's linear layers but the output head, for ``all-linear``.
        present: Last names of all its modules.
    """
    asked = linears if config.target_modules == "all-linear" else config.target_modules
    wanted = [name for name in asked if is_wanted(name, config)]
    named = [name if name in present else FUSED.get(name, name) for name in wanted]
    absent = [ask for ask, name in zip(wanted, named, strict=True) if name not in present]
    return Matched(tuple(dict.fromkeys(name for name in named if name in present)), tuple(absent))
