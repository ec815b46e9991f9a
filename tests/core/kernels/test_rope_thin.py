"""The rotation's gradient with the adapters' thin products: against autograd in float64, and separate products."""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.kernels import rope as door
from core.kernels.rope import Heads, RopeGradients
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)
from tests.core.kernels.test_rope import LAYOUTS, OFFSETS, norms, places, rows, table, turned, upstream

BF16 = torch.bfloat16
Ranks = tuple[int, int, int]
# Batch, tokens, heads, ranks of queries, keys and values.
CASES = [
    (2, 5, Heads(4, 2, 64), (16, 8, 8)),
    (1, 63, Heads(2, 2, 32), (8, 24, 3)),
    (3, 7, Heads(3, 1, 80), (0, 16, 8)),
    (1, 9, Heads(6, 3, 6), (16, 0, 0)),
    (2, 1, Heads(6, 2, 128), (5, 5, 0)),
    (1, 17, Heads(1, 1, 256), (40, 0, 64)),
    (2, 70, Heads(5, 1, 10), (4, 33, 1)),
]


class Case(NamedTuple):
    """What the backward pass has."""

    gradients: list[Tensor]
    angles: tuple[Tensor, Tensor, Tensor]
    heads: Heads
    raw: Tensor
    """What was projected, in dtype."""
    kept: Tensor
    """Of that what is kept."""
    low: Tensor
    ranks: Ranks
    norm: dict


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU the door leads to the definition."""
    from core.kernels.rope import fused_thin

    return {"fused": fused_thin, "door": door}[request.param]


def made(b, s, heads, ranks, dtype=BF16, layout="tokens first", offset=None) -> Case:
    n, columns = b * s, (heads.query + 2 * heads.key) * heads.width
    raw, norm = normal(n, columns, dtype=dtype, scale=2.0, seed=9), norms(heads, dtype, offset)
    angles = (*table(heads.width), places(n))
    kept = raw if norm else turned(raw.double(), *angles, heads).to(dtype)
    low = inside(normal(n, sum(ranks), dtype=dtype, seed=4), sum(ranks) + 40)
    return Case(upstream(b, s, heads, dtype, layout), angles, heads, raw, inside(kept), low, ranks, norm)


def run(op: ModuleType, case: Case, **given: object) -> RopeGradients:
    return op.rope_gradients(
        *case.gradients, *case.angles, case.heads,
        qkv=case.kept, low=case.low, ranks=case.ranks, **{**case.norm, **given},
    )  # fmt: skip


def split(case: Case, x: Tensor) -> tuple[Tensor, ...]:
    return x.split(
        [count * case.heads.width for count in (case.heads.query, case.heads.key, case.heads.key)], dim=1
    )


def through(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Return the gradients of the projections, their adapters' B and <dz, z> by autograd."""
    raw, low = case.raw.to(dtype).requires_grad_(), case.low.to(dtype).split(case.ranks, dim=1)
    b = [
        raw.new_zeros(z.shape[1], r).requires_grad_()
        for z, r in zip(split(case, raw), case.ranks, strict=True)
    ]
    z = raw + torch.cat([functional.linear(*each) for each in zip(low, b, strict=True)], dim=1)
    dz, *of_b = torch.autograd.grad(
        turned(z, *case.angles, case.heads, **case.norm), [z, *b], rows(case.gradients).to(dtype)
    )
    wide = torch.promote_types(dtype, torch.float32)
    return [dz, *of_b, (dz.to(wide) * case.raw.to(wide)).sum(1)]


def assert_all_as_exact_as_autograds(op: ModuleType, case: Case) -> None:
    found = run(op, case, out=poisoned(case.raw.shape, case.raw.dtype))
    truth, plain = through(case, torch.float64), through(case, case.raw.dtype)
    assert margin_untouched(found.qkv)
    for each, rough, exact in zip(*(split(case, x) for x in (found.qkv, plain[0], truth[0])), strict=True):
        assert_no_worse(each, rough, exact)
    for each, rough, exact in zip(found[1:], plain[1:], truth[1:], strict=True):
        assert_no_worse(each, rough.float(), exact)


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("case", range(len(CASES)))
def test_all_gradients_are_as_exact_as_autograds(op, case, turn):
    """Every case meets every layout and every offset."""
    assert_all_as_exact_as_autograds(
        op, made(*CASES[case], layout=LAYOUTS[turn], offset=OFFSETS[(turn + case) % 3])
    )


