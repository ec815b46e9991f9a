"""The gradient of gated linear units with the adapters' thin products: against float64, and against separate products."""

import math
from types import ModuleType

import pytest
import torch

from core.kernels import glu as door
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
    (300, 65, torch.bfloat16, "gelu_tanh", (24, 0, 8)),
    (1, 1, torch.float16, "silu", (0, 8, 0)),
    (7, 200, torch.bfloat16, "silu", (0, 0, 64)),
    (3, 64, torch.bfloat16, "silu", (0, 0, 0)),
]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.glu import fused_thin

    return {"fused": fused_thin, "door": door}[request.param]


def alone(op: ModuleType) -> ModuleType:
    """Return who computes h by itself as `op` does."""
    from core.kernels.glu import fused

    return door if op is door else fused


def thin(n: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Inner values: some columns in a wider matrix of NaN."""
    return inside(normal(n, width, dtype=dtype, seed=seed), width + 40)


def gradients(
    op: ModuleType,
    n: int,
    f: int,
    dtype: torch.dtype,
    activation: str,
    ranks: tuple[int, int, int],
    *,
    in_place: bool = False,
    **given: object,
) -> tuple[GluGradients, tuple[torch.Tensor, ...]]:
    """Return what is found, and dh, gate and up, low and d_low as they were."""
    dh, gate_up = normal(n, f, dtype=dtype, seed=1), normal(n, 2 * f, dtype=dtype, scale=3.0)
    low, d_low = thin(n, sum(ranks[:2]), dtype, 2), thin(n, ranks[2], dtype, 3)
    source = inside(gate_up, 2 * f + 64)
    out = source if in_place else poisoned((n, 2 * f), dtype)
    found = op.glu_gradients(
        inside(dh),
        source,
        activation,
        low=low,
        ranks=ranks[:2],
        d_low=d_low,
        rank_down=ranks[2],
        out=out,
        **given,
    )
    assert found.gate_up is out and margin_untouched(out)
    return found, (dh, gate_up, low, d_low)


@pytest.mark.parametrize(("n", "f", "dtype", "activation", "ranks"), CASES)
def test_gradients_are_as_exact_as_separate_products(op, n, f, dtype, activation, ranks):
    found, (dh, gate_up, low, d_low) = gradients(op, n, f, dtype, activation, ranks)
    truth, rough = gradient(gate_up.double(), dh.double(), activation), gradient(gate_up, dh, activation)
    assert_no_worse(found.gate_up[:, :f], rough[:, :f], truth[:, :f])
    assert_no_worse(found.gate_up[:, f:], rough[:, f:], truth[:, f:])
    for name, columns, inner in (
        ("b_gate", slice(0, f), low[:, : ranks[0]]),
        ("b_up", slice(f, None), low[:, ranks[0] :]),
    ):
        exact, plain = truth[:, columns].t() @ inner.double(), rough[:, columns].t().float() @ inner.float()
        assert_no_worse(getattr(found, name), plain, exact)
    h, h_rough = product(gate_up.double(), activation), product(gate_up, activation)
    assert_no_worse(found.a_down, d_low.t().float() @ h_rough.float(), d_low.double().t() @ h)
    dot = (rough.float() * gate_up.float()).sum(1)
    assert_no_worse(found.dot, dot, (truth * gate_up.double()).sum(1))


@pytest.mark.parametrize(("n", "f", "dtype", "activation", "ranks"), CASES[:3])
def test_sums_are_of_the_rounded_gradients_and_in_float32(op, n, f, dtype, activation, ranks):
    found, (_, gate_up, low, d_low) = gradients(op, n, f, dtype, activation, ranks)
    of_gate, of_up = found.gate_up.double().chunk(2, dim=1)
    # The same rounding, unless two ways to compute an exponential differ: a bit of one number in some thousands.
    h, tolerance = alone(op).glu(gate_up, activation).double(), 3e-5
    assert relative_error(found.b_gate, of_gate.t() @ low[:, : ranks[0]].double()) < 1e-6
    assert relative_error(found.b_up, of_up.t() @ low[:, ranks[0] :].double()) < 1e-6
    assert relative_error(found.a_down, d_low.double().t() @ h) < tolerance


@pytest.mark.parametrize(("ranks", "turned"), [((16, 8, 24), False), ((40, 64, 16), True)])
def test_gradients_over_gate_and_up_have_the_same_bits(ranks, turned):
    from core.kernels.glu import fused_thin

    case = (70, 70, torch.bfloat16, "silu", ranks)
    tiles = fused_thin.Tiles(32, 64, 256, 4, 2, turned=turned, registers=None)
    expected, _ = gradients(fused_thin, *case, tiles=tiles)
    for in_place in (False, True):
        found, _ = gradients(fused_thin, *case, in_place=in_place, tiles=tiles)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_many_rows_are_summed_in_parts_and_none_is_lost_or_counted_twice(op):
    n, f = 520, 3
    gate_up, ones = torch.full((n, 2 * f), 2.0, device=DEVICE).bfloat16(), normal(n, 8).bfloat16().fill_(1.0)
    found = op.glu_gradients(gate_up[:, :f], gate_up, "silu", low=ones, ranks=(4, 4), d_low=ones, rank_down=8)
    for column, sums in ((0, found.b_gate), (f, found.b_up)):
        torch.testing.assert_close(sums, (n * found.gate_up[0, column].float()).expand(f, 4))
    h = alone(op).glu(gate_up[:1], "silu").float()
    torch.testing.assert_close(found.a_down, (n * h).expand(8, f))


def test_results_are_allocated_if_no_place_is_given(op):
    gate_up, dh, low = (normal(5, width, dtype=torch.bfloat16) for width in (126, 63, 32))
    found = op.glu_gradients(dh, gate_up, "silu", low=low, ranks=(8, 0), d_low=low, rank_down=4)
    assert found.gate_up.shape == (5, 126) and found.gate_up.dtype == torch.bfloat16
    assert [tuple(each.shape) for each in found[1:]] == [(63, 8), (63, 0), (4, 63), (5,)]
    assert all(each.dtype == torch.float32 for each in found[1:])


def test_no_rows_give_sums_of_zero(op):
    empty, dh, low = (normal(0, width, dtype=torch.bfloat16) for width in (126, 63, 16))
    found = op.glu_gradients(dh, empty, "silu", low=low, ranks=(8, 8), d_low=low, rank_down=8)
    assert found.dot.shape == (0,)
    assert all(torch.equal(each, torch.zeros_like(each)) for each in found)
    assert found.b_up.shape == (63, 8) and found.a_down.shape == (8, 63)


def test_definition_is_exact_in_float64():
    found, (dh, gate_up, low, d_low) = gradients(door, 7, 63, torch.float64, "gelu_tanh", (8, 4, 3))
    truth, h = gradient(gate_up, dh, "gelu_tanh"), product(gate_up, "gelu_tanh")
    exact = (
        truth,
        truth[:, :63].t() @ low[:, :8],
        truth[:, 63:].t() @ low[:, 8:],
        d_low.t() @ h,
        (truth * gate_up).sum(1),
    )
    assert all(relative_error(one, other) < 1e-13 for one, other in zip(found, exact, strict=True))
    assert all(each.dtype == torch.float64 for each in found)


def test_32_bits_are_the_definitions():
    found, (dh, gate_up, low, _) = gradients(door, 7, 63, torch.float32, "silu", (80, 4, 3))
    truth = gradient(gate_up.double(), dh.double(), "silu")
    assert relative_error(found.b_gate, truth[:, :63].t() @ low[:, :80].double()) < 1e-6


def test_offsets_beyond_two_to_the_31(op):
    stride, f = 1 << 30, 64
    buffer = torch.empty(2 * stride + 2 * f, dtype=torch.bfloat16, device=DEVICE)
    gate_up = buffer.as_strided((3, 2 * f), (stride, 1)).copy_(normal(3, 2 * f))
    low, dh = (normal(3, f, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    near = gate_up.contiguous()
    expected = op.glu_gradients(dh, near, "silu", low=low, ranks=(16, 16), d_low=low, rank_down=16)
    found = op.glu_gradients(
        dh, gate_up, "silu", low=low, ranks=(16, 16), d_low=low, rank_down=16, out=gate_up
    )
    assert all(map(torch.equal, found, expected))


def test_a_chunk_is_whole_tiles_and_no_longer_than_the_rows_need():
    from core.kernels.glu import fused_thin

    rows = (0, 1, 33, 300, 2048, 4096, 16384, 1 << 20)
    chunks = {n: fused_thin._chunk(n, 112, fused_thin.BACKWARD) for n in rows}
    assert chunks == {0: 32, 1: 32, 33: 64, 300: 256, 2048: 320, 4096: 608, 16384: 2368, 1 << 20: 8192}
    for n in rows[-4:-1]:
        # Three rounds of the 264 programs that run at once, the last one nearly full.
        assert 750 <= 112 * math.ceil(n / chunks[n]) <= 792


def test_what_fits(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert door.fits_thin([0, 16, 64], torch.bfloat16, gpu) and door.fits_thin([], torch.float16, gpu)
    assert not door.fits_thin([16, 65], torch.bfloat16, gpu)
    assert not door.fits_thin([16], torch.float32, gpu) and not door.fits_thin([16], torch.float64, gpu)
    assert door.fits_thin([1000], torch.float64, cpu)


def test_an_unknown_activation_is_refused():
    gate_up = normal(3, 8)
    with pytest.raises(ValueError, match="no such activation: relu"):
        door.glu_gradients(
            gate_up[:, :4], gate_up, "relu", low=gate_up, ranks=(1, 1), d_low=gate_up, rank_down=1
        )
