"""How fast a card is, asked of a library that answers as NVIDIA's does."""

from typing import Any

import pytest

from core.models.fused.cards import card_rates
from core.models.fused.costs import H200, rates_of
from flows.preflight.card import find_rates


class Library:
    """Answers with numbers of a card, as functions of C do: by reference; 3 is "not supported"."""

    def __init__(self, **numbers: Any) -> None:
        self.numbers = {"DeviceGetHandleByIndex_v2": (7,), **numbers}
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            asked = name.removeprefix("nvml")
            self.open += {"Init_v2": 1, "Shutdown": -1}.get(asked, 0)
            if asked in ("Init_v2", "Shutdown"):
                return 0
            if asked == "DeviceGetMaxClockInfo":
                asked = f"Clock{arguments[1]}"
            if asked not in self.numbers:
                return 3
            for value, place in zip(
                self.numbers[asked], [a for a in arguments if hasattr(a, "_obj")], strict=True
            ):
                place._obj.value = value
            return 0

        return function


# As published: 58 processors of 128 cores, 2.04 GHz, 300 GB/s.
L4 = {"DeviceGetCudaComputeCapability": (8, 9), "DeviceGetNumGpuCores": (7424,), "DeviceGetMemoryBusWidth": (192,),
      "Clock1": (2040,), "Clock2": (6251,)}  # fmt: skip


def test_a_card_is_reckoned_with_by_its_own_numbers() -> None:
    library = Library(**L4)
    found = find_rates("NVIDIA L4", library)
    expected = rates_of(58, (8, 9), 2.04e9, 300e9)
    assert found is not None
    assert found == pytest.approx(expected, rel=1e-3)
    assert library.open == 0
    assert find_rates("NVIDIA H200", library) == H200


@pytest.mark.parametrize(
    ("capability", "cores", "processors"),
    [
        ((7, 5), 2560, 40),
        ((8, 0), 6912, 108),
        ((8, 6), 10_752, 84),
        ((9, 0), 16_896, 132),
        ((12, 0), 21_760, 170),
    ],
)
def test_processors_are_counted_by_their_cores(
    capability: tuple[int, int], cores: int, processors: int
) -> None:
    numbers = {**L4, "DeviceGetCudaComputeCapability": capability, "DeviceGetNumGpuCores": (cores,)}
    found = find_rates("another", Library(**numbers))
    assert found == card_rates("another", processors, capability, 2.04e6, 6.251e6, 192)


@pytest.mark.parametrize("missing", L4)
def test_a_driver_that_does_not_tell_leaves_it_open(missing: str) -> None:
    library = Library(**{name: value for name, value in L4.items() if name != missing})
    assert find_rates("NVIDIA L4", library) is None
    assert library.open == 0


def test_a_library_without_these_functions_leaves_it_open() -> None:
    assert find_rates("NVIDIA L4", object()) is None


def test_clocks_that_nobody_tells_are_guessed() -> None:
    assert card_rates("old", 40, (7, 5), 0, 0, 0) == rates_of(40, (7, 5), 1.5e9, 0.5e12)