@pytest.mark.parametrize("case", range(3))
def test_float16_too(op, case):
    assert_all_as_exact_as_autograds(op, made(*CASES[case], dtype=torch.float16, offset=OFFSETS[case]))


@pytest.mark.parametrize("offset", OFFSETS)
def test_float32_is_the_definitions(offset):
    assert_all_as_exact_as_autograds(door, made(*CASES[0], dtype=torch.float32, offset=offset))


@pytest.mark.parametrize(("offset", "case"), zip(OFFSETS * 2, CASES, strict=False))
def test_the_gradient_is_rope_backwards_and_nothing_else_is_rounded(op, case, offset):
    case = made(*case, layout="packed", offset=offset)
    found, alone = run(op, case), alone_of(op).rope_backward
    gradient = alone(*case.gradients, *case.angles, case.heads, raw=case.kept, **case.norm)
    # A bit of one number in some thousands: other tiles, other sums.
    assert relative_error(found.qkv, gradient) < 1e-4
    assert torch.equal(split(case, found.qkv)[2], split(case, rows(case.gradients))[2])
    inner = case.low.split(case.ranks, dim=1)
    for dz, low, b in zip(split(case, found.qkv), inner, found[1:4], strict=True):
        assert relative_error(b, dz.double().t() @ low.double()) < 1e-6


def alone_of(op: ModuleType) -> ModuleType:
    """Return who computes the gradient alone as `op` does."""
    from core.kernels.rope import fused

    return door if op is door else fused


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("case", CASES[:3])
def test_the_product_with_what_was_projected_takes_numbers_before_rounding(op, case, offset, precise):
    """An eps as large as this leaves something of the norms' products, which cancel else."""
    case = made(*case, offset=offset, layout="packed")
    norm = case.norm | {"eps": 0.5} if case.norm else {}
    if precise:
        norm = {name: x.float() if isinstance(x, Tensor) else x for name, x in norm.items()}
    case = case._replace(norm=norm)
    exact = rows(case.gradients).double() * case.kept.double()
    if norm:
        exact = through(case, torch.float64)[0] * case.raw.double()
    assert relative_error(run(op, case).dot, exact.sum(1)) < 3e-6


def test_products_of_normed_heads_do_not_cancel():
    from core.kernels.rope import fused_thin

    case = made(*CASES[0], offset=0.0)
    case.gradients[2].zero_()
    found, exact = run(fused_thin, case).dot, through(case, torch.float64)[-1]
    assert relative_error(found, exact) < 1e-5


@pytest.mark.parametrize("offset", [None, 1.0])
def test_the_gradient_may_lie_beside_the_inner_values(op, offset):
    case = made(*CASES[1], offset=offset)
    expected, columns = run(op, case), case.raw.shape[1]
    wide = inside(torch.cat((torch.full_like(case.raw, float("nan")), case.low), dim=1))
    found = run(op, case._replace(low=wide[:, columns:]), out=wide[:, :columns])
    assert found.qkv.data_ptr() == wide.data_ptr() and torch.equal(wide[:, columns:], case.low)
    assert all(map(torch.equal, found, expected)) and margin_untouched(wide)


@pytest.mark.parametrize("offset", [None, 1.0])
def test_operands_stay_as_they_are(op, offset):
    case = made(*CASES[0], offset=offset, layout="packed")
    before = [each.clone() for each in (*case.gradients, case.kept, case.low)]
    found = run(op, case)
    assert all(map(torch.equal, (*case.gradients, case.kept, case.low), before))
    assert margin_untouched(case.kept) and found.qkv.is_contiguous()
    assert [tuple(each.shape) for each in found] == [(10, 512), (256, 16), (128, 8), (128, 8), (10,)]
    assert [each.dtype for each in found] == [BF16] + [torch.float32] * 4


def test_without_ranks_the_gradient_and_its_product_remain(op):
    case = made(2, 5, Heads(4, 2, 64), (0, 0, 0))
    found, expected = run(op, case), run(op, made(*CASES[0]))
    assert [tuple(each.shape) for each in found[1:4]] == [(256, 0), (128, 0), (128, 0)]
    assert torch.equal(found.qkv, expected.qkv) and torch.equal(found.dot, expected.dot)


