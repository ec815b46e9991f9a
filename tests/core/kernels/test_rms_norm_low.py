"""The norm's gradient with the adapters' share added on the way, against autograd through norm and layer in float64."""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.kernels import rms_norm as door
from core.kernels.rms_norm import reference
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)

EPS = 1e-5
SIZES = [(7, 63), (5, 127), (2, 1000), (130, 64), (66, 129)]
RANKS = [8, 16, 32, 48, 64]
NAN = float("nan")


class Case(NamedTuple):
    """A norm and a frozen layer with adapters after it: z = y [W ; B sA]', and what the backward pass has at hand."""

    x: Tensor
    norm: Tensor
    offset: float
    weight: Tensor
    a: Tensor
    b: Tensor
    dz: Tensor
    rstd: Tensor
    dot: Tensor
    product: Tensor
    narrow: Tensor
    add: Tensor

    @property
    def dy(self) -> Tensor:
        return self.product[:, : self.x.shape[1]]

    @property
    def low(self) -> Tensor:
        return self.product[:, self.x.shape[1] :]

    def run(self, op: ModuleType, **given: object) -> Tensor:
        given = {"rank": self.a.shape[0], "offset": self.offset, "add": self.add, **given}
        return op.rms_norm_backward_low(
            self.dy, inside(self.x), self.norm, self.rstd, self.dot, self.low, self.narrow, **given
        )


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.rms_norm import fused

    return {"fused": fused, "door": door}[request.param]


def made(
    n: int, e: int, rank: int, dtype: torch.dtype, *, offset: float = 1.0, spare: int = 64, outputs: int = 96
) -> Case:
    """Compute what the passes before would hand over, each tensor rounded once; whatever does not count is NaN."""
    x, norm = normal(n, e, dtype=dtype, scale=2.0), normal(e, dtype=dtype, seed=1)
    weight = normal(outputs, e, dtype=dtype, seed=2, scale=e**-0.5)
    a = normal(rank, e, dtype=dtype, seed=3, scale=e**-0.5)
    b = normal(outputs, rank, dtype=dtype, seed=4, scale=rank**-0.5)
    dz = normal(n, outputs, dtype=dtype, seed=5)
    wide, exact_rstd = reference.rms_norm(x.double(), norm.double(), EPS, offset=offset)
    z = wide @ weight.double().t() + wide @ a.double().t() @ b.double().t()
    product = poisoned((n, e + spare), dtype)
    product[:, :e] = (dz.double() @ weight.double()).to(dtype)
    product[:, e : e + rank] = (dz.double() @ b.double()).to(dtype)
    narrow = poisoned((spare, e), dtype)
    narrow[:rank] = a
    dot = (dz.double() * z.to(dtype).double()).sum(1).float()
    rest = normal(n, e, dtype=dtype, seed=6)
    return Case(x, norm, offset, weight, a, b, dz, exact_rstd.float(), dot, product, narrow, rest)


def through(case: Case, dtype: torch.dtype) -> Tensor:
    """Return the gradient by autograd, through the norm as Hugging Face writes it, the layer, and its adapters."""
    x, norm, weight, a, b, dz, add = (
        each.to(dtype) for each in (case.x, case.norm, case.weight, case.a, case.b, case.dz, case.add)
    )
    x = x.detach().requires_grad_()
    wide = x.to(torch.promote_types(dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    y = (norm + case.offset) * normalised.to(dtype)
    z = functional.linear(y, weight) + functional.linear(functional.linear(y, a), b)
    return torch.autograd.grad(z, x, dz)[0] + add


def formula(case: Case) -> Tensor:
    """Return what the operator should make of exactly what it is given, in float64."""
    rank, rstd = case.a.shape[0], case.rstd.double().unsqueeze(1)
    full = case.dy.double() + case.low[:, :rank].double() @ case.narrow[:rank].double()
    mean = case.dot.double().unsqueeze(1) / case.x.shape[1]
    inner = full * (case.norm.double() + case.offset) - case.x.double() * rstd * mean
    return rstd * inner + case.add.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "e"), SIZES)
