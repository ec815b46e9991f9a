"""Settings of the quantization room."""

from typing import Literal

from pydantic import Field

from core.config import Block

GgufType = Literal["f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]


class QuantizationConfig(Block):
    """Which files are made from the merged model."""

    formats: tuple[GgufType, ...] = Field(default=("Q8_0", "Q4_K_M"), min_length=1)
    """GGUF types; each is written, loaded and evaluated."""
