"""Settings of the models room."""

from typing import ClassVar, Literal

from pydantic import Field

from core.config import Block

LINEAR_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ModelConfig(Block):
    """The base model."""

    name: str = Field(min_length=1)
    """A local folder or a Hugging Face Hub id."""
    framework: Literal["hf", "unsloth", "fused"] = "hf"
    """Engine that loads and trains the model."""
    max_seq_length: int = Field(default=2048, ge=256, le=131072)
    """Longest example in tokens; longer ones are cut and counted."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Weights in training; null picks bfloat16 or float16 on a GPU, float32 on a CPU."""
    load_in_4bit: bool = True
    """Hold the base in NF4 while training (QLoRA)."""

    # The digest of the weights identifies the base; a folder that moved is still the same model.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"name"})


class LoraConfig(Block):
    """The low-rank adapter: W + (lora_alpha / r) B A."""

    r: Literal[4, 8, 16, 32, 64, 128] = 8
    """Rank."""
    lora_alpha: int = Field(default=16, ge=1)
    """Numerator of the scale."""
    lora_dropout: float = Field(default=0.0, ge=0, le=0.5)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = LINEAR_PROJECTIONS
    """Names of the linear layers that get an adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_gradient_checkpointing: bool | str = "unsloth"
    """Recompute activations in the backward pass; "unsloth" means true on other frameworks."""
    random_state: int = 3407
    """Seed of the adapter's initial weights."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    finetune_vision_layers: bool = False
    """Adapt vision layers, where a model has them."""
    finetune_language_layers: bool = True
    """Adapt language layers."""
    finetune_attention_modules: bool = True
    """Adapt q, k, v, o projections."""
    finetune_mlp_modules: bool = True
    """Adapt gate, up, down projections."""
