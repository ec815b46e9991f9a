"""What a fused layer keeps: the plan against every plan there is, and against the memory it may take."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from core.models.fused.policy import (
    FULL,
    H200,
    LayerShape,
    Place,
    Plan,
    Policy,
    Rates,
    choose_micro_batch,
    divisors,
    floor_bytes,
    forward_ms,
    micro_batch_ms,
    plan,
    plan_layers,
    rates_of,
    recompute_costs,
)

ROOT = Path(__file__).parents[4]
GB = 10**9
LLAMA = LayerShape(4096, 4096, 1024, 32, 128, 14336)
SMALL = LayerShape(2048, 2048, 512, 32, 64, 8192)
QWEN = LayerShape(2560, 4096, 1024, 32, 128, 9728)
GEMMA = LayerShape(2560, 2048, 1024, 8, 256, 10240, is_sandwich=True, window=1024)
R, H, D = Place.RECOMPUTE, Place.HOST, Place.DEVICE
ALLOWED = {
    "input": (H, D), "qkv": (R, H, D), "attention": (R, H, D), "residual": (R, H, D), "gate_up": (R, D),
    "attention_out": (R, H, D), "mlp_out": (H, D),
}  # fmt: skip


# The definition, written a second time


def milliseconds(shape: LayerShape, tokens: int, longest: int, rates: Rates) -> dict[str, float]:
    e, q, k, f = shape.hidden, shape.query, shape.key, shape.inner
    pairs = sum(min(place, shape.window or place) for place in range(1, longest + 1)) * tokens / longest
    residual = 2 * tokens * q * e / rates.products
    summed = 3 * tokens * shape.width * e / rates.memory
    return {
        "qkv": 1e3 * 2 * tokens * e * (q + 2 * k) / rates.products,
        "attention": 1e3 * 4 * pairs * q / rates.attention,
        "residual": 1e3 * (summed if shape.is_sandwich else residual),
        "gate_up": 1e3 * 2 * tokens * e * 2 * f / rates.products,
        "attention_out": 1e3 * residual if shape.is_sandwich else 0.0,
    }


def per_token(shape: LayerShape) -> dict[str, int]:
    w, e, q, k = shape.width, shape.hidden, shape.query, shape.key
    more = w * e if shape.is_sandwich else 0
    return {
        "input": w * e, "qkv": w * (q + 2 * k), "attention": w * q + 4 * shape.heads, "residual": w * e,
        "gate_up": 2 * w * shape.inner, "attention_out": more, "mlp_out": more,
    }  # fmt: skip


def judged(policy: Policy, shape: LayerShape, tokens: int, longest: int, rates: Rates, *, last: bool):
    """Return (device, host, recompute, stall) of one layer."""
    cost, size = recompute_costs(shape, tokens, longest, rates)._asdict(), per_token(shape)
    places = policy._asdict()
    device = sum(tokens * size[name] for name, where in places.items() if where is D)
    host = sum(tokens * size[name] for name, where in places.items() if where is H)
    recompute = sum(cost[name] for name, where in places.items() if where is R)
    copying = 1e3 * host / rates.host
    stall = 2 * copying if last else max(0.0, copying - forward_ms(shape, tokens, longest, rates))
    return device, host, recompute, stall


def policies(shape: LayerShape) -> list[Policy]:
    kinds = [
        places if shape.is_sandwich or name not in ("attention_out", "mlp_out") else (D,)
        for name, places in ALLOWED.items()
    ]
    return [Policy(*places) for places in itertools.product(*kinds)]


def total(found: Plan, shape: LayerShape, tokens: int, longest: int, rates: Rates = H200):
    layers = [
        judged(policy, shape, tokens, longest, rates, last=number == len(found.policies) - 1)
        for number, policy in enumerate(found.policies)
    ]
    device, host, recompute, _ = (sum(column) for column in zip(*layers, strict=True))
    *others, last = (1e3 * layer[1] / rates.host for layer in layers)
    hidden = len(others) * forward_ms(shape, tokens, longest, rates)
    return [device, host, recompute, max(0.0, sum(others) - hidden) + 2 * last]


def objective(device: float, host: float, recompute: float, stall: float) -> float:
    return recompute + stall + 1e3 * 2 * host / H200.memory


# Its numbers


@pytest.mark.parametrize("shape", [LLAMA, SMALL, QWEN, GEMMA, GEMMA._replace(window=None)])
@pytest.mark.parametrize("longest", [512, 2048, 8192])
def test_what_is_computed_again_costs_its_products_and_its_attention(shape: LayerShape, longest: int) -> None:
    costs = recompute_costs(shape, 16384, longest)._asdict()
    assert (costs.pop("input"), costs.pop("mlp_out")) == (0, 0)
    expected = milliseconds(shape, 16384, longest, H200)
    assert costs == pytest.approx(expected, rel=2e-3)


def test_a_layer_of_8b_takes_what_was_measured_of_it() -> None:
    # 16384 tokens in rows of 2048: products at 670 TFLOP/s 10.67 ms, attention at 567 0.48 ms, and 225,280 bytes a
    # token read or written between them at 3.6 TB/s.
    assert forward_ms(LLAMA, 16384, 2048) == pytest.approx(11.15 + 1.03, abs=0.05)
    assert LLAMA.item_bytes._asdict() == per_token(LLAMA)
    assert GEMMA.item_bytes._asdict() == per_token(GEMMA)
    assert LLAMA.weights == 218_103_808


def test_the_figures_of_a_plan_are_those_of_its_policies() -> None:
    for shape, device, host in ((LLAMA, 7, 9), (GEMMA, 3, 2), (QWEN, 0, 50), (SMALL, 1, 0)):
        found = plan(shape, 12, 8192, 2048, device * GB, host * GB)
        assert [*found[1:5]] == pytest.approx(total(found, shape, 8192, 2048))
        assert found.extra_ms == pytest.approx(found.recompute_ms + found.stall_ms)


# Against every plan there is


@pytest.mark.parametrize("shape", [LLAMA, SMALL, QWEN])
@pytest.mark.parametrize("layers", [1, 2])
def test_no_plan_of_two_layers_is_better(shape: LayerShape, layers: int) -> None:
    draw = random.Random(f"{shape}{layers}")
    for _ in range(4):
        tokens, longest = draw.choice([512, 4096, 16384]), draw.choice([512, 2048, 32768])
        whole = tokens * sum(shape.item_bytes) * layers
        device, host = int(whole * draw.random()), int(whole * draw.random() / 2) * draw.choice([0, 1, 1])
        each = [
            [judged(p, shape, tokens, longest, H200, last=last) for p in policies(shape)]
            for last in [False] * (layers - 1) + [True]
        ]
        sums = ([sum(part) for part in zip(*choice, strict=True)] for choice in itertools.product(*each))
        fitting = [objective(*one) for one in sums if one[0] <= device and one[1] <= host]
        found = plan(shape, layers, tokens, longest, device, host)
        if fitting:
            assert found.device_bytes <= device and found.host_bytes <= host
            assert objective(*found[1:5]) == pytest.approx(min(fitting))
        else:
            assert found.device_bytes > device


def lower_bound(shape: LayerShape, layers: int, tokens: int, device: float, host: float) -> float:
    """Return what no plan can beat: the best of Lagrange's relaxations on a grid of prices in ms per byte."""
    one = numpy.concatenate([[0.0], 10 ** numpy.linspace(-9.5, -7, 250)])[:, None, None]
    two = numpy.concatenate([[0.0], 10 ** numpy.linspace(-9.5, -7, 100)])[None, :, None]
    bound = -one * device - two * host
    for last, times in ((False, layers - 1), (True, 1)):
        each = [judged(policy, shape, tokens, 2048, H200, last=last) for policy in policies(shape)]
        on_device, in_host, score = (
            numpy.array(column) for column in zip(*((e[0], e[1], objective(*e)) for e in each), strict=True)
        )
        bound = bound + times * (score + one * on_device + two * in_host).min(axis=2, keepdims=True)
    return float(bound.max())


