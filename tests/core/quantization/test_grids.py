"""Rounding in PyTorch gives what the files give back: against llama.cpp's own quantizer, NumPy's, and ONNX Runtime's."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core.quantization.grids import BLOCK, holds, snap
from core.quantization.onnx import round_blocks
from tests.core.quantization.test_onnx import restored

GGUF = {"Q4_0": GGMLQuantizationType.Q4_0, "Q8_0": GGMLQuantizationType.Q8_0}
ONNX = {"int4": 4, "int8": 8}
KINDS = (*GGUF, *ONNX)


def quantize_chunk():
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    call = library.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return call


def in_c(weight: np.ndarray, kind: str) -> np.ndarray:
    """Quantize as llama.cpp does, and let its NumPy twin read the bytes."""
    number, bytes_a_block = GGUF[kind], {"Q4_0": 18, "Q8_0": 34}[kind]
    rows, columns = weight.shape
    made = np.zeros((rows, columns // BLOCK * bytes_a_block), np.uint8)
    size = quantize_chunk()(int(number), weight.ctypes.data, made.ctypes.data, 0, rows, columns, None)
    assert size == made.nbytes
    return quants.dequantize(made, number)


def in_numpy(weight: np.ndarray, kind: str) -> np.ndarray:
    return quants.dequantize(quants.quantize(weight, GGUF[kind]), GGUF[kind])


def in_onnx(weight: np.ndarray, kind: str) -> np.ndarray:
    packed, scales, zeros = round_blocks(weight.T, ONNX[kind])
    return restored(packed, scales, zeros, ONNX[kind], weight.shape[1]).T.astype(np.float32)


def uneven(rows: int = 600, columns: int = 256) -> torch.Tensor:
    """Draw a matrix whose outputs differ a thousandfold, with blocks that are empty, flat, one-sided, tied or huge."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw) * 0.02
    weight *= torch.exp(torch.randn(rows, 1, generator=draw) * 2)
    weight[0], weight[1], weight[2], weight[3] = 0, 0.25, weight[2].abs(), -weight[3].abs()
    weight[4, ::2], weight[4, 1::2] = 0.5, -0.5
    weight[5, ::2], weight[5, 1::2] = -0.5, 0.5
    # Halves of a level, where ways to round differ.
    weight[6] = torch.arange(columns) % BLOCK / 2 - 8
    weight[7] = torch.arange(columns) % BLOCK + 0.5
    weight[7, ::BLOCK] = -127
    weight[8] *= 1e4
    return weight


@pytest.mark.parametrize("kind", GGUF)
@pytest.mark.parametrize("reference", [in_c, in_numpy])
def test_gguf_types_are_rounded_bit_for_bit(kind, reference):
    weight = uneven()
    assert np.array_equal(snap(weight, kind).numpy(), reference(weight.numpy(), kind))


@pytest.mark.parametrize("kind", ONNX)
@pytest.mark.parametrize("columns", [256, 250, 33, 20])
def test_onnx_types_are_rounded_bit_for_bit_also_in_a_last_block_cut_short(kind, columns):
    weight = uneven()[:, :columns].contiguous()
    assert np.array_equal(snap(weight, kind).numpy(), in_onnx(weight.numpy(), kind))


@given(arrays.arrays(np.float32, (2, 64), elements=st.floats(-4, 4, width=16)))
def test_matrices_of_few_digits_are_rounded_bit_for_bit(weight):
    """Numbers that fall on halves of levels, and repeat."""
    for kind in KINDS:
        wanted = in_c(weight, kind) if kind in GGUF else in_onnx(weight, kind)
        assert np.array_equal(snap(torch.from_numpy(weight), kind).numpy(), wanted), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_matrix_is_rounded_to_itself(kind):
    once = snap(uneven(), kind)
    again = snap(once, kind)
    if kind in GGUF:
        assert torch.equal(once, again)
        return
    # Scales come from the ends of the range, which float32 has rounded.
    largest = once.view(-1, BLOCK).abs().amax(1, keepdim=True).clamp_min(1e-30)
    moved = ((once - again).view(-1, BLOCK).abs() / largest).amax(1)
    assert (moved > 1e-6).float().mean() < 1e-3
    assert moved.max() < 0.1


@pytest.mark.parametrize(("kind", "share"), [("Q4_0", 0.0), ("Q8_0", 2**-10)])
def test_16_bits_in_between_change_no_q4_0_and_a_scale_of_q8_0_by_its_last_bit(kind, share):
    """The GGUF file is made from one in half precision."""
    once = snap(uneven(), kind)
    # Where half precision is subnormal, its last bit is a larger share.
    normal = once.view(-1, BLOCK).abs().amax(1) > 2**-14 * 127
    again = snap(once.half(), kind)
    largest = once.view(-1, BLOCK).abs().amax(1, keepdim=True)
    moved = ((once - again).view(-1, BLOCK).abs() / largest.clamp_min(1e-30))[normal]
    assert float(moved.max()) <= share
    if kind == "Q4_0":
        assert torch.equal(once, again)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_in_between_changes_scales_by_its_last_bits(kind):
    once = snap(uneven(), kind)
    again = snap(once.bfloat16(), kind)
    largest = once.view(-1, BLOCK).abs().amax(1, keepdim=True).clamp_min(1e-30)
    moved = ((once - again).view(-1, BLOCK).abs() / largest).amax(1)
    assert moved.quantile(0.99) <= 2**-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_rounded_as_its_float32_copy_and_left_alone(kind, dtype):
    weight = uneven(40).to(dtype)
    before = weight.clone()
    made = snap(weight, kind)
    assert made.dtype == torch.float32
    assert torch.equal(made, snap(weight.float(), kind))
    assert torch.equal(weight, before)


def test_rows_that_are_no_whole_blocks_stay_in_gguf():
    weight = uneven()[:, :80]
    for kind in KINDS:
        assert holds(80, kind) == (kind in ONNX)
        assert holds(96, kind)
        made = snap(weight, kind)
        assert torch.equal(made, weight) == (kind in GGUF)
        assert made.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_too_small_for_a_scale_become_zeros(kind):
    weight = torch.full((1, BLOCK), 1e-41)
    made = snap(weight, kind)
    assert torch.isfinite(made).all()
    assert made.abs().max() <= 2e-41
