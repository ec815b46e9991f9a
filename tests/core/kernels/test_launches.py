"""A launch that is made again and again finds its kernel once."""

from typing import Any

import torch
import triton
import triton.language as tl

from core.kernels.launches import Launch
from tests.core.kernels.conftest import DEVICE


class Compiled:
    """What Triton returns of a launch; launches again by itself."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launches.append((grid, arguments))


class Kernel:
    """A function of Triton's that finds the same kernel every time."""

    def __init__(self, compiled: Compiled | None) -> None:
        self.compiled, self.asked = compiled, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> Compiled | None:
            self.asked += 1
            self.seen = grid, arguments, options
            return self.compiled

        return launch


def test_the_first_launch_asks_and_the_others_take_what_was_found() -> None:
    compiled = Compiled()
    kernel, tensor = Kernel(compiled), torch.zeros(3)
    launch = Launch(kernel, (5, 2), tensor, 7, 0.5, num_warps=8)
    for _ in range(3):
        launch()
    assert kernel.asked == 1 and kernel.seen == ((5, 2), (tensor, 7, 0.5), {"num_warps": 8})
    assert compiled.launches == [((5, 2, 1), (tensor, 7, 0.5))] * 2


def test_where_nothing_is_compiled_every_launch_asks() -> None:
    kernel = Kernel(None)
    launch = Launch(kernel, (4,), 1)
    launch(), launch()
    assert kernel.asked == 2


@triton.jit
def _add(numbers, step, count, size: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * size + tl.arange(0, size)
    tl.store(numbers + at, tl.load(numbers + at, mask=at < count) + step, mask=at < count)


def test_it_computes_with_what_memory_holds_by_then() -> None:
    numbers = torch.arange(100, dtype=torch.float32, device=DEVICE)
    launch = Launch(_add, (4,), numbers, 2.0, 100, 32, num_warps=1)
    for _ in range(3):
        launch()
    numbers.mul_(2.0)
    launch()
    assert torch.equal(numbers, 2 * (torch.arange(100, device=DEVICE) + 6.0) + 2.0)
