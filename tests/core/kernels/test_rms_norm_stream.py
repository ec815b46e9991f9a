"""The residual stream in 16 + 8 bits: its sum against float64, its bits against their meaning, its norm."""

from types import ModuleType

import numpy as np
import pytest
import torch
import triton.language as tl
from torch.nn import functional
from triton.runtime import interpreter

from core.kernels import rms_norm as door
from core.kernels.rms_norm import fused_stream, reference
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)

# Numbers that overflow are part of what is tested; on a CPU they are numpy's.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EPS = 1e-5
HALVES = [torch.bfloat16, torch.float16]
FRACTION = {torch.bfloat16: 7, torch.float16: 10}
SIZES = [(7, 63), (3, 1000), (1, 1), (130, 64), (2, 2560), (5, 640), (1, 5000)]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    return {"fused": fused_stream, "door": door}[request.param]


def unit(stream: torch.Tensor) -> torch.Tensor:
    """Return a 256th of the last place of each number, as float64."""
    exponent = torch.frexp(stream.double()).exponent - 1
    return torch.ldexp(torch.ones_like(stream, dtype=torch.float64), exponent - FRACTION[stream.dtype] - 8)


def meaning(stream: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
    """Return what a stream stands for, in float64.

    A number a little nearer to zero than a power of two has a last place half as large as that power's.
    """
    if rest is None:
        return stream.double()
    is_power = torch.frexp(stream.double()).mantissa.abs() == 0.5
    place = torch.where(is_power & (rest < 0), unit(stream) / 2, unit(stream))
    return stream.double() + stream.double().sign() * rest * place


def drawn(
    n: int, e: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return a stream, its rest, what is added (among NaN), and a weight."""
    generator = torch.Generator().manual_seed(5)
    rest = torch.randint(-128, 128, (n, e), dtype=torch.int8, generator=generator).to(DEVICE)
    added = inside(normal(n, e, dtype=dtype, seed=2), e + 8)
    return normal(n, e, dtype=dtype), rest if dtype in HALVES else None, added, normal(e, dtype=dtype, seed=1)


def copied(rest: torch.Tensor | None) -> torch.Tensor | None:
    return None if rest is None else rest.clone()


def normed(total: torch.Tensor, weight: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    return functional.rms_norm(total.double(), (total.shape[1],), weight.double() + offset, EPS)


def assert_holds(found: door.Accumulated, total: torch.Tensor) -> None:
    """A sum is the nearest number of its dtype, and with its rest within half a unit; 128 units have to be 127."""
    assert found.rest is not None
    allowed = unit(found.sum) * torch.where(found.rest == 127, 1.0, 0.5)
    assert bool(((meaning(found.sum, found.rest) - total.double()).abs() <= allowed).all())
    assert bool(((found.sum.double() - total.double()).abs() <= 128 * unit(found.sum)).all())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("n", "e"), SIZES)
def test_sum_and_its_norm_before_anything_is_rounded(op, n, e, dtype):
    stream, rest, added, weight = drawn(n, e, dtype)
    total, before, out = (
        (meaning(stream, rest) + added.double()).float(),
        stream.clone(),
        poisoned((n, e), dtype),
    )
    found = op.accumulate_rms_norm(stream, rest, added, weight, EPS, offset=1.0, out=out)
    assert found.y is out and margin_untouched(out)
    assert torch.equal(found.sum, total.to(dtype)) and found.sum.is_contiguous()
    assert torch.equal(stream, before) and found.sum.data_ptr() != stream.data_ptr() and found.rest is rest
    if dtype in HALVES:
        assert_holds(found, total)
        # The norm of the sum as rounded would be another number in two of five places.
        assert (found.y != normed(total, weight, 1.0).to(dtype)).double().mean() < 0.03
    rough = (total.to(dtype) * (total.pow(2).mean(-1, keepdim=True) + EPS).rsqrt().to(dtype)) * (weight + 1.0)
    assert_no_worse(found.y, rough, normed(total, weight, 1.0))
    assert found.rstd.dtype == torch.float32
    assert relative_error(found.rstd, (total.double().pow(2).mean(-1) + EPS).rsqrt()) < 1e-6


def test_float32_has_no_rest_and_is_the_plain_sum(op):
    stream, _, added, weight = drawn(5, 127, torch.float32)
    found = op.accumulate_rms_norm(stream, None, added, weight, EPS)
    assert found.rest is None and torch.equal(found.sum, stream + added)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_stream_begins_without_a_rest(op, dtype):
    stream, _, added, weight = drawn(5, 127, dtype)
    found = op.accumulate_rms_norm(stream, None, added, weight, EPS)
    assert found.rest is not None and found.rest.dtype == torch.int8 and found.rest.shape == (5, 127)
    assert_holds(found, stream.float() + added.float())
    again = op.accumulate_rms_norm(stream, torch.zeros_like(found.rest), added, weight, EPS)
    assert torch.equal(again.sum, found.sum) and torch.equal(again.rest, found.rest)


@pytest.mark.parametrize("dtype", HALVES)
def test_sixty_four_additions_stay_near_float64(op, dtype):
    stream, rest, weight = normal(4, 96, dtype=dtype), None, normal(96, dtype=dtype, seed=1)
    exact, forgetful = stream.double(), stream.clone()
    for step in range(64):
        added = normal(4, 96, dtype=dtype, seed=10 + step)
        found = op.accumulate_rms_norm(stream, rest, added, weight, EPS)
        stream, rest = found.sum, found.rest
        exact, forgetful = exact + added.double(), forgetful + added
    error = relative_error(meaning(stream, rest), exact)
    assert error < 1.25 * 2.0 ** (-9 - FRACTION[dtype])
    assert relative_error(forgetful, exact) > 300 * error
    assert_no_worse(found.y, normed(exact, weight).to(dtype), normed(exact, weight))


@pytest.mark.parametrize("dtype", HALVES)
def test_kernel_and_definition_agree_bit_for_bit_on_any_bits(dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (65, 127)
    stream, added = (
        torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator).view(dtype).to(DEVICE)
        for _ in range(2)
    )
    rest = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator).to(DEVICE)
    added[:20] = (stream[:20].float() * 0.75).to(dtype)  # numbers of a size, whose sum cancels or carries
    added[20:40] = -stream[20:40]
    # Triton's interpreter loses bfloat16's subnormal numbers.
    least = 2.0**-126 if DEVICE.type == "cpu" and dtype == torch.bfloat16 else 0.0
    stream, added = (torch.where(one.float().abs() < least, 0.0, one).to(dtype) for one in (stream, added))
    weight = normal(127, dtype=dtype)
    one = reference.accumulate_rms_norm(stream, rest.clone(), added, weight, EPS)
    two = fused_stream.accumulate_rms_norm(stream, rest.clone(), added, weight, EPS)
    finite = one.sum.isfinite() & ((one.sum.float().abs() >= least) | (one.sum == 0))
    assert 0.9 < finite.double().mean() < 1.0
    assert torch.equal(one.sum.nan_to_num(nan=0.5), two.sum.nan_to_num(nan=0.5))
    assert torch.equal(one.rest[finite], two.rest[finite])
    assert torch.equal(one.sum.isnan(), two.sum.isnan())


def test_half_a_last_place_is_kept_as_far_as_eight_bits_go(op):
    # A last place at 1 is 2^-7. Halves go to the even neighbour: 1 + 2^-8 down, 1 + 3 * 2^-8 up.
    stream = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0, 0.0]], dtype=torch.bfloat16, device=DEVICE)
    added = torch.tensor([[1.0, 3.0, -1.0, -3.0, 0.0, 0.0]], dtype=torch.bfloat16, device=DEVICE) * 2.0**-8
    found = op.accumulate_rms_norm(stream, None, added, torch.ones_like(added[0]), EPS)
    assert found.rest.tolist() == [[127, -128, 127, -128, 0, 0]]
    up = 1 + 2.0**-6
    assert found.sum.tolist() == [[1.0, up, -1.0, -up, 1.0, 0.0]]


def test_a_number_just_below_a_power_of_two_keeps_what_it_lacks(op):
    # 1 - 2^-9 rounds to 1, whose lower neighbours are half as far apart as its upper ones.
    stream = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16, device=DEVICE)
    found = op.accumulate_rms_norm(stream, None, stream * -(2.0**-9), torch.ones_like(stream[0]), EPS)
    assert found.sum.tolist() == [[1.0, -1.0]] and found.rest.tolist() == [[-128, -128]]
    assert meaning(found.sum, found.rest).tolist() == [[1 - 2.0**-9, 2.0**-9 - 1]]
    back = op.accumulate_rms_norm(found.sum, found.rest, stream * 2.0**-9, torch.ones_like(stream[0]), EPS)
    assert back.sum.tolist() == [[1.0, -1.0]] and back.rest.tolist() == [[0, 0]]


@pytest.mark.parametrize("exponent", [-139, -133, -127, -120, -115, -100, 0, 100, 120, 126])
def test_small_and_large_numbers_keep_their_rest(op, exponent):
    if exponent <= -115 and op is fused_stream and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter loses bfloat16's subnormal numbers")
    stream, added = (
        (normal(3, 40, seed=seed).clamp(-3, 3).double() * 2.0**at).to(torch.bfloat16)
        for seed, at in ((0, exponent - 1), (1, exponent - 7))
    )
    found = op.accumulate_rms_norm(stream, None, added, torch.ones_like(added[0]), EPS)
    error = (reference.exact_stream(found.sum, found.rest).double() - stream.double() - added.double()).abs()
    # A unit of subnormal numbers is 2^-141, whatever their size.
    assert bool((error <= unit(found.sum).clamp_min(2.0**-141)).all())


def test_float16_that_has_no_finer_numbers_errs_as_rounding_does(op):
    # What is left are up to 128 units of 2^-28, and float16's smallest number is 2^-24.
    stream = torch.full((1, 256), 2.0**-10, dtype=torch.float16, device=DEVICE)
    rest = torch.arange(-128, 128, dtype=torch.int8, device=DEVICE)[None]
    left = meaning(stream, rest) - 2.0**-10
    found = op.accumulate_rms_norm(stream, rest, -stream, torch.ones_like(stream[0]), EPS)
    assert torch.equal(found.sum, left.half())
    assert bool(((reference.exact_stream(found.sum, found.rest).double() - left).abs() <= 2.0**-25).all())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_is(op, dtype, value):
    stream, rest, added, weight = drawn(4, 100, dtype)
    clean = op.accumulate_rms_norm(stream, copied(rest), added, weight, EPS)
    stream[1, 7] = value
    for at in (-128, 0, 127):
        rest[1, 7] = at
        found = op.accumulate_rms_norm(stream, copied(rest), added, weight, EPS)
        others = torch.ones_like(rest, dtype=torch.bool)
        others[1, 7] = False
        assert torch.equal(found.sum[others], clean.sum[others]) and torch.equal(
            found.rest[others], clean.rest[others]
        )
        assert found.sum[1, 7].isnan() if value != value else not found.sum[1, 7].isfinite()
        kept = torch.arange(4, device=DEVICE) != 1
        assert torch.equal(found.y[kept], clean.y[kept])


@pytest.mark.parametrize("dtype", HALVES)
def test_no_nan_becomes_a_number(op, dtype, monkeypatch):
    widen_as_gpus_do(monkeypatch)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isnan()]
    stream = every[:, None].expand(-1, 256).contiguous().to(DEVICE)
    rest = torch.arange(-128, 128).to(torch.int8).expand(len(every), -1).contiguous().to(DEVICE)
    added, weight = torch.zeros_like(stream), torch.ones_like(stream[0])
    found = op.accumulate_rms_norm(stream, rest, added, weight, EPS)
    assert found.sum.isnan().all() and found.y.isnan().all()


def widen_as_gpus_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 31 ones in float32 of any NaN in float16; a CPU keeps its bits."""
    ones = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    extend, to = interpreter.InterpreterBuilder.create_fp_ext, torch.Tensor.to

    def extended(self, source, target):
        found = extend(self, source, target)
        if source.dtype.scalar == tl.float16:
            found.data[np.isnan(found.data)] = ones.numpy()
        return found

    def widened(self, *args, **kwargs):
        found = to(self, *args, **kwargs)
        if self.dtype == torch.float16 and found.dtype == torch.float32:
            found[found.isnan()] = to(ones, found.device)
        return found

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fp_ext", extended)
    monkeypatch.setattr(torch.Tensor, "to", widened)


def test_float16_that_overflows_stays_infinite(op):
    stream = torch.tensor([[65504.0, -65504.0, 1.0]], dtype=torch.float16, device=DEVICE)
    added = torch.tensor([[65504.0, -65504.0, 1.0]], dtype=torch.float16, device=DEVICE)
    found = op.accumulate_rms_norm(stream, None, added, torch.ones_like(added[0]), EPS)
    assert found.sum.tolist() == [[float("inf"), float("-inf"), 2.0]] and found.rest.tolist() == [[0, 0, 0]]
    again = op.accumulate_rms_norm(found.sum, found.rest, -added, torch.ones_like(added[0]), EPS)
    assert again.sum.tolist() == [[float("inf"), float("-inf"), 1.0]]


def test_the_same_input_gives_the_same_bits(op):
    stream, rest, added, weight = drawn(33, 300, torch.bfloat16)
    one, two = (op.accumulate_rms_norm(stream, copied(rest), added, weight, EPS) for _ in range(2))
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


@pytest.mark.parametrize("width", [1, 63, 896, 1280, 1281, 2560, 3072, 3840, 4096, 4097, 8192, 12345])
def test_tiles_cover_every_width_with_whole_powers_of_two(width):
    tiles = fused_stream.plain_tiles(width)
    assert all(size & (size - 1) == 0 for size in tiles)
    assert -width % tiles.columns < max(width, 16)
    assert -width % tiles.columns <= max(width // 8, 511)


def test_offsets_beyond_two_to_the_31():
    stride, e = 1 << 30, 64
    buffer = torch.empty(2 * stride + e, dtype=torch.bfloat16, device=DEVICE)
    added = buffer.as_strided((3, e), (stride, 1)).copy_(normal(3, e))
    stream, rest, _, weight = drawn(3, e, torch.bfloat16)
    far, near = (
        fused_stream.accumulate_rms_norm(stream, copied(rest), given, weight, EPS)
        for given in (added, added.contiguous())
    )
    assert all(torch.equal(one, two) for one, two in zip(far, near, strict=True))


def test_weight_may_be_more_precise_than_the_stream(op):
    stream, rest, added, _ = drawn(5, 127, torch.bfloat16)
    weight, total = normal(127, seed=1), (meaning(stream, rest) + added.double()).float()
    found = op.accumulate_rms_norm(stream, rest, added, weight, EPS)
    assert found.y.dtype == torch.bfloat16
    assert_no_worse(found.y, normed(total, weight).bfloat16(), normed(total, weight))


@pytest.mark.parametrize("dtype", HALVES)
def test_no_rows_at_all(op, dtype):
    stream, rest, added, weight = drawn(0, 63, dtype)
    found = op.accumulate_rms_norm(stream, rest, added, weight, EPS)
    assert found.y.shape == found.sum.shape == found.rest.shape == (0, 63) and found.rstd.shape == (0,)


def test_definition_is_exact_in_float64():
    stream, added, weight = (normal(*shape).double() for shape in ((5, 63), (5, 63), (63,)))
    found = door.accumulate_rms_norm(stream, None, added, weight, EPS)
    total = stream + added
    assert found.rest is None and found.y.dtype == found.sum.dtype == found.rstd.dtype == torch.float64
    assert relative_error(found.sum, total) < 1e-15 and relative_error(found.y, normed(total, weight)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_sum_without_a_norm_is_the_same_sum(dtype):
    stream, rest, added, weight = drawn(5, 127, dtype)
    given = rest
    total, left = door.accumulate(stream, copied(rest), added)
    found = reference.accumulate_rms_norm(stream, copied(rest), added, weight, EPS)
    assert torch.equal(total, found.sum) and total.data_ptr() != stream.data_ptr()
    assert left is None if given is None else torch.equal(left, found.rest)
    assert given is None or door.accumulate(stream, given, added)[1] is given


def test_a_stream_of_higher_precision_is_rounded_to_what_is_added(op):
    stream, added, weight = normal(5, 63), normal(5, 63, dtype=torch.bfloat16, seed=1), normal(63, seed=2)
    found = op.accumulate_rms_norm(stream, None, added, weight, 1e-6)
    assert found.sum.dtype is found.y.dtype is torch.bfloat16
    assert torch.equal(found.sum, (stream + added.float()).to(torch.bfloat16))


CARDS = {
    "T4": (7, 5),
    "A100": (8, 0),
    "RTX 4090": (8, 9),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX 5090": (12, 0),
}


@pytest.mark.parametrize("card", CARDS)
def test_cards_without_room_for_a_kernel_take_the_old_way(card, monkeypatch: pytest.MonkeyPatch):
    from core.kernels import backend

    device, kind = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(door, "runs_fused", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CARDS[card])
    backend.capability.cache_clear()
    assert door.fits_norm_thin([32, 16, 16], kind, device) is (card in ("H200", "B200"))
    assert not door.fits_norm_thin([65], kind, device)
    backend.capability.cache_clear()
