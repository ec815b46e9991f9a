"""What one measuring process is told to do. Imports no framework: a system may want to be imported first."""

from typing import Literal

from pydantic import Field

from core.config import Frozen
from core.models.config import Framework, LoraConfig, ModelConfig

System = Literal["fused", "hf", "hf-plain", "liger", "unsloth"]
FRAMEWORKS: dict[System, Framework] = {
    "fused": "fused", "hf": "hf", "hf-plain": "hf", "liger": "hf", "unsloth": "unsloth"
}  # fmt: skip
"""The engine that loads the base of a system."""
Rank = Literal[4, 8, 16, 32, 64, 128]


class Case(Frozen):
    """One system on one base with one load."""

    system: System
    model: str
    """Folder of the base."""
    storage: Literal["nf4", "bf16"] = "nf4"
    """How the base is held; without a GPU, bf16 stands for unquantized float32."""
    rank: Rank = 16
    """Of the adapter on the seven projections; its scale is 1."""
    length: int = Field(default=2048, ge=8)
    """Tokens of a row."""
    rows: int = Field(default=8, ge=1)
    """Rows of an optimizer step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Rows of a forward pass; None takes all, and lets the fused engine choose where its budget is its own choice."""
    checkpointing: bool = True
    """Compute activations again in the backward pass, each system in its own way."""
    budget: float | None = Field(default=None, ge=0)
    """GiB that the fused engine may keep activations in; None lets it choose."""
    steps: int = Field(default=20, ge=1)
    """Timed optimizer steps."""
    warmup: int = Field(default=5, ge=1)
    """Steps before them."""
    packed: bool = False
    """Rows hold several documents, none of which sees another."""
    labels: Literal["all", "half"] = "all"
    """Which tokens are learned: every one, or the second half of every document."""
    has_gpu: bool = True
    """Weights are bfloat16 on a GPU and float32 without one."""
    seed: int = 0
    """Of the tokens and of the adapter."""
    parity_length: int = Field(default=512, ge=8)
    """Tokens of each of the two rows that gradients are compared on."""
    reference: str | None = None
    """File of the reference's loss and gradients."""
    trace: str | None = None
    """Where to write a profile of three steps."""

    def model_block(self, framework: Framework | None = None) -> ModelConfig:
        """Return the config block that loads the base, by this system's engine or another."""
        return ModelConfig(
            name=self.model,
            framework=framework or FRAMEWORKS[self.system],
            max_seq_length=max(256, self.length),
            dtype="bfloat16" if self.has_gpu else "float32",
            load_in_4bit=self.storage == "nf4",
        )

    def lora_block(self, *, checkpointing: bool | None = None) -> LoraConfig:
        """Return the config block of the adapter."""
        wanted = self.checkpointing if checkpointing is None else checkpointing
        return LoraConfig(
            r=self.rank, lora_alpha=self.rank, use_gradient_checkpointing="unsloth" if wanted else False
        )
