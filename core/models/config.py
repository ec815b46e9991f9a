"""Settings of the models room."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.config import Block

LINEAR_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Framework = Literal["hf", "unsloth", "fused"]


class ModelConfig(Block):
    """The base model."""

    name: str = Field(min_length=1)
    """A local folder or a Hugging Face Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; null takes the main branch."""
    framework: Framework = "hf"
    """Engine that loads and trains the model; also spelled {type: unsloth} or use_unsloth: true. fused is for Llama,
    Mistral, Qwen and Gemma 3 on an NVIDIA GPU, and trains what hf trains."""
    fall_back: bool = False
    """Use hf, with a notice, where the chosen framework is not installed."""
    max_seq_length: int = Field(default=2048, ge=256, le=131072)
    """Longest example in tokens; longer ones are cut and counted."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Weights in training; null picks bfloat16 or float16 on a GPU, float32 on a CPU."""
    load_in_4bit: bool = True
    """Hold the base in 4 bits while training (QLoRA)."""
    load_in_8bit: bool = False
    """Hold the base in 8 bits while training (LLM.int8); replaces the 4-bit default."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Number format of 4-bit weights."""
    bnb_4bit_use_double_quant: bool = True
    """Store the scales of 4-bit weights in 8 bits."""

    # The digest of the weights identifies the base; a folder that moved is still the same model.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"name"})

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        """Fold the spellings of the framework into one."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        named = data.get("framework")
        if isinstance(named, dict) and set(named) == {"type"}:
            data["framework"] = named = named["type"]
        if "use_unsloth" in data:
            wanted = data.pop("use_unsloth")
            if not isinstance(wanted, bool):
                raise ValueError("use_unsloth must be true or false")
            if named is not None and (named == "unsloth") != wanted:
                raise ValueError(
                    f"use_unsloth: {str(wanted).lower()} contradicts framework: {named}; keep one"
                )
            if wanted:
                data["framework"] = "unsloth"
        return data

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        """Let 8 bits take the place of the 4-bit default, and of nothing that was asked for."""
        if self.load_in_8bit and self.load_in_4bit:
            if "load_in_4bit" in self.model_fields_set:
                raise ValueError("load_in_4bit and load_in_8bit are both true; a base is held in one of them")
            # The block is frozen for its users; here it is still being made.
            object.__setattr__(self, "load_in_4bit", False)
        return self


class LoraConfig(Block):
    """The low-rank adapter: W + (lora_alpha / r) B A."""

    r: Literal[4, 8, 16, 32, 64, 128] = 8
    """Rank."""
    lora_alpha: int = Field(default=16, ge=1)
    """Numerator of the scale."""
    lora_dropout: float = Field(default=0.0, ge=0, le=0.5)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = LINEAR_PROJECTIONS
    """Names of the linear layers that get an adapter; all-linear takes every one but the output head."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_gradient_checkpointing: bool | Literal["unsloth"] = "unsloth"
    """Recompute activations in the backward pass; "unsloth" means true on other frameworks. fused recomputes only what
    training.activation_budget has no room for."""
    random_state: int = 3407
    """Seed of the adapter's initial weights."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    use_dora: bool = False
    """Train the length of every weight column beside its direction (arXiv:2402.09353)."""
    finetune_vision_layers: bool = False
    """Adapt vision layers, where a model has them."""
    finetune_language_layers: bool = True
    """Adapt language layers."""
    finetune_attention_modules: bool = True
    """Adapt q, k, v, o projections."""
    finetune_mlp_modules: bool = True
    """Adapt gate, up, down projections."""
