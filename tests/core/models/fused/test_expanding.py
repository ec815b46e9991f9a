"""How many layers' 4-bit weights stay expanded beside what layers keep: against every number there is."""

import itertools
import random

import pytest

from core.models.fused.costs import peak_bytes
from core.models.fused.expanding import fitting, unpack_ms
from core.models.fused.knapsack import Option, wanted_bytes
from core.models.fused.policy import (
    FULL,
    H200,
    Held,
    LayerShape,
    Plan,
    choose_micro_batch,
    divisors,
    micro_batch_ms,
    plan_layers,
    plan_with_expansions,
)

GB = 10**9
LLAMA = LayerShape(4096, 4096, 1024, 32, 128, 14336)
GEMMA = LayerShape(2560, 2048, 1024, 8, 256, 10240, is_sandwich=True, window=1024)
EXPANDED = 446_000_000
"""Bytes of a layer of 8B, with 64 more rows and columns for each of its four matrices."""


def again_ms(shape: LayerShape, size: int) -> float:
    """Half a byte and its share of a scale are read, two bytes are written, in both passes."""
    return 1e3 * 2 * 2.6 * min(size / shape.width, shape.weights) / H200.memory


def judged(made: Plan, shapes: tuple[LayerShape, ...], expansions: tuple[int, ...], first: int) -> float:
    copies = 1e3 * 2 * made.host_bytes / H200.memory
    rest = zip(shapes[first:], expansions[first:], strict=True)
    return made.recompute_ms + made.stall_ms + copies + sum(again_ms(*each) for each in rest)


def enumerated(shapes, expansions, tokens: int, room: int, host: int) -> float:
    """Return the fewest milliseconds over every number of layers that fits."""
    times = []
    for first in range(len(shapes) + 1):
        taken = sum(expansions[:first])
        if first and taken > room:
            break
        made = plan_layers(shapes, tokens, 2048, room - taken, host)
        if not first or made.device_bytes + taken <= room:
            times.append(judged(made, shapes, expansions, first))
    return min(times)


def check(shapes, expansions, tokens: int, room: int, host: int) -> Held:
    found = plan_with_expansions(shapes, expansions, tokens, 2048, room, host)
    assert found.expanded_bytes == sum(expansions[: found.expanded])
    assert not found.expanded or found.device_bytes <= room
    assert found.plan == plan_layers(shapes, tokens, 2048, room - found.expanded_bytes, host)
    assert found.cost_ms(H200) == pytest.approx(judged(found.plan, shapes, expansions, found.expanded))
    # Only whole layers stay expanded, so the number may be off by one.
    least, one = enumerated(shapes, expansions, tokens, room, host), max(map(again_ms, shapes, expansions))
    assert least - 1e-6 <= found.cost_ms(H200) <= least + one
    return found


