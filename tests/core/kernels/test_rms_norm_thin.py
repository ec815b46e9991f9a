"""The norm's gradient with the adapters' thin products: against autograd in float64, and against separate products."""

from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.kernels import rms_norm as door
from core.kernels.rms_norm.reference import NormGradients
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)
from tests.core.kernels.test_rms_norm_low import EPS, Case, formula, made

BF16 = torch.bfloat16
CASES = [
    (70, 200, (32, 16, 16)),
    (33, 63, (8, 24, 3)),
    (5, 127, (48, 0, 16)),
    (200, 65, (24, 8, 0)),
    (2, 1000, (64, 64, 64)),
    (1, 65, (16, 8, 8)),
    (130, 129, (16, 0, 0)),
]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU the door leads to the definition."""
    from core.kernels.rms_norm import fused_thin

    return {"fused": fused_thin, "door": door}[request.param]


def inner(case: Case, ranks: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Inner values of the adapters before and beside the norm: some columns in wider matrices of NaN."""
    n, dtype = case.x.shape[0], case.x.dtype
    one, other = (normal(n, rank, dtype=dtype, seed=7 + rank) for rank in ranks[1:])
    return inside(one, ranks[1] + 40), inside(other, ranks[2] + 40)


def run(op: ModuleType, case: Case, ranks: tuple[int, int, int], **given: object) -> NormGradients:
    low_add, low_x = inner(case, ranks)
    given = {"add": case.add, "low_add": low_add, "low_x": low_x, "offset": case.offset, **given}
    return op.rms_norm_gradients(
        case.dy, inside(case.x), case.norm, case.rstd, case.dot, case.low, case.narrow,
        rank=ranks[0], rank_add=ranks[1], rank_x=ranks[2], **given,
    )  # fmt: skip


