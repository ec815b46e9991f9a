"""Settings of the training room."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.config import Block

Optimizer = Literal[
    "adamw_8bit", "adamw_torch", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "sgd", "adafactor"
]


def _auto_or_gib(value: Any) -> Any:
    """Say in one sentence what is allowed; true and false would pass for 1 and 0 GiB."""
    try:
        known = value == "auto" or (not isinstance(value, bool) and 0 <= float(value) < math.inf)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError("must be auto or a number of GiB, 0 or more")
    return value


Budget = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_auto_or_gib)]


class TrainingConfig(Block):
    """One fine-tuning run; names and defaults follow Hugging Face."""

    per_device_train_batch_size: int = Field(default=2, ge=1, le=64)
    """Examples per micro-step."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Micro-steps per optimizer step."""
    warmup_steps: int = Field(default=5, ge=0)
    """Optimizer steps of linear warm-up."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; null means num_train_epochs decides."""
    num_train_epochs: float = Field(default=3, gt=0)
    """Passes over the training split when max_steps is null."""
    learning_rate: float = Field(default=2e-4, ge=1e-6, le=1e-2)
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "polynomial"] = "linear"
    """Shape of the decay after warm-up."""
    optim: Optimizer = "adamw_8bit"
    """Optimizer; the paged ones move their state to main memory when the GPU runs short."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    logging_steps: int = Field(default=1, ge=1)
    """Steps between logged losses."""
    eval_steps: int = Field(default=100, ge=1)
    """Steps between losses on the validation split."""
    save_steps: int = Field(default=500, ge=1)
    """Steps between resumable checkpoints."""
    packing: bool = False
    """Put several short examples into one row of model.max_seq_length tokens; none sees another."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many validation losses in a row without improvement; null trains to the end."""
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    """Smallest fall of the validation loss that counts as improvement."""
    load_best_model_at_end: bool = True
    """Keep the adapter of the lowest validation loss instead of the last one."""
    activation_budget: Budget = "auto"
    """GiB of GPU memory for what the backward pass needs again; auto fills what is free and may change the
    micro-batch, never the result. Only model.framework: fused asks for it."""
    shrink_on_oom: bool = True
    """When memory runs out, halve the micro-batch and double the accumulation: the same mathematics."""
    seed: int = 3407
    """Order of examples and dropout."""
    output_dir: str = "outputs"
    """Folder of the resumable checkpoints, inside the workspace."""
    fp16: bool | None = None
    """Autocast to float16; null follows the model's dtype."""
    bf16: bool | None = None
    """Autocast to bfloat16; null follows the model's dtype."""

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset(
        {"logging_steps", "save_steps", "output_dir", "shrink_on_oom", "activation_budget"}
    )


class SaveConfig(Block):
    """Where results go inside the workspace, and in which GGUF type."""

    lora_path: str = "models/checkpoints/lora"
    """Adapter folder."""
    merged_path: str = "models/checkpoints/merged"
    """Folder of the base with the adapter folded in."""
    gguf_path: str = "models/quantized"
    """Folder of the GGUF files."""
    gguf_quantization: Literal["Q4_K_M", "Q5_K_M", "Q8_0", "f16", "bf16"] = "Q8_0"
    """GGUF type when the config has no quantization block."""
    push_to_hub: bool = False
    """Upload the bundle to a private repository of the Hugging Face Hub after all gates."""
    hub_model_id: str | None = None
    """Repository on the Hub, owner/name."""


class WandbConfig(Block):
    """Accepted for compatibility; tracking goes to MLflow."""

    enabled: bool = False
    """Must stay false: runs are tracked in MLflow."""
    project: str | None = None
    """Unused."""
    run_name: str | None = None
    """Unused."""