def test_gradient_equals_autograd_through_norm_layer_and_adapters(op, n, e, dtype):
    case = made(n, e, 16, dtype)
    assert_no_worse(case.run(op), through(case, dtype), through(case, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_every_rank_and_what_lies_beyond_it_is_not_read(op, rank, dtype, offset):
    case = made(33, 200, rank, dtype, offset=offset)
    assert_no_worse(case.run(op), through(case, dtype), through(case, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "e", "rank"), [(1, 3, 16), (33, 200, 8), (65, 129, 48), (2, 63, 112)])
def test_nothing_is_rounded_but_the_result(op, n, e, rank, dtype):
    case = made(n, e, rank, dtype, spare=128)
    truth = formula(case)
    assert_no_worse(case.run(op), truth.to(dtype), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_nearly_cancels_is_not_rounded_before_it_is_added(op, dtype):
    case = made(33, 200, 16, dtype)
    opposite = (case.add.double() - formula(case)).to(dtype) * 0.9
    case = case._replace(add=opposite)
    assert_no_worse(case.run(op), formula(case).to(dtype), formula(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "e"), [(1, 1), (5, 127), (130, 64)])
@pytest.mark.parametrize("into", ["out", "dy", "add"])
def test_the_result_may_lie_where_an_operand_lay(op, n, e, dtype, into):
    case = made(n, e, 32, dtype)
    expected, before = case.run(op), case.product[:, e:].clone()
    add = inside(case.add, e + 8)
    out = {"out": poisoned((n, e), dtype), "dy": case.dy, "add": add}[into]
    found = case.run(op, add=add, out=out)
    assert found is out and torch.equal(found, expected)
    assert margin_untouched(case.product if into == "dy" else out)
    assert torch.equal(case.product[:, e:].nan_to_num(-1.0), before.nan_to_num(-1.0))


def test_the_result_is_new_without_a_place_for_it(op):
    case = made(7, 63, 16, torch.bfloat16)
    product, add = case.product.clone(), case.add.clone()
    found = case.run(op)
    assert found.is_contiguous() and found.shape == (7, 63) and found.dtype == torch.bfloat16
    assert torch.equal(case.product.nan_to_num(), product.nan_to_num()) and torch.equal(case.add, add)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_of_the_extra_columns_count_unless_a_rank_is_given(op, dtype):
    case = made(33, 200, 64, dtype)
    assert torch.equal(case.run(op, rank=None), case.run(op, rank=64))


def test_gradient_without_an_added_one(op):
    case = made(5, 63, 16, torch.float32)
    assert relative_error(case.run(op, add=None), formula(case) - case.add.double()) < 1e-6


def test_without_adapters_it_is_the_norms_own_gradient(op):
    case = made(33, 200, 16, torch.float32)
    dot = (
        (case.dy.double() * reference.rms_norm(case.x.double(), case.norm, EPS, offset=1.0)[0]).sum(1).float()
    )
    expected = op.rms_norm_backward(case.dy, case.x, case.norm, case.rstd, offset=1.0, add=case.add)
    assert relative_error(case._replace(dot=dot).run(op, rank=0), expected) < 1e-6


def test_the_sum_over_a_row_is_the_products_with_what_the_layer_gave():
    case = made(33, 200, 16, torch.float32)
    y = reference.rms_norm(case.x, case.norm, EPS, offset=1.0)[0]
    full = case.dy + case.low[:, :16] @ case.narrow[:16]
    assert relative_error((full * y).sum(1), case.dot) < 1e-6


def test_definition_is_exact_in_float64():
    case = made(33, 200, 16, torch.float64)
    wide, rstd = reference.rms_norm(case.x, case.norm, EPS, offset=1.0)
    z = wide @ (case.weight + case.b @ case.a).t()
    exact = case._replace(rstd=rstd, dot=(case.dz * z).sum(1))
    found = exact.run(door)
    assert found.dtype == torch.float64
    assert relative_error(found, through(case, torch.float64)) < 1e-14


def test_weight_may_be_more_precise_than_the_rows(op):
    case = made(33, 127, 16, torch.bfloat16)._replace(norm=normal(127, seed=1))
    found = case.run(op)
    assert_no_worse(found, formula(case).bfloat16(), formula(case))


def test_the_same_input_gives_the_same_bits(op):
    case = made(130, 129, 48, torch.bfloat16)
    first = case.run(op)
    assert all(torch.equal(case.run(op), first) for _ in range(2))


def test_rows_do_not_see_each_other(op):
    case = made(66, 63, 16, torch.bfloat16)
    before = case.run(op)
    case.product[4] = NAN
    after, kept = case.run(op), torch.arange(66, device=DEVICE) != 4
    assert torch.equal(after[kept], before[kept]) and bool(after[4].isnan().all())


def test_no_rows_at_all(op):
    assert made(0, 63, 16, torch.bfloat16).run(op).shape == (0, 63)


def test_offsets_beyond_two_to_the_31(op):
    stride, e = 1 << 30, 64
    case = made(3, e, 16, torch.bfloat16)
    buffer = torch.empty(2 * stride + e + 64, dtype=torch.bfloat16, device=DEVICE)
    far = buffer.as_strided((3, e + 64), (stride, 1)).copy_(case.product)
    assert torch.equal(case._replace(product=far).run(op), case.run(op))
