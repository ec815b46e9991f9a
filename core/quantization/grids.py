"""What quantized files can hold of a matrix: its nearest grid points, block by block, in plain PyTorch.

A block is 32 consecutive inputs of one output. The four types here have one scale a block and nothing around it,
which is why training can round to them: the finer mixes of GGUF choose a type by the layer and search their scales.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from core.quantization.config import AwareType

BLOCK = 32
"""Consecutive inputs of one output that share a scale."""


def holds(columns: int, kind: AwareType) -> bool:
    """Tell whether a file of this type rounds matrices of so many inputs.

    llama.cpp keeps a matrix whose rows are no whole blocks in 16 bits; ONNX Runtime rounds a shorter last block.
    """
    return kind in ("int4", "int8") or columns % BLOCK == 0


def snap(weight: Tensor, kind: AwareType) -> Tensor:
    """Round a matrix to what a file of this type gives back.

    A rounded matrix is rounded to itself: bit for bit by Q4_0 and Q8_0, by int4 and int8 but for the last bits of
    a scale, and seldom (a range whose zero fell halfway between two levels) for one level of a block.

    Args:
        weight: [outputs, inputs] of any floating type, on any device; it is left as it is.
        kind: Q4_0 and Q8_0 as ggml's reference quantizer rounds, int4 and int8 as ``core.quantization.onnx`` does.

    Returns:
        [outputs, inputs] in float32; a copy of a matrix that files of this type do not round.
    """
    return snap_over(weight.detach().to(torch.float32, copy=True), kind)


@torch.no_grad()
def snap_over(whole: Tensor, kind: AwareType) -> Tensor:
    """Round a float32 matrix as ``snap`` does, in its own memory where that goes; needs one more copy of it."""
    outputs, inputs = whole.shape
    if not holds(inputs, kind):
        return whole
    # Zeros change no block: its range includes zero anyhow.
    missing = -inputs % BLOCK
    blocks = (pad(whole, (0, missing)) if missing else whole).view(outputs, -1, BLOCK)
    return _GRIDS[kind](blocks).view(outputs, -1)[:, :inputs]


def _q4_0(blocks: Tensor) -> Tensor:
    """16 levels, -8 to 7, of which -8 falls on the number of largest magnitude (ggml's quantize_row_q4_0_ref)."""
    top = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = top / -8
    held = _as_half(scale)
    levels = blocks.mul_(_inverse(scale)).add_(8.5).floor_().clamp_(max=15)
    return levels.sub_(8).mul_(held)


def _q8_0(blocks: Tensor) -> Tensor:
    """255 levels, -127 to 127 (ggml's quantize_row_q8_0_ref)."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    held = _as_half(scale)
    levels = blocks.mul_(_inverse(scale))
    # C's roundf, halves away from zero; PyTorch's round takes them to the even number.
    whole = levels.trunc()
    return whole.add_(levels.sub_(whole).mul_(2).trunc_()).mul_(held)


def _even_levels(blocks: Tensor, most: int) -> Tensor:
    """Levels 0 to ``most`` between the smallest and the largest number, one of them being zero (ONNX Runtime)."""
    low, high = blocks.amin(-1, keepdim=True).clamp_(max=0), blocks.amax(-1, keepdim=True).clamp_(min=0)
    scale = (high - low) / most
    zero = _half_up((-low / scale).nan_to_num_(0.0, 0.0, 0.0)).clamp_(0, most)
    levels = _half_up(blocks.mul_(_inverse(scale)).add_(zero).clamp_(min=0)).clamp_(max=most)
    return levels.sub_(zero).mul_(scale)


def _as_half(scale: Tensor) -> Tensor:
    """Return a scale as it is stored, in 16 bits."""
    return scale.to(torch.float16).to(torch.float32)


def _inverse(scale: Tensor) -> Tensor:
    """Return 1 / scale; 0 where that is too large a number, so that such a block becomes zeros."""
    return scale.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def _half_up(values: Tensor) -> Tensor:
    """Round numbers that are not negative as C's roundf does; floor is many times faster than trunc on a CPU."""
    whole = values.floor()
    return whole.add_(values.sub_(whole).mul_(2).floor_())


_GRIDS: dict[AwareType, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "int4": lambda blocks: _even_levels(blocks, 15),
    "int8": lambda blocks: _even_levels(blocks, 255),
}