@pytest.mark.parametrize(
    ("device", "host", "most"),
    [
        (5, 64, 4.5),
        (20, 64, 4.5),
        (0, 64, 0.1),
        (20, 0, 0.5),
        (5, 8, 1.5),
        (30, 3, 1.8),
        (10, 4, 2.2),
        (15, 10, 1.1),
    ],
)
def test_a_plan_of_many_layers_is_within_a_layer_of_what_none_can_beat(device, host, most: float) -> None:
    found = plan(LLAMA, 32, 16384, 2048, device * GB, host * GB)
    assert found.device_bytes <= device * GB and found.host_bytes <= host * GB
    bound = lower_bound(LLAMA, 32, 16384, device * GB, host * GB)
    assert bound - 1e-3 <= objective(*found[1:5]) <= bound + most


# Its limits


@pytest.mark.parametrize("shape", [LLAMA, GEMMA])
@pytest.mark.parametrize("layers", [1, 3, 34])
def test_a_plan_keeps_to_its_room_and_to_what_may_be_where(shape: LayerShape, layers: int) -> None:
    draw = random.Random(layers)
    whole = 4096 * sum(shape.item_bytes) * layers
    for _ in range(6):
        device, host = int(whole * draw.random()), int(whole * draw.random() / 3)
        found = plan(shape, layers, 4096, 1024, device, host)
        least = 4096 * sum(per_token(shape)[name] for name in ("input", "mlp_out")) * layers
        assert found.device_bytes <= max(device, least)
        assert found.host_bytes <= host
        assert len(found.policies) == layers
        for policy in found.policies:
            for name, where in policy._asdict().items():
                assert where in ALLOWED[name], (name, where)
            assert shape.is_sandwich or (policy.attention_out, policy.mlp_out) == (D, D)


