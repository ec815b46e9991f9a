"""Settings of the quantization room."""

from typing import Literal

from pydantic import Field

from core.config import Block

GgufType = Literal["f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
OnnxType = Literal["fp32", "fp16", "int8", "int4"]
PytorchType = Literal["int8"]
AwareType = Literal["Q4_0", "Q8_0", "int4", "int8"]
"""Types that training can round to: two of GGUF, two of ONNX."""


class QuantizationConfig(Block):
    """Which files are made from the merged model."""

    formats: tuple[GgufType, ...] = Field(default=("Q8_0", "Q4_K_M"), min_length=1)
    """GGUF types; tried on the test set from small to large, and the smallest good enough is shipped."""
    measure: Literal["all", "until_good"] = "all"
    """all: every type is measured; until_good: larger ones are left out once one is good enough."""
    imatrix: bool = False
    """Weigh quantization errors by how strongly training texts use each input (importance matrix)."""
    imatrix_rows: int = Field(default=200, ge=1)
    """Training rows behind the importance matrix."""
    parity_examples: int = Field(default=16, ge=1)
    """Test examples whose logits are compared between each file and the merged model."""
    onnx: tuple[OnnxType, ...] = ()
    """ONNX models to make beside the GGUF files, for ONNX Runtime (extra: onnx)."""
    pytorch: tuple[PytorchType, ...] = ()
    """PyTorch models to make beside them, with 8-bit weights and inputs rounded on the fly, for CPUs."""
    aware: AwareType | None = None
    """Train with this type's rounding in every forward pass, so that its file answers as the trained model does."""
