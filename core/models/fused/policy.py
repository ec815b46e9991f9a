"""What a fused layer keeps for its backward pass, and where: the plan that costs the fewest milliseconds.

A layer's kept tensors differ in what they cost to hold and what they cost to make again. ``plan`` fills the memory
there is with the ones that save the most time per byte, and sends to main memory what a layer's own forward pass
can hide the copy of. Plain arithmetic: no PyTorch here.

Shapes are counted per token; w bytes a number, e width, q = h d query columns, k = g d key columns, f feed-forward.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core.models.fused.costs import (
    H200,
    Costs,
    LayerShape,
    Place,
    Policy,
    Rates,
    attention_ms,
    floor_bytes,
    forward_ms,
    peak_bytes,
    rates_of,
    recompute_costs,
)
from core.models.fused.expanding import fitting, unpack_ms
from core.models.fused.knapsack import Option, Options, in_host, on_device, search, undominated, wanted_bytes

__all__ = [
    "FULL", "H200", "LEAST", "Held", "LayerShape", "Place", "Plan", "Policy", "Rates", "choose_micro_batch",
    "divisors", "floor_bytes", "forward_ms", "micro_batch_ms", "plan", "plan_layers", "plan_with_expansions",
    "rates_of", "recompute_costs",
]  # fmt: skip

R, H, D = Place.RECOMPUTE, Place.HOST, Place.DEVICE
FULL = Policy(D, D, D, D, D, D, D)
LEAST = Policy(H, R, R, R, R, R, H)
"""The fewest bytes on the GPU; without main memory the input and mlp_out stay on the GPU."""

_CHOICES = ((D, H), (R, H, D), (R, H, D), (R, H, D), (R, D), (R, H, D), (D, H))


_Kind = tuple[LayerShape, bool, bool]
"""Shape, is it the last layer, may it use main memory."""


class Plan(NamedTuple):
    """Where every layer's tensors wait, and what it costs."""

    policies: tuple[Policy, ...]
    """By layer, first to last."""
    device_bytes: int
    """Kept on the GPU; more than there was room for where even the least does not fit."""
    host_bytes: int
    recompute_ms: float
    """Made again in one backward pass."""
    stall_ms: float
    """Copies that no computation hides."""
    is_uneven: bool = False
    """Some layers send more than their own forward pass hides."""

    @property
    def extra_ms(self) -> float:
        """What this plan costs beyond keeping everything on the GPU, but for ``copies_ms``."""
        return self.recompute_ms + self.stall_ms

    def copies_ms(self, rates: Rates) -> float:
        """Return what hidden copies take too: the GPU's own memory is read and written once for each byte."""
        return 2e3 * self.host_bytes / rates.memory


class Held(NamedTuple):
    """What a micro-batch holds on the GPU: a plan, and beside it 4-bit weights that stay expanded."""

    plan: Plan
    expanded: int
    """Layers, the first ones, whose weights stay expanded."""
    expanded_bytes: int
    unpack_ms: float
    """Expanding the other layers' weights in each pass."""

    @property
    def device_bytes(self) -> int:
        """What both take on the GPU."""
        return self.plan.device_bytes + self.expanded_bytes

    def cost_ms(self, rates: Rates) -> float:
        """Return what a micro-batch loses to the room there is: the plan, its copies, and weights expanded again."""
        return self.plan.extra_ms + self.plan.copies_ms(rates) + self.unpack_ms


def plan(
    shape: LayerShape,
    layers: int,
    tokens: int,
    longest: int,
    device_bytes: int,
    host_bytes: int,
    rates: Rates = H200,
) -> Plan:
    """Plan for equal layers; see ``plan_layers``."""
    return plan_layers((shape,) * layers, tokens, longest, device_bytes, host_bytes, rates)


@functools.lru_cache(maxsize=256)
def plan_layers(
    shapes: tuple[LayerShape, ...],
    tokens: int,
    longest: int,
    device_bytes: int,
    host_bytes: int,
    rates: Rates = H200,
) -> Plan:
    """Choose what to keep where so that the backward pass loses the fewest milliseconds.

    Takes 3 ms for 32 layers that nearly fit, 20 to 60 where main memory is short, 110 for layers of two kinds with two
    norms more; equal arguments are answered at once.

    Args:
        shapes: The layers, first to last.
        tokens: Tokens of a micro-batch.
        longest: Tokens of its longest document.
        device_bytes: Room for kept tensors on the GPU; may be 0.
        host_bytes: Room in pinned main memory; may be 0.
        rates: How fast the GPU is.
    """
    kinds = _kinds(shapes, tokens, host_bytes)
    options = [_options(kind, tokens, longest, rates) for kind in kinds]
    found = _arranged(kinds, search(options, device_bytes, host_bytes))
    return _levelled(found, kinds, tokens, longest, host_bytes, rates)


def _kinds(shapes: Sequence[LayerShape], tokens: int, host_bytes: int) -> list[_Kind]:
    """Say which layers may use main memory: all, unless it is too small for what is never made again."""
    kinds: list[_Kind] = []
    left = host_bytes
    for number, shape in enumerate(shapes):
        left -= tokens * _forced(shape)
        kinds.append((shape, number == len(shapes) - 1, left >= 0))
    return kinds