def test_more_room_is_never_slower() -> None:
    times = [plan(LLAMA, 32, 16384, 2048, gb * GB, 20 * GB).extra_ms for gb in range(0, 56, 5)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 150
    assert times[-1] == 0


def test_with_room_for_everything_nothing_is_copied_or_computed_again() -> None:
    for shape in (LLAMA, GEMMA):
        assert plan(shape, 8, 4096, 4096, 10**12, 10**12) == Plan(
            (FULL,) * 8, 8 * 4096 * sum(shape.item_bytes), 0, 0, 0
        )


def test_without_any_memory_the_inputs_stay_on_the_gpu_and_are_counted() -> None:
    found = plan(GEMMA, 6, 1000, 1000, 0, 0)
    assert {(p.input, p.mlp_out) for p in found.policies} == {(D, D)}
    assert found.device_bytes == 6 * 1000 * 2 * 2 * 2560
    assert (found.host_bytes, found.stall_ms) == (0, 0)


def test_main_memory_that_is_too_small_for_all_inputs_takes_those_of_the_first_layers() -> None:
    one = 1000 * 2 * 4096
    found = plan(LLAMA, 6, 1000, 1000, 0, 3 * one + 5)
    assert [p.input for p in found.policies] == [H, H, H, D, D, D]
    assert (found.device_bytes, found.host_bytes) == (3 * one, 3 * one)


def test_copies_hide_behind_the_layers_forward_passes_or_are_not_made() -> None:
    slow = H200._replace(host=20e9)
    found = plan(LLAMA, 8, 16384, 2048, 2 * GB, 10**12, slow)
    forward = forward_ms(LLAMA, 16384, 2048, slow)
    sizes = [judged(p, LLAMA, 16384, 2048, slow, last=False)[1] for p in found.policies]
    assert found.stall_ms == 0
    assert 1e3 * sum(sizes) / slow.host <= 7 * forward
    assert max(sizes) > 0


def test_layers_that_send_more_than_they_hide_are_spread_between_those_that_send_less() -> None:
    found = plan(QWEN, 36, 16384, 2048, 0, 10**12)
    wide = [layer for layer, policy in enumerate(found.policies) if policy.qkv is H]
    gaps = [after - before for before, after in itertools.pairwise(wide)]
    forward = forward_ms(QWEN, 16384, 2048)
    alone = 1e3 * 16384 * (sum(QWEN.item_bytes) - QWEN.item_bytes.gate_up) / H200.host
    assert alone > forward  # one layer's own pass would not hide it
    assert len(wide) >= 3 and min(gaps) >= 36 // len(wide) - 1
    assert 1e3 * found.host_bytes / H200.host <= 35 * forward + alone


def test_the_last_layer_waits_on_the_gpu_and_the_first_ones_in_main_memory() -> None:
    found = plan(LLAMA, 32, 16384, 2048, 5 * GB, 64 * GB)
    assert H not in found.policies[-1]
    copied = [sum(where is H for where in policy) for policy in found.policies]
    assert copied == sorted(copied, reverse=True)
    assert copied[0] == 4


def test_long_documents_make_attention_worth_keeping() -> None:
    def kept(longest: int) -> int:
        found = plan(LLAMA, 32, 32768, longest, 25 * GB, 0)
        return sum(policy.attention is D for policy in found.policies)

    assert kept(32768) == 32
    assert kept(1024) < 10


def test_layers_of_different_kinds_are_planned_together() -> None:
    shapes = tuple(GEMMA if n % 6 < 5 else GEMMA._replace(window=None) for n in range(12))
    found = plan_layers(shapes, 32768, 32768, 4_310_000_000, 0)
    kept = [policy.attention is D for policy in found.policies]
    assert kept == [n % 6 == 5 for n in range(12)]


# The micro-batch


def test_a_little_memory_takes_few_rows_and_much_takes_many() -> None:
    def chosen(gb: float, rows: int = 8) -> int:
        return choose_micro_batch(divisors(rows), 1, rows, 2048, (LLAMA,) * 32, int(gb * GB), 32 * GB)

    assert [chosen(gb) for gb in (2, 10, 80)] == [1, 2, 8]
    assert chosen(0.1) == 1
    assert chosen(80, rows=6) == 6


def test_the_choice_is_the_fastest_of_those_that_fit() -> None:
    layers, rows, free, host = (QWEN,) * 36, 12, 14 * GB, 8 * GB
    times = {}
    for size in (1, 2, 3, 4, 6, 12):
        tokens = size * 1024
        room = free - floor_bytes(QWEN, tokens)
        kept = plan_layers(layers, tokens, 1024, max(0, room), host)
        if kept.device_bytes <= room:
            times[size] = micro_batch_ms(layers, tokens, 1024, kept) * rows / size
    best = min(times, key=lambda size: times[size])
    assert choose_micro_batch(divisors(12), 1, rows, 1024, layers, free, host) == best
    assert best > 1


def test_what_was_asked_for_stays_where_nothing_is_clearly_faster() -> None:
    layers = (LLAMA,) * 4
    for wanted in (16, 32):
        assert choose_micro_batch(divisors(32), wanted, 32, 2048, layers, 200 * GB, 0) == wanted
    assert choose_micro_batch(divisors(32), 1, 32, 2048, layers, 200 * GB, 0) > 8


def test_both_passes_of_8b_take_four_times_its_weights() -> None:
    layers = (LLAMA,) * 32
    kept = plan_layers(layers, 16384, 2048, 10**12, 0)
    # 4 N and attention at the measured rates, without recompute.
    whole = micro_batch_ms(layers, 16384, 2048, kept)
    assert whole == pytest.approx(32 * (2 * 10.67 * (1 + 256 / 16384) + 0.485 * 4.43), rel=0.01)


def test_a_tiny_layer_takes_at_least_its_launches() -> None:
    tiny = LayerShape(64, 64, 32, 4, 16, 128)
    kept = plan(tiny, 10, 128, 128, GB, 0)
    assert micro_batch_ms((tiny,) * 10, 128, 128, kept) == pytest.approx(3.5)


def test_divisors_cut_a_step_into_equal_parts() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]


