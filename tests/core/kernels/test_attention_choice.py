"""The fastest kernel for attention is found by timing the candidates, once for every shape."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from core.kernels.attention import Attended, Chooser, Documents, Kernel
from core.kernels.attention.fused import KERNELS, PLAIN


class Candidate:
    """A kernel for the chooser to choose; it computes nothing."""

    def __init__(self, name: str, takes: float, *, fits: bool = True, raises: Exception | None = None):
        self.name, self.takes, self.is_fit, self.error = name, takes, fits, raises
        self.runs = 0

    def fits(self, *_: Any) -> bool:
        return self.is_fit

    def forward(self, q: torch.Tensor, *_: Any) -> Attended:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return Attended(q, (self,))

    def backward(self, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
        self.runs += 100
        return grad, grad, grad


class Clock:
    """Runs the work once and looks the time up."""

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates, self.asked = candidates, 0

    def __call__(self, work: Callable[[], object]) -> float:
        self.asked += 1
        before = [each.runs for each in self.candidates]
        work()
        return next(
            each.takes for each, runs in zip(self.candidates, before, strict=True) if each.runs != runs
        )


@pytest.fixture
def on_a_gpu() -> Iterator[None]:
    """Tensors that say they lie on a GPU and hold nothing."""
    with FakeTensorMode():
        yield


def offered(*candidates: Candidate) -> tuple[Chooser, Clock]:
    clock = Clock(*candidates)
    return Chooser(clock, candidates), clock


def asked(
    chooser: Chooser,
    b: int = 2,
    s: int = 64,
    *,
    g: int = 2,
    d: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    window: int | None = None,
    held: Documents | None = None,
) -> Kernel:
    q, k = (torch.empty(b, heads, s, d, device="cuda", dtype=dtype) for heads in (4, g))
    return chooser.choose(q, k, k, 0.125, window, held)


@pytest.mark.usefixtures("on_a_gpu")
def test_the_fastest_candidate_is_chosen_with_its_backward_pass_timed():
    slow, quick = Candidate("slow", 2.0), Candidate("quick", 1.0)
    chooser, _ = offered(slow, quick)
    assert asked(chooser) is quick
    assert slow.runs == quick.runs == 101
    assert asked(offered(Candidate("one", 1.0), Candidate("other", 1.0))[0]).name == "one"


@pytest.mark.usefixtures("on_a_gpu")
def test_a_shape_is_measured_once_and_every_other_shape_anew():
    chooser, clock = offered(Candidate("one", 1.0), Candidate("other", 2.0))
    for _ in range(3):
        asked(chooser)
    assert clock.asked == 2
    held = Documents(torch.zeros(3, device="cuda", dtype=torch.int32), 9)
    others: list[dict[str, Any]] = [
        {"b": 3}, {"s": 300}, {"g": 1}, {"d": 128}, {"dtype": torch.float16}, {"window": 7}, {"held": held}
    ]  # fmt: skip
    for count, other in enumerate(others, start=2):
        asked(chooser, **other)
        assert clock.asked == 2 * count, other
    asked(chooser, s=65)  # nearly as long as what was timed
    asked(chooser, held=held._replace(starts=held.starts + 1))
    assert clock.asked == 2 * (len(others) + 1)


@pytest.mark.usefixtures("on_a_gpu")
def test_what_does_not_fit_is_never_tried_and_what_is_alone_is_not_timed():
    unfit, fit = Candidate("unfit", 0.1, fits=False), Candidate("fit", 5.0)
    chooser, clock = offered(unfit, fit)
    assert asked(chooser) is fit and clock.asked == unfit.runs == 0
    assert asked(offered(unfit)[0]) is PLAIN


@pytest.mark.usefixtures("on_a_gpu")
def test_a_kernel_that_fails_is_passed_over():
    broken, works = Candidate("broken", 0.1, raises=RuntimeError("no plan")), Candidate("works", 9.0)
    assert asked(offered(broken, works)[0]) is works
    also = Candidate("also", 0.1, raises=RuntimeError("no plan either"))
    assert asked(offered(broken, also)[0]) is PLAIN


@pytest.mark.usefixtures("on_a_gpu")
def test_a_lack_of_memory_is_nobodys_verdict_on_a_kernel():
    full = Candidate("full", 0.1, raises=torch.OutOfMemoryError("no room"))
    chooser, _ = offered(full, Candidate("works", 9.0))
    with pytest.raises(torch.OutOfMemoryError):
        asked(chooser)
    assert not chooser.known
    full.error = None
    assert asked(chooser) is full


@pytest.mark.usefixtures("on_a_gpu")
def test_numbers_of_32_bits_take_the_definition():
    chooser, clock = offered(Candidate("one", 1.0), Candidate("other", 2.0))
    assert asked(chooser, dtype=torch.float32) is PLAIN and clock.asked == 0


def test_without_a_gpu_the_definition_is_taken():
    q = torch.empty(1, 4, 8, 64, dtype=torch.bfloat16)
    assert Chooser().choose(q, q, q, 0.125, None, None) is PLAIN
    assert [each.name for each in KERNELS] == ["cudnn", "flash"]
