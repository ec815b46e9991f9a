"""Groups of frozen layers with adapters against their definition and autograd in float64."""

import weakref
from typing import NamedTuple

import pytest
import torch
from bitsandbytes import functional

from core.kernels import nf4
from core.kernels.lora_linear import Adapter, Group, Projection, Scratch, filling, fused, lora_linear
from core.kernels.lora_linear import group as plain
from core.kernels.nf4 import Packed, dequantize
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)

TOKENS = 37
Layer = tuple[int, tuple[int, ...], bool]
"""Outputs, ranks of the adapters, whether there is a bias."""
LAYOUTS: dict[str, tuple[int, tuple[Layer, ...]]] = {
    "one": (63, ((127, (16,), False),)),
    "nothing": (24, ((33, (), False), (17, (), False))),
    "bias alone": (24, ((33, (), True),)),
    "three": (40, ((64, (16,), False), (24, (1,), False), (25, (48,), False))),
    "one of three, a bias on another": (40, ((64, (), False), (24, (4,), False), (25, (), True))),
    "two on one": (33, ((50, (4, 16), True), (20, (16,), True))),
    "six": (127, ((40, (1, 4, 16), True), (63, (48, 128, 4), False))),
    "full to the brim": (32, ((40, (48,), False), (31, (16,), False))),
    "one more for the bias": (32, ((40, (48,), True), (31, (16,), False))),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(params=["plain", "triton"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without a GPU the kernels are chosen by hand."""
    for module in (plain, filling, nf4):
        monkeypatch.setattr(module, "runs_fused", lambda _: request.param == "triton")
    return request.param


def projections(
    name: str, dtype: torch.dtype = torch.float64, seed: int = 0, kind: torch.dtype | None = None
) -> tuple[Projection, ...]:
    """Draw the layers of a layout; adapters are of another dtype if ``kind`` says so."""
    k, layers = LAYOUTS[name]
    seeds = iter(range(100 * seed, 100 * seed + 100))
    kind = kind or dtype
    return tuple(
        Projection(
            normal(rows, k, dtype=dtype, seed=next(seeds), scale=k**-0.5),
            normal(rows, dtype=dtype, seed=next(seeds)) if has_bias else None,
            tuple(
                Adapter(
                    normal(r, k, dtype=kind, seed=next(seeds), scale=k**-0.5),
                    normal(rows, r, dtype=kind, seed=next(seeds)),
                    0.37 if place else 1.0,
                )
                for place, r in enumerate(ranks)
            ),
        )
        for rows, ranks, has_bias in layers
    )


class Results(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor
    adapters: tuple[torch.Tensor, ...]


def by_definition(
    layers: tuple[Projection, ...], x: torch.Tensor, dy: torch.Tensor, dtype: torch.dtype
) -> Results:
    x = x.detach().to(dtype).requires_grad_()
    leaves = [
        Projection(
            (dequantize(each.weight) if isinstance(each.weight, Packed) else each.weight).to(dtype),
            None if each.bias is None else each.bias.to(dtype),
            tuple(
                Adapter(*(one.detach().to(dtype).requires_grad_() for one in (a, b)), scale)
                for a, b, scale in each.adapters
            ),
        )
        for each in layers
    ]
    y = torch.cat([lora_linear(x, each) for each in leaves], dim=1)
    flat = [tensor for each in leaves for one in each.adapters for tensor in (one.a, one.b)]
    dx, *rest = torch.autograd.grad(y, [x, *flat], dy.to(dtype))
    return Results(y.detach(), dx, tuple(rest))


def room(group: Group, kind: str, values: torch.Tensor) -> torch.Tensor:
    """Return an input or a gradient whose extra columns hold NaN until they are written."""
    wide = (group.inputs if kind == "input" else group.gradients)(len(values)).fill_(float("nan"))
    wide[:, : values.shape[1]] = values
    return wide


def computed(group: Group, matrix: torch.Tensor, x: torch.Tensor, dy: torch.Tensor) -> Results:
    wide, gradient = room(group, "input", x), room(group, "gradient", dy)
    y = group.forward(matrix, wide)
    group.widen_gradient(matrix, gradient)
    dx = group.input_gradient(matrix, gradient)
    return Results(y, dx, group.adapter_gradients(gradient, wide, wide[:, group.k :]))


def drawn(name: str, dtype: torch.dtype, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    k, layers = LAYOUTS[name]
    n = sum(rows for rows, _, _ in layers)
    return normal(TOKENS, k, dtype=dtype, seed=seed), normal(TOKENS, n, dtype=dtype, seed=seed + 1)


def assert_as_exact(found: Results, same: Results, exact: Results) -> None:
    """Held to the definition at the same precision; in float64 to the last bits."""
    assert len(found.adapters) == len(exact.adapters)
    for ours, theirs, truth in zip(
        (*found[:2], *found.adapters), (*same[:2], *same.adapters), (*exact[:2], *exact.adapters), strict=True
    ):
        if ours.dtype == torch.float64:
            assert relative_error(ours, truth) < 1e-14
        else:
            assert_no_worse(ours.to(theirs.dtype), theirs, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_group_computes_what_its_layers_define(name, dtype, path):
    if path == "triton" and dtype == torch.float64:
        pytest.skip("the kernels compute in float32")
    layers, (x, dy) = projections(name, dtype), drawn(name, dtype)
    group = Group(layers, dtype)
    found = computed(group, group.fill(Scratch()), x, dy)
    assert_as_exact(found, by_definition(layers, x, dy, dtype), by_definition(layers, x, dy, torch.float64))


@pytest.mark.parametrize("name", ["three", "six"])
def test_adapters_of_float32_over_16_bits_get_gradients_of_float32(name, path):
    layers = projections(name, torch.bfloat16, kind=torch.float32)
    x, dy = drawn(name, torch.bfloat16)
    group = Group(layers, torch.bfloat16)
    found = computed(group, group.fill(Scratch()), x, dy)
    assert {each.dtype for each in found.adapters} == {torch.float32}
    rough = by_definition(layers, x, dy, torch.bfloat16)
    assert_as_exact(found, rough, by_definition(layers, x, dy, torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_other", [True, False], ids=["added", "alone"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_added_to_a_residual_and_the_inner_values(name, with_other, dtype, path):
    if path == "triton" and dtype == torch.float64:
        pytest.skip("the kernels compute in float32")
    layers, (x, dy) = projections(name, dtype), drawn(name, dtype)
    group, other = Group(layers, dtype), normal(*dy.shape, dtype=dtype, seed=11)
    matrix = group.fill(Scratch())
    before = inside(other)
    y, low = group.added_to(matrix, inside(x), before if with_other else None)
    same, exact = (by_definition(layers, x, dy, kind).y for kind in (dtype, torch.float64))
    if with_other:
        same, exact = same + other, exact + other.double()
        assert torch.equal(before, other)
    if dtype == torch.float64:
        assert relative_error(y, exact) < 1e-14
    else:
        assert_no_worse(y, same, exact)
    assert (low is None) == (group.spare == 0)
    gradient = room(group, "gradient", dy)
    group.widen_gradient(matrix, gradient)
    if low is not None:
        assert low.shape == (TOKENS, group.spare) and low.isfinite().all()
        wide = room(group, "input", x)
        group.widen(matrix, wide)
        torch.testing.assert_close(low, wide[:, group.k :])
        kept = group.adapter_gradients(gradient, x, low)
        for ours, theirs in zip(kept, group.adapter_gradients(gradient, wide, low), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if "bias" not in name and name not in ("two on one", "six")]
)
def test_one_product_gives_the_share_of_the_gradient_apart(name, path):
    layers, (x, dy) = projections(name), drawn(name, torch.float64)
    group = Group(layers, torch.float64)
    matrix, k, rank = group.fill(Scratch()), group.k, group.shape.rank
    exact = by_definition(layers, x, dy, torch.float64)
    back = group.gradients_apart(matrix, inside(dy))
    assert relative_error(back[:, :k] + back[:, k : k + rank] @ group.narrow(matrix)[:rank], exact.dx) < 1e-14
    assert not back[:, k + rank :].any()


def test_outputs_and_gradients_go_where_they_are_told_and_no_further(path):
    layers, (x, dy) = projections("two on one", torch.float32), drawn("two on one", torch.float32)
    group = Group(layers, torch.float32)
    matrix = group.fill(Scratch())
    expected = computed(group, matrix, x, dy)
    out, again = poisoned(dy.shape, torch.float32), poisoned(dy.shape, torch.float32)
    wide, gradient = room(group, "input", x), room(group, "gradient", dy)
    assert group.forward_into(matrix, wide, out).data_ptr() == out.data_ptr()
    group.product(matrix, wide, again)
    torch.testing.assert_close(out, expected.y)
    torch.testing.assert_close(again, expected.y)
    group.widen_gradient(matrix, gradient)
    back = poisoned(x.shape, torch.float32)
    torch.testing.assert_close(group.input_gradient(matrix, gradient, back), expected.dx)
    assert margin_untouched(out) and margin_untouched(again) and margin_untouched(back)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
def test_packed_weights_compute_as_the_weights_they_hold(nested, path):
    held = projections("three", torch.bfloat16)
    packed = tuple(each._replace(weight=pack(each.weight, nested)) for each in held)
    opened = tuple(each._replace(weight=dequantize(each.weight)) for each in packed)
    x, dy = drawn("three", torch.bfloat16)
    ours, theirs = (Group(each, torch.bfloat16) for each in (packed, opened))
    assert ours.shape == theirs.shape
    matrix = ours.fill(Scratch())
    assert torch.equal(matrix, theirs.fill(Scratch()))
    exact, same = (by_definition(packed, x, dy, kind) for kind in (torch.float64, torch.bfloat16))
    assert_as_exact(computed(ours, matrix, x, dy), same, exact)


def pack(weight: torch.Tensor, nested: bool) -> Packed:
    data, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested, blocksize=64)
    inner = state.state2
    extra = (inner.absmax, inner.code, inner.blocksize, state.offset) if nested else ()
    code = functional.get_4bit_type("nf4", device=DEVICE)
    return Packed(data, state.absmax, code, state.blocksize, tuple(weight.shape), weight.dtype, *extra)


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_at_home_compute_as_weights_in_scratch_memory(name, path):
    layers, (x, dy) = projections(name, torch.float32), drawn(name, torch.float32)
    home = plain.at_home(layers, torch.float32)
    resident, guest = Group(layers, torch.float32, home=home), Group(layers, torch.float32)
    scratch = Scratch()
    matrix = resident.fill(scratch)
    assert matrix is home and not scratch.matrices
    assert torch.equal(matrix, guest.fill(scratch))
    assert scratch.nbytes == home.nbytes
    for ours, theirs in zip(
        flat(computed(resident, matrix, x, dy)), flat(computed(guest, home, x, dy)), strict=True
    ):
        assert torch.equal(ours, theirs)


def flat(results: Results) -> tuple[torch.Tensor, ...]:
    return (*results[:2], *results.adapters)


def test_adapters_that_changed_are_written_again_and_frozen_weights_stay(path):
    layers = projections("six", torch.float32)
    home = plain.at_home(layers, torch.float32)
    group = Group(layers, torch.float32, home=home)
    group.fill(Scratch())
    frozen = home[: group.n, : group.k].clone()
    for each in layers:
        for one in each.adapters:
            one.a.mul_(-2.0)
            one.b.add_(1.0)
    assert torch.equal(group.fill(Scratch()), Group(layers, torch.float32).fill(Scratch()))
    assert torch.equal(home[: group.n, : group.k], frozen)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_of_another_layer_is_left_in_the_scratch_memory(name, path):
    first, second = (projections(name, torch.float32, seed) for seed in (1, 2))
    scratch = Scratch()
    Group(first, torch.float32).fill(scratch)
    reused = Group(second, torch.float32).fill(scratch)
    assert len(scratch.matrices) == 1
    assert torch.equal(reused, Group(second, torch.float32).fill(Scratch()))


def test_a_bias_is_not_left_behind_for_a_layer_that_has_none(path):
    """Both groups have one bias, each on another projection."""
    with_first, with_second = (projections("three", torch.float32, seed) for seed in (1, 2))
    bias = normal(64, seed=3), normal(24, seed=4)
    first = (with_first[0]._replace(bias=bias[0]), *with_first[1:])
    second = (with_second[0], with_second[1]._replace(bias=bias[1]), with_second[2])
    scratch = Scratch()
    Group(first, torch.float32).fill(scratch)
    reused = Group(second, torch.float32).fill(scratch)
    assert torch.equal(reused, Group(second, torch.float32).fill(Scratch()))


@pytest.mark.parametrize("change", ["ranks", "order", "dtype"])
def test_groups_of_other_shapes_have_memory_of_their_own(change):
    scratch, layers = Scratch(), projections("three", torch.float32)
    Group(layers, torch.float32).fill(scratch)
    if change == "dtype":
        Group(layers, torch.bfloat16).fill(scratch)
    elif change == "order":
        Group(layers[::-1], torch.float32).fill(scratch)
    else:
        Group((layers[0]._replace(adapters=()), *layers[1:]), torch.float32).fill(scratch)
    assert len(scratch.matrices) == 2


def test_extra_rows_and_columns_come_in_multiples_of_64():
    spare = {name: Group(projections(name), torch.float64).spare for name in LAYOUTS}
    assert spare["nothing"] == 0 and spare["bias alone"] == 64 and spare["full to the brim"] == 64
    assert spare["one more for the bias"] == 128 and spare["six"] == 256


def test_adapters_that_start_at_zero_get_a_gradient_where_they_should():
    """B = 0: nothing is added, A gets nothing, B gets something."""
    layers = tuple(
        each._replace(adapters=tuple(one._replace(b=torch.zeros_like(one.b)) for one in each.adapters))
        for each in projections("three")
    )
    x, dy = drawn("three", torch.float64)
    group = Group(layers, torch.float64)
    found = computed(group, group.fill(Scratch()), x, dy)
    bare = tuple(each._replace(adapters=()) for each in layers)
    assert relative_error(found.y, by_definition(bare, x, dy, torch.float64).y) < 1e-14
    assert all(not each.any() for each in found.adapters[::2])
    assert all(each.any() for each in found.adapters[1::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("nothing", "bias alone")])
def test_one_launch_writes_the_bits_that_copies_write_and_nothing_else(name, dtype, monkeypatch):
    layers = projections(name, dtype, kind=torch.float32)
    group = Group(layers, dtype)
    size = group.n + group.spare, group.k + group.spare
    ours, theirs = (torch.full(size, float("nan"), dtype=dtype, device=DEVICE) for _ in range(2))
    for step in fused.spreading(ours, layers, group.n, group.k):
        step()
    monkeypatch.setattr(filling, "runs_fused", lambda _: False)
    with torch.no_grad():
        for step in filling.adapter_steps(layers, theirs, group.n, group.k):
            step()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    written = sum(one.a.numel() + one.b.numel() for each in layers for one in each.adapters)
    assert (~ours.isnan()).sum() == written


def test_adapters_that_lie_apart_in_memory_are_spread_alike():
    layers = projections("six", torch.float32)
    apart = tuple(
        each._replace(
            adapters=tuple(
                one._replace(a=one.a.t().contiguous().t(), b=inside(one.b)) for one in each.adapters
            )
        )
        for each in layers
    )
    group = Group(layers, torch.float32)
    size = group.n + group.spare, group.k + group.spare
    ours, theirs = (torch.zeros(size, device=DEVICE) for _ in range(2))
    for matrix, held in ((ours, layers), (theirs, apart)):
        for step in fused.spreading(matrix, held, group.n, group.k):
            step()
    assert torch.equal(ours, theirs)


def adapters_of(layers: tuple[Projection, ...]) -> list[torch.Tensor]:
    return [each for layer in layers for one in layer.adapters for each in (one.a, one.b)]


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
def test_a_matrix_is_written_anew_with_what_adapters_hold_by_then(at_home, packs, path):
    layers = projections("two on one", torch.bfloat16, kind=torch.float32)
    layers = tuple(each._replace(weight=pack(each.weight, True)) for each in layers) if packs else layers
    home = plain.at_home(layers, torch.bfloat16) if at_home else None
    group, scratch = Group(layers, torch.bfloat16, home=home), Scratch()
    with torch.inference_mode():
        group.fill(scratch)
    for each in adapters_of(layers):
        each.mul_(-3.0)
    # Somebody else has used the room in between.
    Group(layers[:1], torch.bfloat16).fill(scratch)
    found = group.fill(scratch)
    assert torch.equal(found, Group(layers, torch.bfloat16).fill(Scratch()))
    for each in adapters_of(layers):
        each.add_(1.0)
    assert torch.equal(group.fill(scratch), Group(layers, torch.bfloat16).fill(Scratch()))


def test_every_scratch_is_written():
    group = Group(projections("six", torch.float32), torch.float32)
    one, other = Scratch(), Scratch()
    assert torch.equal(group.fill(one), group.fill(other)) and group.fill(other).any()
    assert group.fill(one) is one.matrix(group.shape)


def test_a_matrix_that_is_let_go_of_is_free():
    layers = projections("six", torch.float32)
    group, scratch = Group(layers, torch.float32, home=plain.at_home(layers, torch.float32)), Scratch()
    group.fill(scratch)
    held = weakref.ref(group.home)
    group.home = None
    assert held() is None
    assert group.fill(scratch) is scratch.matrix(group.shape)


def test_without_a_residual_the_share_is_returned_alone():
    low, up = normal(63, 16), normal(127, 16, seed=1)
    torch.testing.assert_close(plain.plus_low_rank(None, low, up), low @ up.t())
