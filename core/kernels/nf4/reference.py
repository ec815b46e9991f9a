"""Weights of four bits unpacked in plain PyTorch: the definition."""

from typing import NamedTuple

import torch


class Packed(NamedTuple):
    """A frozen weight in four bits, in bitsandbytes' layout.

    The weight is flattened row by row; weight i is a number of `code` times the scale of block i // blocksize.
    The scales are either float32, or themselves quantized to 8 bits ("nested", QLoRA's double quantization):
    scale = nested_code[absmax] * nested_absmax[block // nested_blocksize] + offset.

    Attributes:
        data: uint8, two weights a byte, the earlier in the high half.
        absmax: Scales of the blocks: float32, or uint8 when nested.
        code: The sixteen values [16] float32: NF4's (arXiv 2305.14314, appendix E), FP4's or any others.
        blocksize: Weights that share a scale.
        shape: (rows, columns) of the weight.
        dtype: Of the unpacked weight: bfloat16, float16 or float32.
        nested_absmax: float32 scales of the scales, or None.
        nested_code: The 256 values of the scales [256] float32, or None.
        nested_blocksize: Scales that share a nested scale.
        offset: float32 scalar tensor added to every nested scale, or None.
    """

    data: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    shape: tuple[int, int]
    dtype: torch.dtype
    nested_absmax: torch.Tensor | None = None
    nested_code: torch.Tensor | None = None
    nested_blocksize: int = 256
    offset: torch.Tensor | None = None


def dequantize(packed: Packed, out: torch.Tensor | None = None) -> torch.Tensor:
    """Unpack a weight of four bits; see `core.kernels.nf4.dequantize`.

    Every product and the sum with the offset are rounded to float32, the result once more to `packed.dtype`.
    """
    rows, columns = packed.shape
    values = packed.code[_halves(packed.data)[: rows * columns]]
    whole = values.numel() // packed.blocksize * packed.blocksize
    scales = block_scales(packed)
    # Blocks run across rows; only the last one of the weight may be short.
    values[:whole].view(-1, packed.blocksize).mul_(scales[: whole // packed.blocksize, None])
    if whole < values.numel():
        values[whole:].mul_(scales[-1])
    weight = values.view(rows, columns)
    return weight.to(packed.dtype) if out is None else out.copy_(weight)


def block_scales(packed: Packed) -> torch.Tensor:
    """Give the float32 scale of each block.

    Args:
        packed: The weight.

    Returns:
        Scales [blocks] float32.
    """
    if packed.nested_absmax is None or packed.nested_code is None or packed.offset is None:
        return packed.absmax.float().view(-1)
    scales = packed.nested_code[packed.absmax.view(-1).int()]
    nested = packed.nested_absmax.repeat_interleave(packed.nested_blocksize)[: scales.numel()]
    return scales * nested + packed.offset


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Split bytes into their halves [2 * bytes] int32, the high half first."""
    data = data.view(-1).view(torch.uint8)
    return torch.stack((data >> 4, data & 15), dim=-1).view(-1).int()