@pytest.mark.parametrize(("ranks", "offset"), [((16, 8, 8), None), ((40, 3, 24), 1.0)])
def test_tiles_and_chunks_hardly_change_anything(ranks, offset):
    from core.kernels.rope import fused_thin

    case = made(1, 70, Heads(3, 1, 12), ranks, offset=offset)
    expected = run(fused_thin, case)
    for tiles in ((16, 8, 4, 3, None, 1), (32, 32, 4, 5, None, 1000)):
        found = run(fused_thin, case, tiles=fused_thin.Tiles(*tiles))
        # Other instructions may multiply and sum: a bit of one number in some thousands.
        assert (
            relative_error(found.qkv, expected.qkv) < 1e-4 and relative_error(found.dot, expected.dot) < 1e-5
        )
        assert all(relative_error(*each) < 1e-4 for each in zip(found[1:4], expected[1:4], strict=True))


def test_many_rows_are_summed_in_parts_and_none_is_lost_or_counted_twice(op):
    n, heads = 270, Heads(2, 1, 2)
    ones = torch.ones(n, 8, dtype=BF16, device=DEVICE)
    dq, dk = ones[:, :4].view(1, n, 2, 2).transpose(1, 2), ones[:, :2].view(1, n, 1, 2).transpose(1, 2)
    # A turn by nothing.
    cos, sin, at = (
        torch.ones(1, 2, device=DEVICE),
        torch.zeros(1, 2, device=DEVICE),
        torch.zeros(n, device=DEVICE),
    )
    found = op.rope_gradients(
        dq, dk, dk * 2.0, cos, sin, at.long(), heads, qkv=ones[:, :8], low=ones, ranks=(1, 2, 3)
    )
    for each, shape, value in zip(found[1:4], [(4, 1), (2, 2), (2, 3)], [1.0, 1.0, 2.0], strict=True):
        torch.testing.assert_close(each, torch.full(shape, n * value, device=DEVICE))
    torch.testing.assert_close(found.dot, torch.full((n,), 4 + 2 + 2 * 2.0, device=DEVICE))


@pytest.mark.parametrize("offset", [None, 1.0])
def test_the_same_input_gives_the_same_bits(op, offset):
    case = made(1, 135, Heads(2, 1, 6), (8, 8, 8), offset=offset)
    first = run(op, case)
    assert all(all(map(torch.equal, run(op, case), first)) for _ in range(2))


def test_no_rows_give_sums_of_zero(op):
    case = made(1, 3, Heads(2, 1, 8), (4, 4, 4), offset=0.0)
    none = [each[:, :, :0] for each in case.gradients]
    case = case._replace(
        gradients=none, kept=case.kept[:0], low=case.low[:0], angles=(*case.angles[:2], case.angles[2][:0])
    )
    found = run(op, case)
    assert found.qkv.shape == (0, 32) and found.dot.shape == (0,)
    assert [tuple(each.shape) for each in found[1:4]] == [(16, 4), (8, 4), (8, 4)]
    assert not any(bool(each.any()) for each in found[1:4])


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("offset", [None, 0.0])
def test_values_that_overflowed_pass_through_alone(op, offset):
    case = made(*CASES[0], offset=offset, layout="packed")
    before = run(op, case)
    case.gradients[2][0, 1, 2, 3] = float("inf")
    found = run(op, case)
    assert torch.equal(split(case, found.qkv)[2], split(case, rows(case.gradients))[2])
    assert all(map(torch.equal, split(case, found.qkv)[:2], split(case, before.qkv)[:2]))
    assert all(map(torch.equal, found[1:3], before[1:3]))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("offset", [None, 1.0])
def test_a_rows_nan_stays_in_its_row(op, offset):
    case = made(1, 34, Heads(2, 1, 16), (8, 8, 8), offset=offset)
    before, others = run(op, case), torch.arange(34, device=DEVICE) != 4
    case.gradients[0][:, :, 4] = float("nan")
    after = run(op, case)
    assert torch.equal(after.qkv[others], before.qkv[others]) and torch.equal(
        after.dot[others], before.dot[others]
    )
    assert bool(split(case, after.qkv)[0][4].isnan().all() and after.dot[4].isnan())


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_padded_does_no_harm_without_an_eps(op):
    case = made(1, 9, Heads(3, 1, 6), (8, 8, 8), offset=0.0)
    found = run(op, case, eps=0.0)
    assert all(bool(each.isfinite().all()) for each in found)