def _forced(shape: LayerShape) -> int:
    """Return the bytes per token that are never made again."""
    return shape.width * shape.hidden * (2 if shape.is_sandwich else 1)


@functools.lru_cache(maxsize=64)
def _options(kind: _Kind, tokens: int, longest: int, rates: Rates) -> Options:
    """List a layer's policies that no other beats in bytes on the GPU, in main memory, and in time."""
    shape, is_last, may_host = kind
    choices = _CHOICES if shape.is_sandwich else (*_CHOICES[:5], (D,), (D,))
    costs = recompute_costs(shape, tokens, longest, rates)
    hidden = 0.0 if is_last else forward_ms(shape, tokens, longest, rates)
    priced = []
    for places in itertools.product(*choices):
        if H not in places or may_host:
            priced.append(_priced(Policy(*places), shape, tokens, costs, hidden, rates))
    return undominated(priced)


def _priced(
    policy: Policy, shape: LayerShape, tokens: int, costs: Costs, hidden: float, rates: Rates
) -> Option:
    """Price a policy.

    A layer's forward pass hides the copies of as many bytes; the last layer's copies go out and come back while
    nothing else runs. A copy reads or writes the GPU's own memory, twice in all.
    """
    sizes = [tokens * size for size in shape.item_bytes]
    on = {place: [n for n, where in enumerate(policy) if where is place] for place in Place}
    device, host = (sum(sizes[n] for n in on[place]) for place in (D, H))
    recompute = sum(costs[n] for n in on[R])
    copying = 1e3 * host / rates.host
    stall = max(0.0, copying - hidden) if hidden else 2 * copying
    return Option(policy, device, host, recompute, stall, recompute + stall + 1e3 * 2 * host / rates.memory)


def _arranged(kinds: list[_Kind], chosen: list[Option]) -> Plan:
    """Give equal layers' choices out so that what waits in main memory waits longest: the first layers' copies.

    Without copies a choice costs the last layer what it costs the others.
    """
    placed = list(chosen)
    groups: dict[tuple[LayerShape, bool], list[int]] = {}
    for layer, (shape, is_last, _) in enumerate(kinds):
        groups.setdefault((shape, is_last and chosen[layer].host > 0), []).append(layer)
    for layers in groups.values():
        held = sorted((chosen[layer] for layer in layers), key=lambda option: (-option.host, option.device))
        for layer, option in zip(layers, held, strict=True):
            placed[layer] = option
    return Plan(
        tuple(option.policy for option in placed),
        on_device(placed),
        in_host(placed),
        sum(option.recompute for option in placed),
        sum(option.stall for option in placed),
    )


