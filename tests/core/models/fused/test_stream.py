"""The residual stream: what rounding took off is not forgotten, and belongs to its own sum."""

import torch
from torch import Tensor

from core.models.fused.sites import Norm
from core.models.fused.stream import Stream
from tests.core.kernels.conftest import relative_error

NORM = Norm(torch.ones(24), 1e-6, 0.0)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def test_a_hundred_additions_are_rounded_once():
    stream, exact, rounded = Stream(), drawn(7, 24, seed=0).double(), drawn(7, 24, seed=0)
    stream.enter(rounded)
    for seed in range(1, 100):
        added = drawn(7, 24, seed=seed)
        exact, rounded = exact + added.double(), rounded + added
        stream.add(added, NORM, None)
    last = drawn(7, 24, seed=100)
    exact, rounded = exact + last.double(), rounded + last
    found = stream.add_last(last)
    assert relative_error(found, exact) <= 1.01 * relative_error(exact.to(torch.bfloat16), exact)
    assert relative_error(rounded, exact) > 5 * relative_error(found, exact)


def test_what_comes_next_is_normalised_before_it_is_rounded():
    stream, start, added = Stream(), drawn(7, 24, seed=0), drawn(7, 24, seed=1)
    stream.enter(start)
    stream.add(added, NORM, None)
    _, wide, rstd = stream.add(-added, NORM, None)
    exact = start.double() * torch.rsqrt(start.double().square().mean(-1, keepdim=True) + 1e-6)
    assert relative_error(wide, exact) < 2**-8
    assert rstd.shape == (7,)


def test_another_beginning_has_no_rest():
    stream, start, other = Stream(), drawn(7, 24, seed=0), drawn(7, 24, seed=2)
    stream.enter(start)
    stream.add(drawn(7, 24, seed=1), NORM, None)
    stream.enter(other)
    assert torch.equal(stream.add_last(torch.zeros_like(other)), other)
    assert stream.rest is not None and not stream.rest.any()


def test_its_own_sum_goes_on_with_the_rest():
    stream, start, added = Stream(), drawn(7, 24, seed=0), drawn(7, 24, seed=1)
    stream.enter(start)
    y, _, _ = stream.add(added, NORM, None)
    stream.hand_over(y)
    stream.enter(y)
    found = stream.add_last(torch.zeros_like(added))
    assert torch.equal(found, (start.float() + added.float()).to(torch.bfloat16))
    assert stream.rest is not None and stream.rest.any()
