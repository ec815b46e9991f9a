"""The adapters' small products in Triton, against float64."""

import pytest
import torch

from core.kernels.lora_linear import fused
from tests.core.kernels.conftest import assert_no_worse, inside, margin_untouched, normal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "n", "rank"),
    [
        (63, 127, 64),
        (1, 1, 16),
        (130, 1000, 64),
        (64, 512, 128),
        (131, 600, 192),
        (65, 33, 48),
        # Many tiles; in the interpreter a few have to do.
        (200, 2048 if torch.cuda.is_available() else 256, 64),
    ],
)
def test_a_residual_and_its_low_rank_share_are_added_in_one_rounding(tokens, n, rank, dtype):
    other, low = normal(tokens, n, dtype=dtype), normal(tokens, rank, dtype=dtype, seed=1)
    up = normal(n, rank, dtype=dtype, seed=2, scale=rank**-0.5)
    before = inside(other)
    found = fused.plus_low_rank(before, inside(low), inside(up))
    assert found.is_contiguous() and torch.equal(before, other) and margin_untouched(before)
    exact = other.double() + low.double() @ up.double().t()
    assert_no_worse(found, torch.addmm(other, low, up.t()), exact)