def test_only_one_weight_is_refused():
    case = made(*CASES[0], offset=0.0)
    with pytest.raises(ValueError, match="both weights or neither"):
        run(door, case, k_weight=None)


@pytest.mark.parametrize("offset", OFFSETS)
def test_definition_is_exact_in_float64(offset):
    case = made(*CASES[2], dtype=torch.float64, offset=offset, layout="packed")
    found = run(door, case)
    assert all(each.dtype == torch.float64 for each in found)
    for each, exact in zip(found, through(case, torch.float64), strict=True):
        assert relative_error(each, exact) < 1e-12


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_product_is_that_of_the_layers_input_with_its_whole_gradient(offset):
    """With z = x (W + B A)', <dx, x> = <dz, z>: what the norm before the projections asks for."""
    case = made(*CASES[0], dtype=torch.float64, offset=offset)
    weight, x = normal(512, 40, seed=1).double(), normal(10, 40, seed=2).double().requires_grad_()
    z = functional.linear(x, weight)
    out = turned(z, *case.angles, case.heads, **case.norm)
    dx = torch.autograd.grad(out, x, rows(case.gradients))[0]
    kept = z.detach() if case.norm else out.detach()
    assert relative_error(run(door, case._replace(kept=kept)).dot, (dx * x).sum(1)) < 1e-10


def test_offsets_beyond_two_to_the_31(op):
    case, stride = made(1, 3, Heads(2, 1, 8), (4, 4, 4)), 1 << 30
    expected, width = run(op, case), case.raw.shape[1]

    def far(x: Tensor) -> Tensor:
        return (
            torch.empty(2 * stride + width, dtype=BF16, device=DEVICE)
            .as_strided(x.shape, (stride, 1))
            .copy_(x)
        )

    dq = torch.empty(2 * stride + 16, dtype=BF16, device=DEVICE).as_strided((1, 2, 3, 8), (0, 8, stride, 1))
    moved = case._replace(kept=far(case.kept), gradients=[dq.copy_(case.gradients[0]), *case.gradients[1:]])
    assert all(map(torch.equal, run(op, moved, out=far(case.raw)), expected))
    apart = dq.as_strided((3, 2, 1, 8), (stride, 8, 0, 1))
    by_batch = [apart, *(each.transpose(0, 2) for each in case.gradients[1:])]
    assert all(map(torch.equal, run(op, moved._replace(gradients=by_batch)), expected))


def test_a_chunk_is_whole_tiles_and_all_programs_run_at_once():
    from core.kernels.rope import fused_thin

    tiles, counts = fused_thin.BACKWARD, (0, 1, 33, 300, 4096, 16384, 1 << 20)
    assert {n: fused_thin._chunk(n, 24, tiles) for n in counts} == {
        0: 16, 1: 16, 33: 48, 300: 128, 4096: 384, 16384: 1504, 1 << 20: 95328,
    }  # fmt: skip
    for blocks in (6, 12, 24, 40, 96):
        assert all(blocks * -(-n // fused_thin._chunk(n, blocks, tiles)) <= 264 for n in (16384, 16390))
    assert fused_thin._chunk(16384, 1000, tiles) == 16384


def test_tiles_follow_from_ranks_and_width():
    from core.kernels.rope import fused_thin

    assert {(rank, block): fused_thin._tiles(rank, block) for rank in (16, 32, 64) for block in (32, 64, 128)} == {
        (16, 32): fused_thin.BACKWARD, (16, 64): fused_thin.BACKWARD, (16, 128): fused_thin.BACKWARD,
        (32, 32): fused_thin.BACKWARD, (32, 64): fused_thin.BACKWARD, (32, 128): fused_thin.BACKWARD,
        (64, 32): fused_thin.BACKWARD_MANY, (64, 64): fused_thin.BACKWARD_MANY,
        (64, 128): fused_thin.BACKWARD_WIDE,
    }  # fmt: skip


def test_what_fits(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(door, "multiplies_from_shared_memory", lambda device: True)
    assert door.fits_rope_thin([0, 16, 64], BF16, gpu) and door.fits_rope_thin([], torch.float16, gpu)
    assert not door.fits_rope_thin([16, 65], BF16, gpu)
    for dtype in (torch.float32, torch.float64):
        assert not door.fits_rope_thin([16], dtype, gpu)
    assert door.fits_rope_thin([1000], torch.float64, cpu)
