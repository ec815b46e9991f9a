"""What sets the supported model families apart, as one table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How llama.cpp wants the weights and settings of one family."""

    arch: str
    """Architecture name inside the GGUF file."""
    activation: str = "silu"
    """The only feed-forward activation llama.cpp applies to this family."""
    permutes_qk: bool = False
    """Rotary pairs lie next to each other in the file, but half a head apart in the checkpoint."""
    norms_plus_one: bool = False
    """The checkpoint stores norm weights minus one."""
    alternates_window: bool = False
    """Sliding-window layers alternate with full ones, and llama.cpp honours that."""
    partial_rotary: bool = False
    """Only a share of each head may be rotated."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """Rotary scalings that the family's graph in llama.cpp applies."""
    refused: tuple[str, ...] = ()
    """Settings that must be off, because llama.cpp would silently leave them out."""


LLAMA = Family(arch="llama", permutes_qk=True, rope_types=("default", "linear", "llama3", "yarn", "longrope"))
GEMMA3 = Family(
    arch="gemma3",
    activation="gelu_pytorch_tanh",
    norms_plus_one=True,
    alternates_window=True,
    rope_types=("default", "linear"),
    refused=("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Family(arch="qwen2"),
    "Qwen3ForCausalLM": Family(arch="qwen3", refused=("attention_bias",)),
    "Phi3ForCausalLM": Family(arch="phi3", partial_rotary=True, rope_types=("default", "longrope")),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
}


def load_family(model_dir: Path) -> tuple[Family, Any]:
    """Find a checkpoint's family and its text settings.

    The settings go through transformers, so files of older versions (flat
    ``rope_theta``, missing defaults) read the same as new ones.

    Args:
        model_dir: Folder with ``config.json``.

    Returns:
        The family and the transformers config of the language model.

    Raises:
        ModelError: If the folder holds no model of a supported family, or one of its
            settings has no counterpart in llama.cpp.
    """
    from transformers import AutoConfig

    path = model_dir / "config.json"
    if not path.is_file():
        raise ModelError(
            "there is no config.json", where=str(model_dir), fix="give a folder with a saved model"
        )
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or ["(none given)"]
    if names[0] not in FAMILIES:
        raise ModelError(
            f"architecture {names[0]} cannot be written as GGUF",
            where=f"{path}:architectures",
            fix=f"use one of {', '.join(sorted(FAMILIES))}",
        )
    family = FAMILIES[names[0]]
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    config = config.get_text_config()
    _check(family, config, path)
    return family, config


def head_width(config: Any) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _check(family: Family, config: Any, path: Path) -> None:
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in (family.activation, "swish" if family.activation == "silu" else family.activation):
        raise ModelError(
            f"llama.cpp runs {family.arch} with {family.activation}, not {activation}",
            where=f"{path}:hidden_act",
        )
    for key in family.refused:
        if getattr(config, key, None):
            raise ModelError(f"llama.cpp leaves {key} out for {family.arch}", where=f"{path}:{key}")
    if family.alternates_window:
        _check_gemma3(config, path)


def _check_gemma3(config: Any, path: Path) -> None:
    """Refuse what llama.cpp hard-codes for Gemma 3: one full layer in six, and the query scale."""
    kinds = [
        "full_attention" if (n + 1) % 6 == 0 else "sliding_attention" for n in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != kinds:
        raise ModelError("llama.cpp expects every sixth layer to be full", where=f"{path}:layer_types")
    # The 62-layer model is the one llama.cpp scales by width over heads instead of head width.
    largest = config.num_hidden_layers == 62
    scale = config.hidden_size / config.num_attention_heads if largest else head_width(config)
    if config.query_pre_attn_scalar != scale:
        raise ModelError(
            f"llama.cpp scales queries by {scale:g}, not {config.query_pre_attn_scalar:g}",
            where=f"{path}:query_pre_attn_scalar",
        )
