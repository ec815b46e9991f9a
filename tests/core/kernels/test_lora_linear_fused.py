"""The adapters' small products in Triton, with every candidate of tiles, against float64."""

import pytest
import torch

from core.kernels.lora_linear import fused
from tests.core.kernels.conftest import (
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "n", "rank"),
    [(63, 127, 64), (1, 1, 16), (130, 1000, 64), (64, 512, 128), (65, 33, 48), (200, 2048, 64)],
)
def test_a_residual_and_its_low_rank_share_are_added_in_one_rounding(tokens, n, rank, dtype):
    other, low = normal(tokens, n, dtype=dtype), normal(tokens, rank, dtype=dtype, seed=1)
    up = normal(n, rank, dtype=dtype, seed=2, scale=rank**-0.5)
    before = inside(other)
    found = fused.plus_low_rank(before, inside(low), inside(up))
    assert found.is_contiguous() and torch.equal(before, other) and margin_untouched(before)
    exact = other.double() + low.double() @ up.double().t()
    assert_no_worse(found, torch.addmm(other, low, up.t()), exact)


@pytest.mark.parametrize("tiles", fused.PLUS_CANDIDATES, ids=str)
@pytest.mark.parametrize("rank", [64, 128, 192])
def test_tiles_of_any_shape_give_the_same_sum(tiles, rank):
    kind = torch.bfloat16
    other, low = normal(131, 600, dtype=kind), normal(131, rank, dtype=kind, seed=1)
    up = normal(600, rank, dtype=kind, seed=2, scale=0.1)
    found = fused.plus_low_rank(other, low, up, tiles)
    exact = other.double() + low.double() @ up.double().t()
    assert_no_worse(found, torch.addmm(other, low, up.t()), exact)


BOTH = [(63, 127, 4), (1, 1, 1), (130, 1000, 32), (300, 33, 48), (64, 512, 16), (257, 600, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "n", "rank"), BOTH)
def test_a_gradient_read_once_gives_both_of_an_adapter(tokens, n, rank, dtype):
    dy, low = normal(tokens, n, dtype=dtype), normal(tokens, rank, dtype=dtype, seed=1)
    up, out = normal(n, rank, dtype=dtype, seed=2), poisoned((tokens, 64), dtype)
    source = inside(dy)
    of_up = fused.both_gradients(source, inside(up), inside(low), out)
    assert of_up.dtype == torch.float32 and torch.equal(source, dy)
    assert margin_untouched(out) and margin_untouched(source)
    assert not out[:, rank:].any()
    exact = dy.double() @ up.double()
    assert_no_worse(out[:, :rank], dy @ up, exact)
    # Neither sums nor their total are rounded to 16 bits on the way.
    assert relative_error(of_up, dy.double().t() @ low.double()) < 1e-6


@pytest.mark.parametrize("programs", [1, 7, 1000])
def test_the_number_of_programs_changes_neither_gradient_by_more_than_the_order_of_sums(
    programs, monkeypatch
):
    dy, low, up = normal(333, 127), normal(333, 16, seed=1), normal(127, 16, seed=2)
    out = poisoned((333, 64), torch.float32)
    monkeypatch.setattr(fused, "processors", lambda _: programs)
    of_up = fused.both_gradients(dy, up, low, out)
    assert relative_error(of_up, dy.double().t() @ low.double()) < 1e-6
    assert relative_error(out[:, :16], dy.double() @ up.double()) < 1e-6


@pytest.mark.parametrize("tiles", fused.BOTH_CANDIDATES, ids=str)
def test_every_candidate_of_tiles_gives_both_gradients(tiles):
    kind = torch.bfloat16
    dy, low = normal(150, 700, dtype=kind), normal(150, 32, dtype=kind, seed=1)
    up, out = normal(700, 32, dtype=kind, seed=2), poisoned((150, 64), kind)
    of_up = fused.both_gradients(dy, up, low, out, tiles)
    assert relative_error(of_up, dy.double().t() @ low.double()) < 1e-6
    assert_no_worse(out[:, :32], dy @ up, dy.double() @ up.double())


def test_rounds_of_programs_are_full():
    assert fused.chunks_of(blocks=56, steps=256, programs=132) == 7  # 392 programs in three rounds of 132
    assert fused.chunks_of(blocks=132, steps=256, programs=132) == 1
    assert fused.chunks_of(blocks=1, steps=3, programs=132) == 3
