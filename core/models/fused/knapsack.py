"""A knapsack with one choice per layer and two capacities: the GPU's memory and main memory."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from core.models.fused.costs import Policy


class Option(NamedTuple):
    """One choice of one layer, priced."""

    policy: Policy
    device: int
    """Bytes on the GPU."""
    host: int
    """Bytes in main memory."""
    recompute: float
    """Milliseconds to make again what is not kept."""
    stall: float
    """Milliseconds of copies that nothing hides."""
    score: float
    """Milliseconds that are to become few: both, and what copies take from the GPU's own memory."""


Options = tuple[Option, ...]


class _Move(NamedTuple):
    """Another choice for a layer, and what it adds."""

    layer: int
    option: Option
    device: int
    host: int
    score: float


def undominated(options: Iterable[Option]) -> Options:
    """Drop what another option beats in all three: bytes on the GPU, bytes in main memory, and time."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.device, each.score, each.host)):
        if not any(other.host <= option.host and other.score <= option.score for other in kept):
            kept.append(option)
    return tuple(kept)


def search(options: list[Options], device: int, host: int) -> list[Option]:
    """Find the choice per layer that takes the fewest milliseconds. Exact for one and two layers.

    Main memory gets a price per byte, at which the GPU's bytes are filled by milliseconds per byte over the convex
    hull of each layer's options (Sinha and Zoltners 1979); the price is bisected until main memory is just not
    overfilled. Equal layers change all at once there, so some of them pay the price just below. What is left over
    is used by changing one or two layers at a time.

    Args:
        options: By layer, what ``undominated`` left; equal layers share one tuple.
        device: Bytes there are on the GPU. Where they are too few, the choices with the fewest are returned.
        host: Bytes there are in main memory; all layers' options with the fewest bytes on the GPU must fit.
    """
    layers = len(options)
    chosen = _filled(options, device, [0.0] * layers)
    if in_host(chosen) <= host:
        return _exchanged(chosen, options, device, host)
    low, high = _around(lambda price: in_host(_filled(options, device, [price] * layers)) > host)
    starts = [_mixed(options, device, host, low, high, is_first) for is_first in (True, False)]
    return min((_exchanged(start, options, device, host) for start in starts), key=_score)


def wanted_bytes(options: list[Options], price: float, host: int) -> float:
    """Estimate the bytes on the GPU that are worth at least a price, with whole layers allowed to be cut.

    Both kinds of memory get a price per byte, and every layer takes the option that is cheapest so; main memory's is
    bisected until it is just filled. Takes a few milliseconds at most.

    Args:
        options: By layer, what ``undominated`` left; equal layers share one tuple.
        price: Milliseconds for a byte on the GPU.
        host: Bytes there are in main memory.
    """
    # Equal layers share one tuple; to hash it takes longer than all the rest.
    numbers, kinds = Counter(map(id, options)), {id(each): each for each in options}

    def taken(host_price: float) -> tuple[int, int]:
        device = waiting = 0
        for key, number in numbers.items():
            best = min(kinds[key], key=lambda one: one.score + price * one.device + host_price * one.host)
            device, waiting = device + number * best.device, waiting + number * best.host
        return device, waiting

    if taken(0.0)[1] <= host:
        return taken(0.0)[0]
    over, under = map(taken, _around(lambda host_price: taken(host_price)[1] > host))
    # Equal layers change all at once; as many do as main memory has room for.
    return under[0] + (over[0] - under[0]) * (host - under[1]) / (over[1] - under[1])


def _around(overfills: Callable[[float], bool]) -> tuple[float, float]:
    """Bisect main memory's price, up to 1 ms a byte: the highest that overfills it, the lowest that does not."""
    low, high = 0.0, 1.0
    for _ in range(40):
        price = (low * high) ** 0.5 if low else high / 16
        low, high = (price, high) if overfills(price) else (low, price)
    return low, high


def _mixed(
    options: list[Options], device: int, host: int, low: float, high: float, is_first: bool
) -> list[Option]:
    """Let as many layers pay the lower price for main memory as fit, the first ones or the last ones.

    Args:
        options: By layer.
        device: Bytes there are on the GPU.
        host: Bytes there are in main memory.
        low: At this price of all layers it is overfilled.
        high: At this price it is not.
        is_first: The first layers pay the lower price.
    """
    few, many = 0, len(options)
    best = _filled(options, device, [high] * many)
    while many - few > 1:
        middle = (few + many) // 2
        prices = [low] * middle + [high] * (len(options) - middle)
        tried = _filled(options, device, prices if is_first else prices[::-1])
        if in_host(tried) <= host:
            few, best = middle, min(best, tried, key=_score)
        else:
            many = middle
    return best


