"""The RMS norm against torch.nn.functional.rms_norm and autograd in float64, and against Hugging Face's modules."""

from types import ModuleType

import pytest
import torch
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

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
SIZES = [(7, 63), (5, 127), (3, 1000), (1, 1), (130, 64), (2, 4096)]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.rms_norm import fused

    return {"fused": fused, "door": door}[request.param]


def plain(x: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    """As Hugging Face's modules do: statistics in float32, one rounding before the weight and one after."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (weight + offset) * normalised.to(x.dtype)


def exact(x: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    return functional.rms_norm(x.double(), (x.shape[1],), weight.double() + offset, EPS)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "e"), SIZES)
def test_norm_is_as_exact_as_plain_pytorch(op, n, e, dtype, offset):
    x, weight = normal(n, e, dtype=dtype, scale=3.0), normal(e, dtype=dtype, seed=1)
    out = poisoned((n, e), dtype)
    y, rstd = op.rms_norm(inside(x), weight, EPS, offset=offset, out=out)
    assert y is out and margin_untouched(out)
    assert_no_worse(y, plain(x, weight, offset), exact(x, weight, offset))
    assert rstd.dtype == torch.float32
    assert relative_error(rstd, (x.double().pow(2).mean(-1) + EPS).rsqrt()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "e"), SIZES)
def test_residual_is_added_after_the_norm(op, n, e, dtype):
    x, residual, weight = (
        normal(n, e, dtype=dtype),
        normal(n, e, dtype=dtype, seed=2),
        normal(e, dtype=dtype, seed=1),
    )
    y, _ = op.rms_norm(x, weight, EPS, offset=1.0, residual=inside(residual))
    truth = exact(x, weight, 1.0) + residual.double()
    assert_no_worse(y, plain(x, weight, 1.0) + residual, truth)


@pytest.mark.parametrize("into", ["new", "out", "dy", "add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "e"), SIZES)
def test_gradient_equals_autograd_also_in_place(op, n, e, dtype, into):
    x, weight = normal(n, e, dtype=dtype, scale=2.0), normal(e, dtype=dtype, seed=1)
    dy, add = inside(normal(n, e, dtype=dtype, seed=2)), inside(normal(n, e, dtype=dtype, seed=3), e + 8)
    truth = gradient(exact, x.double(), weight, dy) + add.double()
    rough = gradient(plain, x.clone(), weight, dy) + add
    rstd = reference.rms_norm(x, weight, EPS)[1]
    out = {"new": None, "out": poisoned((n, e), dtype), "dy": dy, "add": add}[into]
    dx = op.rms_norm_backward(dy, inside(x), weight, rstd, offset=1.0, add=add, out=out)
    assert out is None or (dx is out and margin_untouched(out))
    assert_no_worse(dx, rough, truth)


def gradient(function, x, weight, dy) -> torch.Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(function(x, weight.to(x.dtype), 1.0), x, dy.to(x.dtype))[0]


def test_gradient_without_an_added_one(op):
    x, weight, dy = normal(5, 63), normal(63, seed=1), normal(5, 63, seed=2)
    dx = op.rms_norm_backward(dy, x, weight, reference.rms_norm(x, weight, EPS)[1], offset=1.0)
    assert relative_error(dx, gradient(exact, x.double(), weight, dy)) < 1e-6


def test_definition_is_exact_in_float64(op):
    if op.__name__.endswith("fused"):
        pytest.skip("the kernels compute in float32")
    x, weight, dy = (normal(*shape).double() for shape in ((5, 63), (63,), (5, 63)))
    y, rstd = op.rms_norm(x, weight, EPS, offset=1.0)
    assert y.dtype == rstd.dtype == torch.float64
    assert relative_error(y, exact(x, weight, 1.0)) < 1e-14
    assert (
        relative_error(op.rms_norm_backward(dy, x, weight, rstd, offset=1.0), gradient(exact, x, weight, dy))
        < 1e-14
    )


@pytest.mark.parametrize(("module", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_norm_equals_hugging_face(op, module, offset):
    norm = module(96, eps=EPS).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    x = normal(9, 96, scale=4.0)
    y, _ = op.rms_norm(x, norm.weight.detach(), EPS, offset=offset)
    torch.testing.assert_close(y, norm(x), rtol=2e-6, atol=2e-6)


def test_weight_may_be_more_precise_than_the_rows(op):
    x, weight = normal(5, 127, dtype=torch.bfloat16), normal(127, seed=1)
    y, rstd = op.rms_norm(x, weight, EPS)
    assert y.dtype == torch.bfloat16
    assert_no_worse(y, plain(x, weight, 0.0).bfloat16(), exact(x, weight, 0.0))
    dx = op.rms_norm_backward(x, x, weight, rstd)
    assert dx.dtype == torch.bfloat16 and bool(dx.isfinite().all())


def test_rows_of_zeros_are_finite(op):
    x, weight = torch.zeros(3, 64, device=DEVICE), normal(64)
    y, rstd = op.rms_norm(x, weight, EPS)
    assert torch.equal(y, x)
    assert torch.equal(op.rms_norm_backward(x, x, weight, rstd), x)


def test_rows_do_not_see_each_other(op):
    x, weight = normal(9, 63), normal(63, seed=1)
    y, _ = op.rms_norm(x, weight, EPS)
    x[4] = float("nan")
    again, _ = op.rms_norm(x, weight, EPS)
    kept = torch.arange(9, device=DEVICE) != 4
    assert torch.equal(again[kept], y[kept]) and bool(again[4].isnan().all())


def test_no_rows_at_all(op):
    x, weight = normal(0, 63), normal(63, seed=1)
    y, rstd = op.rms_norm(x, weight, EPS)
    assert y.shape == (0, 63) and rstd.shape == (0,)


def test_offsets_beyond_two_to_the_31(op):
    stride, e = 1 << 30, 64
    buffer = torch.empty(2 * stride + e, dtype=torch.bfloat16, device=DEVICE)
    x = buffer.as_strided((3, e), (stride, 1)).copy_(normal(3, e))
    y, rstd = op.rms_norm(x, normal(e, seed=1), EPS)
    dx = op.rms_norm_backward(x, x, normal(e, seed=1), rstd)
    near = x.contiguous()
    assert torch.equal(y, op.rms_norm(near, normal(e, seed=1), EPS)[0])
    assert torch.equal(dx, op.rms_norm_backward(near, near, normal(e, seed=1), rstd))
