"""The fastest kernel for attention is found by timing the candidates, once for every shape."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from core.kernels.attention import Attended, Chooser, Documents, Kernel
from core.kernels.attention.agreement import ALLOWED, disagreement, drawn
from core.kernels.attention.fused import KERNELS, PLAIN, Plain, cost
from core.kernels.attention.kernel import KernelNotice
from tests.core.kernels.attention_inputs import STARTS, documents
from tests.core.kernels.conftest import DEVICE


class Candidate:
    """A kernel for the chooser to choose; it computes nothing."""

    is_trusted = True

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


class Computing(Candidate):
    """One that computes the definition, and then spoils a result."""

    def __init__(self, name: str, takes: float, *, is_trusted: bool = False, **more: Any):
        super().__init__(name, takes, **more)
        self.is_trusted = is_trusted
        self.spoils = {place: lambda right: right for place in ("out", "dq", "dk", "dv")}

    def spoiling(self, place: str, how: Callable[[torch.Tensor], torch.Tensor]) -> "Computing":
        self.spoils[place] = how
        return self

    def forward(self, q: torch.Tensor, *more: Any) -> Attended:
        super().forward(q)
        done = Plain().forward(q, *more)
        return Attended(self.spoils["out"](done.out), (done.out,))

    def backward(self, grad: torch.Tensor, *more: Any) -> tuple[torch.Tensor, ...]:
        super().backward(grad)
        found = Plain().backward(grad, *more)
        return tuple(self.spoils[place](each) for place, each in zip(("dq", "dk", "dv"), found, strict=True))


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
def test_short_documents_alone_are_another_choice_than_long_ones():
    chooser, clock = offered(Candidate("one", 1.0), Candidate("other", 2.0))
    starts = torch.zeros(3, device="cuda", dtype=torch.int32)
    for longest in (9, 256, 257, 2048, 300, 10):
        asked(chooser, held=Documents(starts, longest))
    assert clock.asked == 2 * 2


@pytest.mark.parametrize(("gpu", "host", "expected"), [(2.0, 0.5, 2.0), (0.3, 0.3, 0.45), (0.6, 0.4, 0.6)])
def test_a_kernel_counts_for_its_launching_where_that_weighs_more(gpu, host, expected):
    assert cost(gpu, host) == pytest.approx(expected)


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
    assert [each.name for each in KERNELS] == ["cudnn", "flash4", "flash"]


def measured(
    *candidates: Candidate,
    s: int = 63,
    window: int | None = None,
    held: Documents | None = None,
    dtype: torch.dtype = torch.float32,
    chooser: Chooser | None = None,
) -> Kernel:
    """Choose on this machine, whatever it has."""
    q, k = (torch.zeros(2, heads, s, 16, device=DEVICE, dtype=dtype) for heads in (4, 2))
    return (chooser or offered(*candidates)[0]).measure(q, k, k, 0.25, window, held)


def trusted(**more: Any) -> Computing:
    return Computing("own", 2.0, is_trusted=True, **more)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
def test_another_s_kernel_that_agrees_is_chosen_by_its_time(with_documents, window, dtype):
    held = documents(STARTS) if with_documents else None
    asked_for: dict[str, Any] = {"window": window, "held": held, "dtype": dtype}
    quick = Computing("quick", 1.0).spoiling("dk", lambda right: right * 1.01)
    assert measured(quick, trusted(), **asked_for) is quick
    slow = Computing("slow", 3.0)
    assert measured(slow, trusted(), **asked_for).name == "own"


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "half as much again": lambda right: right * 1.5,
    "a little too large": lambda right: right * 1.06,
    "heads in another order": lambda right: right.flip(1),
    "one number is none": lambda right: right.index_fill(2, torch.tensor([5], device=DEVICE), torch.nan),
    "infinite": lambda right: right / 0,
    "nothing": torch.zeros_like,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("place", ["out", "dq", "dk", "dv"])
def test_another_s_kernel_that_errs_is_passed_over_and_that_is_said_once(place, how):
    quick = Computing("quick", 1.0).spoiling(place, WRONG[how])
    own = trusted()
    chooser, clock = offered(quick, own)
    with pytest.warns(KernelNotice, match="attention by quick is not used: it errs by") as told:
        assert measured(chooser=chooser) is own
        assert measured(chooser=chooser, s=64) is own
    assert len(told) == 1 and clock.asked == 0
    assert quick.runs == 2 * 101, "judged at each shape"


def test_what_is_zero_is_compared_absolutely():
    """The gradient of a softmax over one token: right kernels leave noise of their own there."""
    quick = Computing("quick", 1.0).spoiling("dq", lambda right: right + 1e-5)
    assert measured(quick, trusted(), s=1) is quick
    with pytest.warns(KernelNotice):
        wrong = Computing("wrong", 1.0).spoiling("dq", lambda right: right + 1e-2)
        assert measured(wrong, trusted(), s=1).name == "own"


@pytest.mark.filterwarnings("ignore::core.kernels.attention.kernel.KernelNotice")
def test_without_one_that_is_trusted_another_s_is_not_chosen():
    quick, unfit = Computing("quick", 1.0), trusted(fits=False)
    assert measured(quick) is PLAIN and measured(quick, unfit) is PLAIN
    fails, also = (trusted(raises=RuntimeError("no plan")) for _ in range(2))
    assert measured(quick, fails, also) is PLAIN and quick.runs == 0
    works = Computing("works", 2.0, is_trusted=True)
    assert measured(quick, fails, works) is quick
    assert measured(Computing("other", 0.1), quick) is PLAIN, "two of them are no proof"


def test_another_s_kernel_that_fails_is_passed_over_also_for_want_of_memory():
    own = trusted()
    for error in (RuntimeError("flash-attn-4: no kernel"), torch.OutOfMemoryError("no room")):
        with pytest.warns(KernelNotice, match=f"quick is not used: it could not be compared: {error}"):
            assert measured(Computing("quick", 1.0, raises=error), own) is own
    assert own.runs == 202, "alone, it is not timed"
    full = trusted(raises=torch.OutOfMemoryError("no room"))
    chooser, clock = offered(Computing("quick", 1.0), full, own)
    with pytest.warns(KernelNotice), pytest.raises(torch.OutOfMemoryError):
        measured(chooser=chooser)
    assert clock.asked == 1, (
        "nothing was compared with another one instead, and what is trusted ran out by itself"
    )


def test_the_comparison_uses_up_nobodys_random_numbers_and_lies_as_a_layer_does():
    q, k = (torch.empty(2, heads, 63, 16, device=DEVICE) for heads in (4, 2))
    before = torch.random.get_rng_state()
    assert disagreement(Plain(), [Plain()], q, k, 0.25, None, None) == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    query, key, value, grad = drawn(q, k)
    assert query.shape == grad.shape == q.shape and key.shape == value.shape == k.shape
    assert {each.dtype for each in (query, key, value, grad)} == {q.dtype}
    assert query.stride() == (63 * 8 * 16, 16, 8 * 16, 1), "part of one wide matrix, as a layer has it"
    assert grad.transpose(1, 2).is_contiguous()
    assert all(abs(each.std().item() - 1) < 0.1 for each in (query, key, value, grad))


@pytest.mark.filterwarnings("error")
def test_what_a_compiler_says_at_the_first_use_is_not_passed_on():
    def loud(right: torch.Tensor) -> torch.Tensor:
        warnings.warn("argument 17 cannot be converted", stacklevel=1)
        return right

    q = torch.empty(1, 2, 9, 16, device=DEVICE)
    kernel = Computing("quick", 1.0).spoiling("out", loud).spoiling("dv", loud)
    assert disagreement(kernel, [Plain()], q, q, 0.25, None, None) == 0


class Exact(Plain):
    """The definition in float64, rounded once."""

    def forward(self, *tensors: Any) -> Attended:
        q, k, v, *more = tensors
        done = super().forward(*(each.double() for each in (q, k, v)), *more)
        return Attended(done.out.to(q.dtype), ())

    def backward(self, *tensors: Any) -> tuple[torch.Tensor, ...]:
        *given, done, scale, window, held = tensors
        found = super().backward(*(each.double() for each in given), done, scale, window, held)
        return tuple(each.to(given[0].dtype) for each in found)


@pytest.mark.parametrize("s", [1, 63, 500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_to_16_bits_is_far_within_what_is_allowed(dtype, s):
    q, k = (torch.empty(1, heads, s, 64, device=DEVICE, dtype=dtype) for heads in (4, 2))
    assert disagreement(Plain(), [Exact()], q, k, 0.125, None, None) < ALLOWED / 2
