"""Weights of four bits are unpacked to bitsandbytes' bits, by the definition and by the kernels."""

import importlib

import pytest
import torch
from bitsandbytes import functional

from core.kernels.nf4 import Packed, dequantize
from tests.core.kernels.conftest import DEVICE

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Words of eight weights to a row, odd rows, odd columns, one block cut short, less than a block, less than a byte.
SHAPES = [(64, 64), (127, 136), (63, 65), (9, 1000), (5, 3), (3, 8), (1, 1), (2, 2048)]


@pytest.fixture(params=["reference", "fused"])
def unpack(request):
    return importlib.import_module(f"core.kernels.nf4.{request.param}").dequantize


def numbers(shape, dtype, seed=0):
    """Rows of very different size, so that the scales differ in every bit."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape[0], 1, generator=generator).mul(2).exp()
    return (torch.randn(shape, generator=generator) * rows).to(dtype).to(DEVICE)


def pack(weight, kind="nf4", nested=True, blocksize=64):
    data, state = functional.quantize_4bit(
        weight, quant_type=kind, compress_statistics=nested, blocksize=blocksize
    )
    code = functional.get_4bit_type(kind, device=DEVICE)
    inner = state.state2
    extra = (inner.absmax, inner.code, inner.blocksize, state.offset) if nested else ()
    packed = Packed(data, state.absmax, code, state.blocksize, tuple(weight.shape), weight.dtype, *extra)
    # For odd shapes bitsandbytes compiles a function on the CPU, which takes a minute here and changes no bit.
    with torch.compiler.set_stance("force_eager"):
        return packed, functional.dequantize_4bit(data, state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_every_bit_is_bitsandbytes_own(unpack, kind, nested, dtype):
    for shape in SHAPES:
        packed, theirs = pack(numbers(shape, dtype), kind, nested)
        ours = unpack(packed)
        assert ours.dtype == dtype and ours.shape == shape
        assert torch.equal(ours, theirs), shape


@pytest.mark.parametrize("blocksize", [32, 128, 1024])
def test_blocks_of_other_sizes_are_unpacked_alike(unpack, blocksize):
    for shape in [(65, 72), (33, 63)]:
        packed, theirs = pack(numbers(shape, torch.bfloat16), blocksize=blocksize)
        assert torch.equal(unpack(packed), theirs)


def test_scales_of_many_blocks_use_their_own_nested_scale(unpack):
    # 600 blocks: the nested scales change at blocks 256 and 512.
    packed, theirs = pack(numbers((600, 64), torch.float32))
    assert packed.nested_absmax.numel() == 3
    assert torch.equal(unpack(packed), theirs)


@pytest.mark.parametrize("shape", [(33, 64), (33, 63)], ids=["words", "singles"])
def test_rows_may_lie_apart_and_what_lies_between_stays(unpack, shape):
    packed, theirs = pack(numbers(shape, torch.bfloat16))
    buffer = torch.full((shape[0], shape[1] + 16), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    out = buffer[:, : shape[1]]
    assert unpack(packed, out).data_ptr() == buffer.data_ptr()
    assert torch.equal(out, theirs)
    assert buffer[:, shape[1] :].isnan().all()


@pytest.mark.parametrize("columns", [8, 7], ids=["words", "singles"])
def test_a_weight_packed_by_hand_comes_back(unpack, columns):
    """Seven or eight columns, halves of bytes counting up; independent of bitsandbytes."""
    code = torch.linspace(-1, 1, 16)
    halves = torch.arange(2 * columns) % 16
    data = (halves[::2] * 16 + halves[1::2]).to(torch.uint8)
    packed = Packed(
        data.to(DEVICE), torch.tensor([3.0], device=DEVICE), code.to(DEVICE), 64, (2, columns), torch.float32
    )
    assert torch.equal(unpack(packed).cpu(), (code[halves] * 3.0).view(2, columns))


def test_the_nested_scale_is_rounded_before_the_offset_is_added(unpack):
    """A product and a sum contracted into one rounding would give other bits in most of these blocks."""
    generator = torch.Generator().manual_seed(1)
    nested_code = torch.randn(256, generator=generator)
    nested_absmax = torch.randn(1, generator=generator)
    offset = torch.tensor(0.337)
    scales = nested_code * nested_absmax + offset
    contracted = (nested_code.double() * nested_absmax.double() + offset.double()).float()
    assert (scales != contracted).sum() > 20
    tensors = (torch.full((256 * 32,), 0xFF, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8))
    data, absmax = (tensor.to(DEVICE) for tensor in tensors)
    inner = (nested_absmax.to(DEVICE), nested_code.to(DEVICE), 256, offset.to(DEVICE))
    packed = Packed(data, absmax, torch.ones(16, device=DEVICE), 64, (256, 64), torch.float32, *inner)
    assert torch.equal(unpack(packed).cpu(), scales[:, None].expand(256, 64))


def test_bytes_stored_as_another_type_are_the_same_bytes(unpack):
    packed, theirs = pack(numbers((16, 64), torch.bfloat16))
    stored = packed._replace(data=packed.data.view(-1).view(torch.bfloat16).view(-1, 1))
    assert torch.equal(unpack(stored), theirs)


def test_bytes_that_begin_off_a_word_are_unpacked_alike(unpack):
    packed, theirs = pack(numbers((16, 64), torch.bfloat16))
    shifted = torch.cat([packed.data.new_zeros(1), packed.data.view(-1)])[1:]
    assert torch.equal(unpack(packed._replace(data=shifted)), theirs)


def test_the_door_chooses_the_path_by_the_device():
    packed, theirs = pack(numbers((63, 65), torch.bfloat16))
    assert torch.equal(dequantize(packed), theirs)