def _filled(options: list[Options], device: int, prices: list[float]) -> list[Option]:
    """Fill the GPU's room by milliseconds per byte; a layer pays its price, in ms per byte, for main memory."""
    # Equal layers share one tuple; to hash the tuple itself for every layer takes longer than all the rest.
    stairs: dict[tuple[int, float], list[tuple[float, Option, Option]]] = {}
    chosen, steps = [], []
    for layer, (each, price) in enumerate(zip(options, prices, strict=True)):
        key = id(each), price
        if key not in stairs:
            stairs[key] = _stair(each, price)
        chosen.append(stairs[key][0][2])
        steps += [(slope, layer, before, after) for slope, before, after in stairs[key][1:]]
    left = device - on_device(chosen)
    for _, layer, before, after in sorted(steps, key=lambda step: step[:2]):
        if chosen[layer] is before and after.device - before.device <= left:
            left -= after.device - before.device
            chosen[layer] = after
    return chosen


def _stair(options: Options, price: float) -> list[tuple[float, Option, Option]]:
    """Return the steps of a layer's hull by slope, from what to what; the first one is where it begins."""
    hull = _hull(options, price)
    steps = [(_slope(*pair, price), *pair) for pair in itertools.pairwise(hull)]
    return [(0.0, hull[0], hull[0]), *steps]


def _hull(options: Options, price: float) -> list[Option]:
    """Return the lower convex hull of (bytes on the GPU, priced milliseconds), fewest bytes first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.device, each.score + price * each.host)):
        if hull and option.score + price * option.host >= hull[-1].score + price * hull[-1].host:
            continue
        while len(hull) > 1 and _slope(hull[-2], option, price) <= _slope(hull[-2], hull[-1], price):
            hull.pop()
        hull.append(option)
    return hull


def _slope(one: Option, other: Option, price: float) -> float:
    gained = other.score - one.score + price * (other.host - one.host)
    return gained / (other.device - one.device)


def _exchanged(chosen: list[Option], options: list[Options], device: int, host: int) -> list[Option]:
    """Change one layer's choice, or two layers' at once, as long as that saves time and fits."""
    chosen = list(chosen)
    while True:
        free = device - on_device(chosen), host - in_host(chosen)
        found = _best_exchange(chosen, options, free)
        if not found:
            return chosen
        for move in found:
            chosen[move.layer] = move.option


def _best_exchange(chosen: list[Option], options: list[Options], free: tuple[int, int]) -> list[_Move]:
    """Find the changes of one or two layers that save the most; equal layers are looked at once."""
    alike: dict[tuple[int, Option], list[int]] = {}
    for layer, (option, each) in enumerate(zip(chosen, options, strict=True)):
        alike.setdefault((id(each), option), []).append(layer)
    layers = [layer for group in alike.values() for layer in group[:2]]
    moves = [_move(layer, chosen[layer], each) for layer in layers for each in options[layer]]
    moves.sort(key=lambda move: move.score)
    best, least = [], -1e-9
    for number, one in enumerate(moves):
        if one.score < least and one.device <= free[0] and one.host <= free[1]:
            best, least = [one], one.score
        device, host, most = free[0] - one.device, free[1] - one.host, least - one.score
        for other in moves[number + 1 :]:
            # Unpacked: tens of thousands of pairs are looked at.
            layer, _, more_device, more_host, score = other
            if score >= most:
                break
            if more_device <= device and more_host <= host and layer != one.layer:
                # The others are no better.
                best, least = [one, other], one.score + score
                break
    return best


def _move(layer: int, old: Option, new: Option) -> _Move:
    return _Move(layer, new, new.device - old.device, new.host - old.host, new.score - old.score)


def on_device(chosen: Iterable[Option]) -> int:
    """Add up the bytes on the GPU."""
    return sum(option.device for option in chosen)


def in_host(chosen: Iterable[Option]) -> int:
    """Add up the bytes in main memory."""
    return sum(option.host for option in chosen)


def _score(chosen: Iterable[Option]) -> float:
    return sum(option.score for option in chosen)