def through(case: Case, ranks: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return all gradients by autograd: of what the norm gets, of A behind it, of B beside it and of B before it."""
    x, norm, weight, a, b, dz, add, low_add, low_x = (
        each.to(dtype) for each in (*case[:2], *case[3:7], case.add, *inner(case, ranks))
    )
    x, a, b_add, b_x = (
        each.detach().requires_grad_()
        for each in (x, a, x.new_zeros(x.shape[1], ranks[1]), x.new_zeros(x.shape[1], ranks[2]))
    )
    total = x + functional.linear(low_x, b_x)
    wide = total.to(torch.promote_types(dtype, torch.float32))
    y = (norm + case.offset) * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(dtype)
    z = functional.linear(y, weight) + functional.linear(functional.linear(y, a), b)
    beside = total + functional.linear(low_add, b_add)
    return torch.autograd.grad([z, beside], [x, a, b_add, b_x], [dz, add])


def thin(found: Tensor, low: Tensor, rank: int) -> Tensor:
    return found.double().t() @ low[:, :rank].double()


def assert_all_as_exact_as_autograds(
    op: ModuleType, n: int, e: int, ranks: tuple[int, int, int], dtype: torch.dtype
) -> None:
    case = made(n, e, ranks[0], dtype)
    found = run(op, case, ranks)
    truth, plain = through(case, ranks, torch.float64), through(case, ranks, dtype)
    assert_no_worse(found.x, plain[0], truth[0])
    for one, rough, exact in zip(found[1:], plain[1:], truth[1:], strict=True):
        assert_no_worse(one, rough.float(), exact)


@pytest.mark.parametrize(("n", "e", "ranks"), CASES)
def test_all_gradients_are_as_exact_as_autograds(op, n, e, ranks):
    assert_all_as_exact_as_autograds(op, n, e, ranks, BF16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "e", "ranks"), CASES[:3])
def test_other_dtypes_are_the_definitions(n, e, ranks, dtype):
    assert_all_as_exact_as_autograds(door, n, e, ranks, dtype)


def test_roots_beyond_the_range_of_float16_do_no_harm():
    case = made(33, 63, 16, torch.float16)._replace(rstd=torch.full((33,), 1e6, device=DEVICE))
    found = run(door, case, (16, 0, 0)).a
    exact = thin(case.low[:, :16] * case.rstd[:, None].double(), case.x, 63) * (case.norm.double() + 1.0)
    assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("n", "e", "rank"), [(1, 3, 16), (33, 200, 8), (65, 129, 48)])
def test_nothing_is_rounded_but_the_gradient_and_one_factor(op, n, e, rank, offset):
    case, ranks = made(n, e, rank, BF16, offset=offset), (rank, 16, 8)
    found, (low_add, low_x) = run(op, case, ranks), inner(case, ranks)
    truth = formula(case)
    assert_no_worse(found.x, truth.to(BF16), truth)
    assert relative_error(found.b_add, thin(case.add, low_add, 16)) < 1e-6
    assert relative_error(found.b_x, thin(found.x, low_x, 8)) < 1e-6
    factor, scale = case.low[:, :rank] * case.rstd[:, None], case.norm.double() + offset
    if op is not door or DEVICE.type == "cuda":
        factor = factor.to(BF16)
    assert relative_error(found.a, thin(factor, case.x, e) * scale) < 1e-6


@pytest.mark.parametrize("into", ["out", "dy", "add"])
@pytest.mark.parametrize(("n", "e", "ranks"), CASES[:3])
def test_the_gradient_may_lie_where_an_operand_lay(op, n, e, ranks, into):
    case = made(n, e, ranks[0], BF16)
    expected, before = run(op, case, ranks), case.product[:, e:].clone()
    add = inside(case.add, e + 8)
    out = {"out": poisoned((n, e), BF16), "dy": case.dy, "add": add}[into]
    found = run(op, case, ranks, add=add, out=out)
    assert found.x is out and all(map(torch.equal, found, expected))
    assert margin_untouched(case.product if into == "dy" else out)
    assert torch.equal(case.product[:, e:].nan_to_num(-1.0), before.nan_to_num(-1.0))


def test_operands_stay_as_they_are_without_a_place_for_the_gradient(op):
    case = made(7, 63, 16, BF16)
    product, add = case.product.clone(), case.add.clone()
    found = run(op, case, (16, 8, 24))
    assert [tuple(each.shape) for each in found] == [(7, 63), (16, 63), (63, 8), (63, 24)]
    assert [each.dtype for each in found] == [BF16] + [torch.float32] * 3
    assert found.x.is_contiguous() and torch.equal(case.add, add)
    assert torch.equal(case.product.nan_to_num(), product.nan_to_num())


@pytest.mark.parametrize("ranks", [(32, 16, 16), (64, 32, 40)])
def test_tiles_and_chunks_hardly_change_anything(ranks):
    from core.kernels.rms_norm import fused_thin

    case = made(135, 70, ranks[0], BF16)
    expected = run(fused_thin, case, ranks)
    for tiles in ((16, 64, 4, 1, None, 1), (32, 32, 4, 2, None, 1000), (64, 128, 8, 2, 255, 2)):
        found = run(fused_thin, case, ranks, tiles=fused_thin.Tiles(*tiles))
        # Other instructions may multiply: a bit of one number in some thousands.
        assert relative_error(found.x, expected.x) < 1e-4 and relative_error(found.b_x, expected.b_x) < 1e-4
        assert relative_error(found.a, expected.a) < 1e-6
        assert relative_error(found.b_add, expected.b_add) < 1e-6


def test_many_rows_are_summed_in_parts_and_none_is_lost_or_counted_twice(op):
    n, e = 520, 3
    ones = torch.ones(n, 8, dtype=BF16, device=DEVICE)
    x, row = ones[:, :e] * 2.0, torch.full((n,), 0.25, device=DEVICE)
    found = op.rms_norm_gradients(
        x, x, ones[0, :e], row, row, ones, ones[:8, :e], ones[:, :e],
        rank=8, low_add=ones, rank_add=8, low_x=ones, rank_x=4,
    )  # fmt: skip
    torch.testing.assert_close(found.a, torch.full((8, e), n * 0.25 * 2.0, device=DEVICE))
    torch.testing.assert_close(found.b_add, torch.full((e, 8), float(n), device=DEVICE))
    torch.testing.assert_close(found.b_x, (n * found.x[0].float())[:, None].expand(e, 4))


def test_the_same_input_gives_the_same_bits(op):
    case, ranks = made(130, 70, 32, BF16), (32, 16, 16)
    first = run(op, case, ranks)
    assert all(all(map(torch.equal, run(op, case, ranks), first)) for _ in range(2))


def test_products_of_no_rank_need_no_inner_values(op):
    case = made(33, 63, 16, BF16)
    found = run(op, case, (16, 0, 0), low_add=None, low_x=None)
    assert found.b_add.shape == (63, 0) and found.b_x.shape == (63, 0)
    assert all(map(torch.equal, found, run(op, case, (16, 0, 0))))


def test_without_adapters_behind_it_the_others_still_get_their_gradients(op):
    case = made(33, 63, 16, BF16)
    found, (low_add, low_x) = run(op, case, (0, 8, 24)), inner(case, (0, 8, 24))
    expected = op_alone(op).rms_norm_backward_low(
        case.dy,
        case.x,
        case.norm,
        case.rstd,
        case.dot,
        case.low,
        case.narrow,
        rank=0,
        offset=1.0,
        add=case.add,
    )
    assert found.a.shape == (0, 63)
    assert relative_error(found.x, expected) < 1e-4
    assert relative_error(found.b_add, thin(case.add, low_add, 8)) < 1e-6
    assert relative_error(found.b_x, thin(found.x, low_x, 24)) < 1e-6


def op_alone(op: ModuleType) -> ModuleType:
    """Return who computes the gradient alone as `op` does."""
    from core.kernels.rms_norm import fused

    return door if op is door else fused


@pytest.mark.parametrize(("low_add", "low_x"), [(None, True), (True, None)])
def test_ranks_without_inner_values_are_refused(low_add, low_x):
    case = made(3, 8, 16, BF16)
    given = {
        name: each and case.low for name, each in (("low_add", low_add), ("low_x", low_x)) if each is None
    }
    with pytest.raises(ValueError, match="needs them: low_add for rank_add, low_x for rank_x"):
        run(door, case, (16, 4, 4), **given)


def test_no_rows_give_sums_of_zero(op):
    found = run(op, made(0, 63, 16, BF16), (16, 8, 8))
    assert found.x.shape == (0, 63)
    assert [tuple(each.shape) for each in found[1:]] == [(16, 63), (63, 8), (63, 8)]
    assert not any(bool(each.any()) for each in found[1:])


def test_a_rows_nan_stays_in_its_row_of_the_gradient(op):
    case, ranks = made(66, 63, 16, BF16), (16, 8, 8)
    before = run(op, case, ranks).x
    case.product[4] = float("nan")
    after, kept = run(op, case, ranks).x, torch.arange(66, device=DEVICE) != 4
    assert torch.equal(after[kept], before[kept]) and bool(after[4].isnan().all())


def test_weight_may_be_more_precise_than_the_rows(op):
    case = made(33, 127, 16, BF16)._replace(norm=normal(127, seed=1))
    found = run(op, case, (16, 8, 8))
    assert_no_worse(found.x, formula(case).bfloat16(), formula(case))
    exact = thin(case.low[:, :16] * case.rstd[:, None].double(), case.x, 127) * (case.norm.double() + 1.0)
    assert relative_error(found.a, exact) < 3e-3


def test_definition_is_exact_in_float64():
    case, ranks = made(33, 200, 16, torch.float64), (16, 8, 24)
    wide = torch.rsqrt(case.x.square().mean(-1) + EPS)
    y = case.x * wide[:, None] * (case.norm + case.offset)
    dot = (case.dz * (y @ (case.weight + case.b @ case.a).t())).sum(1)
    found = run(door, case._replace(rstd=wide, dot=dot), ranks)
    assert all(each.dtype == torch.float64 for each in found)
    for one, exact in zip(found, through(case, ranks, torch.float64), strict=True):
        assert relative_error(one, exact) < 1e-13


@pytest.mark.parametrize(("n", "stride"), [(3, 1 << 30), (33, 1 << 26)], ids=["in a tile", "beyond it"])
def test_offsets_beyond_two_to_the_31(op, n, stride):
    e, ranks = 64, (16, 8, 8)
    case = made(n, e, 16, BF16)
    buffer = torch.empty((n - 1) * stride + e + 64, dtype=BF16, device=DEVICE)
    far = buffer.as_strided((n, e + 64), (stride, 1)).copy_(case.product)
    expected, moved = run(op, case, ranks), case._replace(product=far)
    assert all(map(torch.equal, run(op, moved, ranks, out=moved.dy), expected))


def test_a_chunk_is_whole_tiles_and_all_programs_run_at_once():
    from core.kernels.rms_norm import fused_thin

    rows = (0, 1, 33, 300, 2048, 4096, 16384, 1 << 20)
    tiles = fused_thin.BACKWARD
    assert {n: fused_thin._chunk(n, 32, tiles) for n in rows} == {
        0: 32, 1: 32, 33: 64, 300: 128, 2048: 256, 4096: 512, 16384: 2048, 1 << 20: 1 << 17,
    }  # fmt: skip
    for blocks in (1, 16, 20, 28, 40, 64, 100, 264):
        assert all(blocks * -(-n // fused_thin._chunk(n, blocks, tiles)) <= 264 for n in (16384, 16390))
    assert fused_thin._chunk(16384, 1000, tiles) == 16384


def test_what_fits(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(door, "multiplies_from_shared_memory", lambda device: True)
    assert door.fits_norm_thin([0, 16, 64], BF16, gpu) and door.fits_norm_thin([], BF16, gpu)
    assert not door.fits_norm_thin([16, 65], BF16, gpu)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert not door.fits_norm_thin([16], dtype, gpu)
    assert door.fits_norm_thin([1000], torch.float64, cpu)
