"""Bases held in 4 or 8 bits by bitsandbytes while an adapter is trained on them."""

import logging
import math
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from core.models.config import ModelConfig

OUTLIERS = 6.0
"""Activations beyond this are multiplied in 16 bits (LLM.int8(), arXiv:2208.07339, section 3)."""
PER_CALL_NOTE = "MatMul8bitLt: inputs will be cast from"


def quantization_of(config: ModelConfig, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """Describe how bitsandbytes holds the base, or return None for full precision.

    4 bits: NormalFloat or 4-bit float in blocks of 64, optionally with double quantization
    (arXiv:2305.14314, section 3). 8 bits: LLM.int8(). Either way the output head keeps full precision.

    Args:
        config: The model block.
        compute: dtype that weights are expanded to for a multiplication.
    """
    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIERS)
    if not config.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Return how many weights a parameter stands for: 4-bit storage packs two into a byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return math.prod(shape) if shape is not None else parameter.numel()


def ready_for_training(model: PreTrainedModel) -> PreTrainedModel:
    """Switch off what bitsandbytes does for inference only, and a note that it repeats on every call."""
    silence_casts()
    return without_packing(model)


def without_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from repacking 4-bit weights on processors with AVX512-BF16.

    It does so in the first evaluation, for good: the packed kernel has no gradient, so training that goes on after
    a look at the validation loss would be silently wrong, and layers narrower than a block of 64 fail at once.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


class _NoCastNote(logging.Filter):
    """Drops the one message that says that LLM.int8() works in float16."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else through."""
        return not str(record.msg).startswith(PER_CALL_NOTE)


def silence_casts() -> None:
    """Drop bitsandbytes' note about float16, which it logs on each multiplication; other messages stay."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(each, _NoCastNote) for each in logger.filters):
        logger.addFilter(_NoCastNote())


def base_format(model: torch.nn.Module) -> str:
    """Say how a base is held, from its layers themselves.

    Returns:
        ``nf4+double``, ``nf4``, ``fp4+double``, ``fp4``, ``int8``, or the dtype of most of its numbers:
        ``bfloat16``, ``float16``, ``float32``.
    """
    for module in model.modules():
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if kind == "Linear8bitLt":
            return "int8"
        if kind == "Linear4bit":
            state: Any = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
            return f"{state.quant_type}+double" if state.nested else str(state.quant_type)
    sizes: dict[torch.dtype, int] = {}
    for name, tensor in model.named_parameters():
        if "lora_" not in name:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")