def _levelled(
    made: Plan, kinds: list[_Kind], tokens: int, longest: int, host_bytes: int, rates: Rates
) -> Plan:
    """Let some layers send more than their own forward pass hides, where the others leave time for it.

    The search prices every layer alone; copies may run one layer on, so what counts is the sum. Those that send
    more are spread evenly over the model.
    """
    times = [0.0 if is_last else forward_ms(shape, tokens, longest, rates) for shape, is_last, _ in kinds]
    spare = int(min(host_bytes, rates.host * sum(times) / 1e3) - made.host_bytes)
    policies, saved, sent = list(made.policies), 0.0, 0
    for name in ("qkv", "residual"):
        open_to = [
            layer
            for layer, (_, is_last, may_host) in enumerate(kinds)
            if may_host and not is_last and getattr(policies[layer], name) is R
        ]
        sizes = {layer: tokens * getattr(kinds[layer][0].item_bytes, name) for layer in open_to}
        count = max(0, min(len(open_to), (spare - sent) // max(sizes.values()))) if sizes else 0
        for number in range(count):
            layer = open_to[(2 * number + 1) * len(open_to) // (2 * count)]
            policies[layer] = policies[layer]._replace(**{name: H})
            saved += getattr(recompute_costs(kinds[layer][0], tokens, longest, rates), name)
            sent += sizes[layer]
    sends = [tokens * _sent(policy, shape) for policy, (shape, _, _) in zip(policies, kinds, strict=True)]
    last = sends[-1] if kinds[-1][1] else 0
    stall = max(0.0, 1e3 * (sum(sends) - last) / rates.host - sum(times)) + 2e3 * last / rates.host
    return made._replace(
        policies=tuple(policies), host_bytes=made.host_bytes + sent, recompute_ms=made.recompute_ms - saved,
        stall_ms=stall, is_uneven=sent > 0,
    )  # fmt: skip


def _sent(policy: Policy, shape: LayerShape) -> int:
    """Count the bytes per token that a layer sends to main memory."""
    return sum(size for size, where in zip(shape.item_bytes, policy, strict=True) if where is H)


def plan_with_expansions(
    shapes: tuple[LayerShape, ...],
    expansions: tuple[int, ...],
    tokens: int,
    longest: int,
    device_bytes: int,
    host_bytes: int,
    rates: Rates = H200,
) -> Held:
    """Choose what to keep where, and how many layers' 4-bit weights stay expanded, in one room.

    What a byte saves where it holds expanded weights is the same for all of them, so as many layers stay expanded as
    fit beside what is worth more; see ``wanted_bytes``. That is within one layer's ``unpack_ms`` of the best number,
    and takes two plans: one where nothing stays expanded, and this one where it is cheaper; see ``plan_layers``.

    Args:
        shapes: The layers, first to last.
        expansions: Bytes by layer of its expanded 4-bit weights, 0 for weights of 16 bits; () expands none.
        tokens: Tokens of a micro-batch.
        longest: Tokens of its longest document.
        device_bytes: Room on the GPU for kept tensors and expanded weights; may be 0.
        host_bytes: Room in pinned main memory; may be 0.
        rates: How fast the GPU is.
    """
    stops = fitting(expansions, device_bytes)
    each_ms = [unpack_ms(*pair, rates) for pair in zip(shapes, expansions, strict=False)]

    def held(stop: int) -> Held:
        taken = sum(expansions[:stop])
        made = plan_layers(shapes, tokens, longest, device_bytes - taken, host_bytes, rates)
        return Held(made, stop, taken, sum(each_ms[stop:]))

    alone = held(0)
    if len(stops) == 1:
        return alone
    options = [_options(kind, tokens, longest, rates) for kind in _kinds(shapes, tokens, host_bytes)]
    worth = wanted_bytes(options, sum(each_ms) / sum(expansions), host_bytes)
    stop = fitting(expansions, int(device_bytes - worth))[-1]
    if not stop:
        return alone
    both = held(stop)
    is_better = both.device_bytes <= device_bytes and both.cost_ms(rates) <= alone.cost_ms(rates)
    return both if is_better else alone


# What a micro-batch needs and takes

BACKWARD = 2.5 * 567 / 413
"""Attention's backward pass in forward passes: 2.5 times the FLOPs (arXiv:2205.14135), at 413 TFLOP/s for 567."""
RAMP = 256
"""Tokens that a product of few rows loses: the last wave of tiles is rarely full."""
LAUNCH_MS = 0.35
"""Host time of a layer's launches, both passes; a layer takes no less."""


def micro_batch_ms(
    shapes: tuple[LayerShape, ...],
    tokens: int,
    longest: int,
    kept: Plan,
    rates: Rates = H200,
) -> float:
    """Predict the layers' forward and backward pass of one micro-batch, their weights expanded.

    Embedding and head are left out.

    Args:
        shapes: The layers.
        tokens: Tokens of a micro-batch.
        longest: Tokens of its longest document.
        kept: The plan for it.
        rates: How fast the GPU is.
    """
    total = kept.extra_ms + kept.copies_ms(rates)
    for shape in shapes:
        products = 2e3 * 2 * (tokens + RAMP) * shape.weights / rates.products
        attention = (1 + BACKWARD) * attention_ms(shape, tokens, longest, rates)
        total += max(products + attention, LAUNCH_MS)
    return total


def choose_micro_batch(
    candidates: Iterable[int],
    wanted: int,
    rows: int,
    window: int,
    shapes: tuple[LayerShape, ...],
    free_bytes: int,
    host_bytes: int,
    rates: Rates = H200,
    *,
    expansions: tuple[int, ...] = (),
    vocabulary: int = 0,
) -> int:
    """Choose the rows of a micro-batch that take an optimizer step through the layers soonest.

    Few rows leave room to keep everything; many rows fill the GPU's products better.

    Args:
        candidates: Sizes to choose from.
        wanted: The configured size; kept where nothing is more than a hundredth faster.
        rows: Rows of an optimizer step.
        window: Tokens of a row.
        shapes: The layers.
        free_bytes: Room on the GPU for a layer's work or the head's, and what is kept.
        host_bytes: Room in pinned main memory.
        rates: How fast the GPU is.
        expansions: Bytes by layer of 4-bit weights that may stay expanded; see ``plan_with_expansions``.
        vocabulary: Classes of the head; 0 leaves it out.

    Returns:
        The size; the smallest candidate if none fits.
    """
    sizes = sorted(set(candidates))
    times: dict[int, float] = {}
    for size in sizes:
        tokens = size * window
        room = free_bytes - max(peak_bytes(shape, tokens, vocabulary) for shape in set(shapes))
        held = plan_with_expansions(shapes, expansions, tokens, window, max(0, room), host_bytes, rates)
        if room >= held.device_bytes:
            one = micro_batch_ms(shapes, tokens, window, held.plan, rates) + held.unpack_ms
            times[size] = one * -(-rows // size)
    if not times:
        return sizes[0]
    best = min(times, key=lambda size: times[size])
    return wanted if times.get(wanted, float("inf")) <= 1.01 * times[best] else best


def divisors(rows: int) -> list[int]:
    """Return every size that cuts an optimizer step's rows into equal micro-batches."""
    return [size for size in range(1, rows + 1) if rows % size == 0]
