"""The gradient of A without the normalised input, also where 16 bits have no room for a factor."""

import pytest
import torch

from core.kernels.rms_norm import rms_norm
from core.models.fused.sites import Norm
from core.models.fused.sublayers import of_narrow
from tests.core.kernels.conftest import relative_error


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e3, 1.0, 1e-6], ids=["large", "one", "small"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_as_exact_as_the_product_with_the_normalised_input(
    dtype: torch.dtype, size: float, offset: float
):
    draw = torch.Generator().manual_seed(0)
    d_low = (torch.randn(64, 8, generator=draw) * size).to(dtype)
    x = (torch.randn(64, 32, generator=draw) * 0.01).to(dtype)
    norm = Norm((torch.randn(32, generator=draw) * 0.2 + 1).to(dtype), 1e-6, offset)
    y, rstd = rms_norm(x, norm.weight, norm.eps, offset=offset)
    wide = Norm(norm.weight.double(), norm.eps, offset)
    exact = d_low.double().t() @ rms_norm(x.double(), wide.weight, wide.eps, offset=offset)[0]
    plain = d_low.float().t() @ y.float() if dtype.itemsize == 2 else d_low.t() @ y
    found = of_narrow(d_low, norm, x, rstd)
    # On the processor the product itself is rounded to 16 bits, which the GPU's is not.
    floor = torch.finfo(dtype).eps * (2 if dtype is torch.float64 else 1)
    assert relative_error(found, exact) <= 1.5 * relative_error(plain, exact) + floor
