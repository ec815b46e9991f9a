"""The gradient of gated linear units that adds the share of the adapters below: against autograd, and against a whole dh."""

from types import ModuleType

import pytest
import torch

from core.kernels import glu as door
from core.kernels.glu import reference
from core.kernels.glu.reference import GluGradients
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)
from tests.core.kernels.test_glu import gradient, product

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered"
)  # exp in the interpreter: infinity is meant
CASES = [
    (70, 200, torch.bfloat16, "silu", (16, 16, 16)),
    (33, 63, torch.float16, "gelu_tanh", (8, 24, 3)),
    (5, 127, torch.bfloat16, "gelu", (64, 64, 64)),
    (40, 65, torch.bfloat16, "silu", (32, 32, 17)),
    (1, 1, torch.float16, "silu", (0, 8, 5)),
    (7, 130, torch.bfloat16, "gelu_tanh", (0, 0, 9)),
]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.glu import fused_thin

    return {"fused": fused_thin, "door": door}[request.param]


def whole_numbers(*shape: int, most: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(DEVICE)


def below(n: int, f: int, rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d_low and narrow: columns and rows of larger matrices of NaN, at odd strides."""
    d_low = inside(normal(n, rank, dtype=dtype, seed=3), rank + 41)
    return d_low, poisoned((rank + 4, f), dtype, f + 7)[:rank].copy_(normal(rank, f, dtype=dtype, seed=4))


def with_more(view: torch.Tensor, *, rows: int = 0, columns: int = 0) -> torch.Tensor:
    """Return a view that also shows what lies beyond."""
    return view.as_strided((view.shape[0] + rows, view.shape[1] + columns), view.stride())


def equal(found: GluGradients, expected: GluGradients) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def nearly_equal(found: GluGradients, expected: GluGradients) -> bool:
    """On a GPU two kernels may contract a product and a sum differently: a bit of one number in some thousands."""
    if DEVICE.type == "cpu":
        return equal(found, expected)
    return all(relative_error(one, other) < 3e-4 for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("n", "f", "dtype", "activation", "ranks"), CASES)
def test_gradients_are_as_exact_as_those_of_a_whole_dh(op, n, f, dtype, activation, ranks):
    dh, gate_up = normal(n, f, dtype=dtype, seed=1), normal(n, 2 * f, dtype=dtype, scale=3.0)
    low, out = inside(normal(n, sum(ranks[:2]), dtype=dtype, seed=2)), poisoned((n, 2 * f), dtype)
    d_low, narrow = below(n, f, ranks[2], dtype)
    found = op.glu_gradients(
        inside(dh), inside(gate_up), activation, low=low, ranks=ranks[:2], d_low=with_more(d_low, columns=9),
        rank_down=ranks[2], narrow=with_more(narrow, rows=4), out=out,
    )  # fmt: skip
    assert found.gate_up is out and margin_untouched(out)
    truth = gradient(gate_up.double(), dh.double() + d_low.double() @ narrow.double(), activation)
    rough = gradient(gate_up, torch.addmm(dh, d_low, narrow), activation)
    for half in (slice(0, f), slice(f, None)):
        assert_no_worse(out[:, half], rough[:, half], truth[:, half])
    for sums, half, inner in (
        (found.b_gate, slice(0, f), low[:, : ranks[0]]),
        (found.b_up, slice(f, None), low[:, ranks[0] :]),
    ):
        plain = rough[:, half].t().float() @ inner.float()
        assert_no_worse(sums, plain, truth[:, half].t() @ inner.double())
    h, h_rough = product(gate_up.double(), activation), product(gate_up, activation)
    assert_no_worse(found.a_down, d_low.t().float() @ h_rough.float(), d_low.double().t() @ h)
    assert_no_worse(found.dot, (rough.float() * gate_up.float()).sum(1), (truth * gate_up.double()).sum(1))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_definition_is_autograds_through_the_layer_below(activation):
    """Its outputs are h W' + (h narrow') B' with W [e, f] and B [e, r]."""
    n, f, e, ranks = 7, 63, 12, (8, 4, 3)
    w, b, narrow = (normal(*shape, seed=seed).double() for seed, shape in enumerate(((e, f), (e, 3), (3, f))))
    b_gate, b_up, low = (normal(*shape, seed=9).double() for shape in ((f, 8), (f, 4), (n, 12)))
    frozen, dy = normal(n, 2 * f, seed=5, scale=2.0).double(), normal(n, e, seed=6).double()
    leaves = [tensor.requires_grad_() for tensor in (frozen, b_gate, b_up, narrow)]
    gate_up = frozen + torch.cat((low[:, :8] @ b_gate.t(), low[:, 8:] @ b_up.t()), dim=1)
    h = product(gate_up, activation)
    truth = torch.autograd.grad(((h @ w.t() + h @ narrow.t() @ b.t()) * dy).sum(), leaves)
    found = door.glu_gradients(
        dy @ w, gate_up.detach(), activation, low=low, ranks=ranks[:2], d_low=dy @ b, rank_down=3,
        narrow=narrow.detach(),
    )  # fmt: skip
    assert all(relative_error(one, other) < 1e-13 for one, other in zip(found[:4], truth, strict=True))
    assert relative_error(found.dot, (truth[0] * gate_up.detach()).sum(1)) < 1e-13


@pytest.mark.parametrize(
    ("n", "f", "ranks"), [(70, 200, (16, 16, 16)), (33, 63, (8, 0, 3)), (5, 127, (0, 0, 11))]
)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_a_share_of_whole_numbers_gives_what_a_whole_dh_gives(op, n, f, ranks, activation):
    dh, d_low, narrow = (
        whole_numbers(*shape, most=most, seed=most).bfloat16()
        for shape, most in (((n, f), 5), ((n, ranks[2]), 2), ((ranks[2], f), 3))
    )
    gate_up, low = normal(n, 2 * f, dtype=torch.bfloat16), normal(n, 40, dtype=torch.bfloat16, seed=2)
    given = {"low": low, "ranks": ranks[:2], "d_low": d_low, "rank_down": ranks[2]}
    expected = op.glu_gradients(dh + d_low @ narrow, gate_up, activation, **given)
    assert nearly_equal(op.glu_gradients(dh, gate_up, activation, narrow=narrow, **given), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_share_and_sum_are_not_rounded(op, dtype):
    n, f, rank = 40, 140, 16
    d_low, narrow = below(n, f, rank, dtype)
    gate_up, low = normal(n, 2 * f, dtype=dtype), normal(n, 0, dtype=dtype)
    given = {"low": low, "ranks": (0, 0), "d_low": d_low, "rank_down": rank, "narrow": narrow}
    share = d_low.double() @ narrow.double()
    rounded = -share.to(dtype)
    found = op.glu_gradients(rounded, gate_up, "silu", **given)
    exact = gradient(gate_up.double(), rounded.double() + share, "silu")
    assert relative_error(found.gate_up, exact) < (6e-3 if dtype == torch.bfloat16 else 2e-2)
    dh = normal(n, f, dtype=dtype, seed=1)
    exact = gradient(gate_up.double(), dh.double() + share, "silu")
    # Only this result is not rounded to 16 bits itself.
    dot = op.glu_gradients(dh, gate_up, "silu", **given).dot
    assert relative_error(dot, (exact * gate_up.double()).sum(1)) < 1e-5


@pytest.mark.parametrize(
    ("ranks", "columns", "turned"),
    [((16, 8, 24), 64, False), ((40, 64, 16), 64, True), ((8, 8, 9), 128, True)],
)
def test_gradients_over_gate_and_up_have_the_same_bits(ranks, columns, turned):
    from core.kernels.glu import fused_thin

    n, f = 70, 70
    tiles = fused_thin.Tiles(32, columns, 256, 4, 2, turned=turned, registers=None)
    gate_up, dh, low = (normal(n, width, dtype=torch.bfloat16) for width in (2 * f, f, sum(ranks[:2])))
    d_low, narrow = below(n, f, ranks[2], torch.bfloat16)
    given = {
        "low": low,
        "ranks": ranks[:2],
        "d_low": d_low,
        "rank_down": ranks[2],
        "narrow": narrow,
        "tiles": tiles,
    }
    expected = fused_thin.glu_gradients(dh, gate_up, "silu", **given)
    assert equal(fused_thin.glu_gradients(dh, gate_up, "silu", **given), expected)
    assert equal(fused_thin.glu_gradients(dh, gate_up, "silu", out=gate_up, **given), expected)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_adapters_below_nothing_is_read_or_added(op, rows):
    gate_up, dh, low = (normal(9, width, dtype=torch.bfloat16) for width in (126, 63, 16))
    narrow = poisoned((rows, 63), torch.bfloat16)
    given = {"low": low, "ranks": (8, 8), "d_low": narrow[:, :0].new_empty(9, 0), "rank_down": 0}
    expected = op.glu_gradients(dh, gate_up, "silu", **given)
    assert equal(op.glu_gradients(dh, gate_up, "silu", narrow=narrow, **given), expected)
    assert not any(each.isnan().any() for each in expected)


def test_no_rows(op):
    empty, dh, low = (normal(0, width, dtype=torch.bfloat16) for width in (126, 63, 16))
    narrow = normal(8, 63, dtype=torch.bfloat16)
    found = op.glu_gradients(dh, empty, "silu", low=low, ranks=(8, 8), d_low=low, rank_down=8, narrow=narrow)
    assert found.gate_up.shape == (0, 126) and not any(each.any() for each in found)


def test_any_rank_goes_in_32_bits():
    gate_up, dh, low = (normal(7, width) for width in (126, 63, 80))
    narrow = normal(80, 63, seed=4)
    found = door.glu_gradients(
        dh, gate_up, "silu", low=low, ranks=(0, 0), d_low=low, rank_down=80, narrow=narrow
    )
    truth = gradient(gate_up.double(), dh.double() + low.double() @ narrow.double(), "silu")
    assert relative_error(found.gate_up, truth) < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="the door leads to the kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_door_is_the_definition_without_a_gpu(dtype):
    gate_up, dh, low = (normal(9, width).to(dtype) for width in (126, 63, 16))
    d_low, narrow = below(9, 63, 5, dtype)
    for given in (None, narrow):
        found, expected = (
            room.glu_gradients(
                dh, gate_up, "silu", low=low, ranks=(8, 8), d_low=d_low, rank_down=5, narrow=given
            )
            for room in (door, reference)
        )
        assert equal(found, expected)


def test_offsets_beyond_two_to_the_31(op):
    stride, f = 1 << 30, 64
    buffer = torch.empty(2 * stride + f, dtype=torch.bfloat16, device=DEVICE)
    narrow = buffer.as_strided((3, f), (stride, 1)).copy_(normal(3, f, seed=4))
    gate_up, dh, low = (normal(3, width, dtype=torch.bfloat16) for width in (2 * f, f, 16))
    given = {"low": low, "ranks": (8, 8), "d_low": low, "rank_down": 3}
    expected = op.glu_gradients(dh, gate_up, "silu", narrow=narrow.contiguous(), **given)
    assert equal(op.glu_gradients(dh, gate_up, "silu", narrow=narrow, **given), expected)


def test_more_ranks_take_other_tiles_if_the_share_is_added():
    from core.kernels.glu import fused_thin

    cases = ((0, 0, 0), (16, 16, 16), (17, 16, 16), (32, 32, 32), (33, 32, 16), (64, 64, 64))
    few, some, many = fused_thin.BACKWARD, fused_thin.BACKWARD_SHARED, fused_thin.BACKWARD_MANY
    assert [fused_thin._tiles(ranks, True) for ranks in cases] == [few, few, some, some, many, many]
    assert [fused_thin._tiles(ranks, False) for ranks in cases] == [few, few, many, many, many, many]