@pytest.mark.parametrize("seed", range(8))
def test_no_number_of_layers_is_better(seed: int) -> None:
    draw = random.Random(seed)
    shapes = tuple(draw.choice([LLAMA, LLAMA, GEMMA]) for _ in range(draw.choice([1, 3, 6])))
    expansions = tuple(draw.choice([0, 1, 1.05]) * shape.width * shape.weights for shape in shapes)
    expansions = tuple(map(int, expansions))
    tokens = draw.choice([2048, 16384])
    whole = tokens * sum(sum(shape.item_bytes) for shape in shapes)
    room = int((whole + sum(expansions)) * draw.random())
    check(shapes, expansions, tokens, room, draw.choice([0, whole // 4, whole]))


@pytest.mark.parametrize(("tokens", "gb", "host"), [(16384, 62, 60), (4096, 14, 60), (2048, 7, 1)])
def test_no_number_of_32_layers_is_better(tokens: int, gb: int, host: int) -> None:
    assert 0 < check((LLAMA,) * 32, (EXPANDED,) * 32, tokens, gb * GB, host * GB).expanded <= 32


def test_hidden_copies_make_room_for_expanded_weights() -> None:
    shapes, expansions = (LLAMA,) * 32, (EXPANDED,) * 32
    whole = 4096 * 32 * sum(LLAMA.item_bytes)
    found = plan_with_expansions(shapes, expansions, 4096, 2048, whole + 5 * EXPANDED, 60 * GB)
    assert found.expanded > 10
    assert found.plan.host_bytes > 3 * GB
    assert found.plan.extra_ms == 0
    # Without main memory there is nothing to trade.
    found = plan_with_expansions(shapes, expansions, 4096, 2048, whole + 5 * EXPANDED, 0)
    assert (found.expanded, found.plan.policies) == (5, (FULL,) * 32)


def test_with_all_the_room_everything_stays_and_nothing_is_sent() -> None:
    found = plan_with_expansions((LLAMA,) * 4, (EXPANDED,) * 4, 4096, 2048, 10**12, 10**12)
    assert (found.expanded, found.cost_ms(H200), found.plan.host_bytes) == (4, 0.0, 0)
    assert found.device_bytes == 4 * EXPANDED + 4 * 4096 * sum(LLAMA.item_bytes)


@pytest.mark.parametrize("expansions", [(), (0,) * 6, (EXPANDED,) * 6])
def test_without_packed_weights_or_room_the_plan_is_what_it_was(expansions: tuple[int, ...]) -> None:
    shapes, room = (LLAMA,) * 6, EXPANDED - 1
    found = plan_with_expansions(shapes, expansions, 16384, 2048, room, 4 * GB)
    assert found.plan == plan_layers(shapes, 16384, 2048, room, 4 * GB)
    assert (found.expanded, found.expanded_bytes) == (0, 0)
    assert found.unpack_ms == pytest.approx(sum(again_ms(LLAMA, each) for each in expansions))


def test_where_the_least_does_not_fit_nothing_is_expanded() -> None:
    inputs = 6 * 16384 * 2 * 4096
    found = plan_with_expansions((LLAMA,) * 6, (1000,) * 6, 16384, 2048, inputs - 1, 0)
    assert found.expanded == 0 and found.device_bytes == inputs


@pytest.mark.parametrize("host", [0, 3, 60])
def test_more_room_never_predicts_a_slower_step(host: int) -> None:
    shapes, expansions = (LLAMA,) * 12, (EXPANDED,) * 12
    found = [plan_with_expansions(shapes, expansions, 4096, 2048, n * GB // 2, host * GB) for n in range(24)]
    times = [each.cost_ms(H200) for each in found]
    slack = again_ms(LLAMA, EXPANDED)
    assert all(after <= before + slack for before, after in itertools.combinations(times, 2))
    assert times[-1] == 0 < times[0]


def test_layers_of_16_bits_between_packed_ones_take_nothing() -> None:
    sizes = (0, 5, 0, 7, 9, 0)
    assert fitting(sizes, 21) == [0, 2, 4, 5]
    assert fitting(sizes, 20) == [0, 2, 4]
    assert fitting(sizes, 4) == [0]
    # A layer that does not fit ends it: only the first ones stay.
    assert fitting((9, 1), 5) == [0]


def test_extra_rows_and_columns_are_not_read_from_4_bits() -> None:
    assert unpack_ms(LLAMA, EXPANDED, H200) == pytest.approx(again_ms(LLAMA, 2 * LLAMA.weights))
    assert unpack_ms(LLAMA, LLAMA.weights, H200) == pytest.approx(again_ms(LLAMA, 2 * LLAMA.weights) / 2)
    assert unpack_ms(LLAMA, 0, H200) == 0


# What bytes are worth


def choice(device: int, host: int, score: float) -> Option:
    return Option(FULL, device, host, score, 0.0, score)


def test_the_bytes_that_are_worth_a_price_are_those_whose_next_step_saves_less() -> None:
    stairs = (choice(0, 0, 9.0), choice(10, 0, 4.0), choice(30, 0, 2.0), choice(60, 0, 1.0))
    # Steps save 0.5, 0.1 and 0.033 for each byte.
    for price, each in ((0.6, 0), (0.2, 10), (0.05, 30), (0.01, 60)):
        assert wanted_bytes([stairs] * 3, price, 0) == 3 * each


def test_main_memory_makes_room_as_far_as_it_goes() -> None:
    ways = (choice(0, 8, 1.0), choice(10, 0, 0.0))
    for host, device in ((0, 40), (8, 30), (16, 20), (20, 15), (32, 0), (99, 0)):
        assert wanted_bytes([ways] * 4, 0.2, host) == pytest.approx(device)
        # At a price below the copy's nothing is sent.
        assert wanted_bytes([ways] * 4, 0.05, host) == 40


def test_short_of_what_is_worth_more_nothing_is_expanded_and_one_plan_is_made() -> None:
    plan_layers.cache_clear()
    found = plan_with_expansions((LLAMA,) * 32, (EXPANDED,) * 32, 16384, 2048, 30 * GB, 8 * GB)
    assert found.expanded == 0
    assert plan_layers.cache_info().misses == 1
    plan_with_expansions((LLAMA,) * 32, (EXPANDED,) * 32, 4096, 2048, 14 * GB, 2 * GB)
    assert plan_layers.cache_info().misses == 3


# The micro-batch


def test_the_micro_batch_is_the_fastest_with_weights_expanded_where_there_is_room() -> None:
    layers, expansions, free = (LLAMA,) * 32, (EXPANDED,) * 32, 30 << 30
    times = {}
    for size in (1, 2, 4, 8):
        tokens = size * 2048
        room = free - peak_bytes(LLAMA, tokens, 128_256)
        held = plan_with_expansions(layers, expansions, tokens, 2048, room, 60 * GB)
        one = micro_batch_ms(layers, tokens, 2048, held.plan) + (32 - held.expanded) * again_ms(
            LLAMA, EXPANDED
        )
        times[size] = one * 8 / size
    best = min(times, key=lambda size: times[size])
    arguments = (divisors(8), 8, 8, 2048, layers, free, 60 * GB)
    assert choose_micro_batch(*arguments, expansions=expansions, vocabulary=128_256) == best == 4


def test_a_prediction_counts_what_copies_take_from_the_gpus_own_memory() -> None:
    made = Plan((FULL,) * 2, 0, 3 * GB, 1.0, 0.5)
    assert made.copies_ms(H200) == pytest.approx(1e3 * 6e9 / 3.6e12)
    bare = made._replace(host_bytes=0, recompute_ms=0.0, stall_ms=0.0)
    one, other = (micro_batch_ms((LLAMA,) * 2, 512, 512, each) for each in (made, bare))
    assert one - other == pytest.approx(1.5 + 1e3 * 6e9 / 3.6e12)
