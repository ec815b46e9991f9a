"""A launch that is made again and again finds its kernel once."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from core.kernels.launches import Launch
from core.kernels.lora_linear import Adapter, Projection
from core.kernels.lora_linear import fused as lora
from core.kernels.nf4 import Packed
from core.kernels.nf4 import fused as nf4
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


@pytest.mark.parametrize(("grid", "whole"), [((5,), (5, 1, 1)), ((5, 2), (5, 2, 1)), ((5, 2, 3), (5, 2, 3))])
def test_the_first_launch_asks_and_the_others_take_what_was_found(
    grid: tuple[int, ...], whole: tuple[int, ...]
) -> None:
    compiled = Compiled()
    kernel, tensor = Kernel(compiled), torch.zeros(3)
    launch = Launch(kernel, grid, tensor, 7, 0.5, num_warps=8)
    for _ in range(3):
        launch()
    assert kernel.asked == 1 and kernel.seen == (grid, (tensor, 7, 0.5), {"num_warps": 8})
    assert compiled.launches == [(whole, (tensor, 7, 0.5))] * 2


def test_where_nothing_is_compiled_every_launch_asks() -> None:
    kernel = Kernel(None)
    launch = Launch(kernel, (4,), 1)
    launch(), launch()
    assert kernel.asked == 2


def test_every_launch_that_is_prepared_names_all_that_its_kernel_takes() -> None:
    """A kernel that was found is given its arguments as they are: nobody adds what is left out."""
    matrix = torch.zeros(64 + 64, 32 + 64, device=DEVICE)
    adapter = Adapter(torch.zeros(16, 32, device=DEVICE), torch.zeros(64, 16, device=DEVICE), 1.0)
    projection = Projection(torch.zeros(64, 32, device=DEVICE), None, (adapter,))
    made: list[Any] = [*lora.spreading(matrix, (projection,), 64, 32)]
    for columns in (32, 33):
        data = torch.zeros(64 * columns // 2, dtype=torch.uint8, device=DEVICE)
        packed = Packed(
            data,
            torch.zeros(64, device=DEVICE),
            torch.zeros(16, device=DEVICE),
            64,
            (64, columns),
            torch.float32,
        )
        made.append(nf4.unpacking(packed, torch.zeros(64, columns, device=DEVICE)))
    for launch in made:
        assert len(launch._arguments) == len(launch._kernel.arg_names)
        launch()


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
