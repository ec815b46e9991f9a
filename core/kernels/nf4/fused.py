"""Weights of four bits unpacked by Triton in one launch."""

# Kernels are a species of their own: Triton types the arguments.
# ruff: noqa: ANN001, ANN202

import torch
import triton
import triton.language as tl

from core.kernels.launches import Launch
from core.kernels.nf4.reference import Packed

# A word of 32 bits holds eight weights: one word read, sixteen bytes of bfloat16 written per lane.
WORDS = 512
WARPS = 4
SINGLES = 1024


@triton.jit
def _scale(block, absmax, nested_absmax, nested_code, offset, nested_blocksize: tl.constexpr, here):
    """Give the float32 scale of each block."""
    scale = tl.load(absmax + block, mask=here)
    if nested_absmax is not None:
        factor = tl.load(nested_absmax + block // nested_blocksize, mask=here)
        scale = tl.load(nested_code + scale.to(tl.int32)) * factor + tl.load(offset)
    return scale


@triton.jit
def _unpack_words(
    data, absmax, code, nested_absmax, nested_code, offset, out, words, stride,
    row_words: tl.constexpr, blocksize: tl.constexpr, nested_blocksize: tl.constexpr, apart: tl.constexpr,
    tile: tl.constexpr,
):  # fmt: skip
    """Unpack eight weights a word; rows hold whole words.

    The code is looked up in shared memory (``gather``), and a row's words are a constant, which makes a division a
    multiplication: 276 instructions for 32 weights of a thread, where loads from the code's memory and a division of
    two variables took 386 (sm_90, Triton 3.6).
    """
    word = tl.program_id(0) * tile + tl.arange(0, tile)
    here = word < words
    packed = tl.load(data + word, mask=here, other=0)
    block = word // (blocksize // 8)
    scale = _scale(block, absmax, nested_absmax, nested_code, offset, nested_blocksize, here)
    # Little-endian: byte k // 2 of the word, its high half first.
    lane = tl.arange(0, 8)
    shift = (lane // 2) * 8 + (1 - lane % 2) * 4
    index = tl.reshape((packed[:, None] >> shift[None, :]) & 15, (tile * 8,))
    value = tl.reshape(tl.gather(tl.load(code + tl.arange(0, 16)), index, 0), (tile, 8)) * scale[:, None]
    start = word.to(tl.int64) * 8
    if apart:
        row = (word.to(tl.uint32) // row_words).to(tl.int32)
        start = row.to(tl.int64) * stride + (word - row * row_words) * 8
    tl.store(out + start[:, None] + lane[None, :], value.to(out.dtype.element_ty), mask=here[:, None])


@triton.jit
def _unpack_singles(
    data, absmax, code, nested_absmax, nested_code, offset, out, weights, columns, stride,
    blocksize: tl.constexpr, nested_blocksize: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Unpack one weight a lane: rows of any length."""
    index = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    here = index < weights
    packed = tl.load(data + index // 2, mask=here, other=0).to(tl.int32)
    scale = _scale(index // blocksize, absmax, nested_absmax, nested_code, offset, nested_blocksize, here)
    value = tl.load(code + ((packed >> ((1 - index % 2) * 4).to(tl.int32)) & 15)) * scale
    place = index // columns * stride + index % columns
    tl.store(out + place, value.to(out.dtype.element_ty), mask=here)


def dequantize(packed: Packed, out: torch.Tensor | None = None) -> torch.Tensor:
    """Unpack a weight of four bits; see `core.kernels.nf4.dequantize`."""
    if out is None:
        out = torch.empty(packed.shape, dtype=packed.dtype, device=packed.data.device)
    unpacking(packed, out)()
    return out


def unpacking(packed: Packed, out: torch.Tensor) -> Launch:
    """Prepare to unpack a weight of four bits; see `core.kernels.nf4.unpacking`.

    Products and sums are never contracted into one rounding (`enable_fp_fusion=False`): bitsandbytes rounds the
    scale's product before it adds the offset, in separate kernels.
    """
    rows, columns = packed.shape
    data, weights, stride = packed.data.view(-1), rows * columns, out.stride(0)
    scales = (packed.absmax, packed.code, packed.nested_absmax, packed.nested_code, packed.offset)
    if columns % 8 or packed.blocksize % 8 or data.data_ptr() % 4:
        return Launch(
            _unpack_singles, (triton.cdiv(weights, SINGLES),),
            data.view(torch.uint8), *scales, out, weights, columns, stride,
            packed.blocksize, packed.nested_blocksize, SINGLES, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    words = weights // 8
    return Launch(
        _unpack_words, (triton.cdiv(words, WORDS),),
        data.view(torch.int32), *scales, out, words, stride, columns // 8 if stride != columns else 1,
        packed.blocksize, packed.nested_blocksize, stride != columns, WORDS, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