def test_the_floor_of_8b_is_what_its_backward_pass_has_in_hand() -> None:
    w, e, f, qkv = 2, 4096, 14336, 6144
    alone = w * (2 * f + f + 8 * e + qkv)
    assert floor_bytes(LLAMA, 16384, fetches=False) == 16384 * alone
    assert floor_bytes(LLAMA, 16384) == 16384 * (alone + sum(LLAMA.item_bytes) - LLAMA.item_bytes.gate_up)


def test_other_cards_are_rated_below_what_they_reach() -> None:
    ours = rates_of(132, (9, 0), 1.83e9, 4.8e12)
    assert 0.9 * H200.products < ours.products <= H200.products
    assert ours.attention <= H200.attention and ours.host < H200.host and ours.memory <= H200.memory
    ada, ampere = rates_of(128, (8, 9), 2.52e9, 1e12), rates_of(108, (8, 0), 1.41e9, 2e12)
    assert ada.products < 165e12 and ampere.products < 312e12
    assert ada.host < 32e9
    assert rates_of(80, (7, 0), 1.5e9, 0.9e12).products > 0


def test_planning_needs_no_framework() -> None:
    code = (
        "import sys\nfrom core.models.fused.policy import LayerShape, plan\n"
        "plan(LayerShape(64, 64, 32, 4, 16, 128), 4, 128, 128, 0, 0)\n"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
