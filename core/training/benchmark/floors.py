"""The least time that each kind of work can take, from a model's shape, the load and the machine's rates.

T is the tokens of a step, n its learned tokens, L the layers; widths as in the README of core/models; w = 2 bytes.

    products    2 T K N FLOPs per linear layer and direction (a frozen weight has no gradient); the head 2 n e v each way
    attention   4 h d P FLOPs forward for P visible pairs of one head, five halves of that backward
    thin        every input of an adapter read for A, every gradient of its output read for B, and both read once more
                for the gradients of A and B: 2 w T (K + N) bytes per group of linear layers that share their input
    norm        w T e bytes for each tensor read or written: 4 forward (sum and norm at once), 4 backward
    rotation    forward 2 w T (q + kv), backward 2 w T (q + 2 kv)
    gate        forward 3 w T f, backward 6 w T f (its output is computed again for the gradient of B)
    loss        logits read and written once: 2 w n v
    expansion   of 4-bit weights, forward and backward: 0.516 + w bytes per weight each time
    optimizer   8-bit AdamW: parameter read and written, gradient read, two states read and written: 16 bytes per number
"""

from collections.abc import Sequence
from typing import NamedTuple

from core.models.resources.shapes import FAMILIES, ModelShape

BANDWIDTH = 4.3e12
"""Bytes per second of an H200's memory, measured; what streams are held against on other cards too."""
HOST = 55e9
"""Bytes per second of a pinned copy, one way."""
WIDTH = 2
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantization."""


class Step(NamedTuple):
    """What a step has to do."""

    shape: ModelShape
    lengths: tuple[int, ...]
    """Tokens of every document."""
    labelled: int
    rank: int
    is_packed_weight: bool
    """The base is held in 4 bits."""
    window: int | None = None
    """Tokens that a sliding layer sees; None without such layers."""
    n_sliding: int = 0

    @property
    def tokens(self) -> int:
        """Return the tokens of the step."""
        return sum(self.lengths)


class Pair(NamedTuple):
    """A group of linear layers that read the same input."""

    name: str
    k: int
    n: int
    per_layer: int = 1


def linear_pairs(shape: ModelShape, *, is_joined: bool) -> tuple[Pair, ...]:
    """List the linear layers of a block, inputs that are shared joined or not."""
    e, q, kv, f = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.intermediate,
    )
    last = (Pair("o", q, e), Pair("down", f, e))
    if is_joined:
        return (Pair("qkv", e, q + 2 * kv), Pair("gate_up", e, 2 * f), *last)
    return (Pair("q", e, q), Pair("k, v", e, kv, 2), Pair("gate, up", e, f, 2), *last)


def product_flops(step: Step, pair: Pair) -> float:
    """Return the FLOPs of one direction of a pair over all layers; the head counts learned tokens only."""
    if pair.name == "head":
        return 2.0 * step.labelled * pair.k * pair.n
    return 2.0 * step.tokens * pair.k * pair.n * pair.per_layer * step.shape.layers


def head_pair(shape: ModelShape) -> Pair:
    """Return the output head."""
    return Pair("head", shape.hidden, shape.vocab)


def visible_pairs(lengths: Sequence[int], window: int | None) -> float:
    """Count the pairs of query and key that may see each other."""
    total = 0.0
    for n in lengths:
        reach = min(n, window or n)
        total += reach * (reach + 1) / 2 + (n - reach) * reach
    return total


def attention_flops(step: Step) -> float:
    """Return the FLOPs of attention forward, over all layers."""
    shape = step.shape
    whole = visible_pairs(step.lengths, None) * (shape.layers - step.n_sliding)
    slid = visible_pairs(step.lengths, step.window) * step.n_sliding
    return 4.0 * shape.heads * shape.head_dim * (whole + slid)


def stream_bytes(step: Step) -> dict[str, float]:
    """Return the bytes that each kind of streaming work has to move, by class name."""
    shape, t = step.shape, step.tokens
    e, q, kv, f = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.intermediate,
    )
    joined = linear_pairs(shape, is_joined=True)
    weights = sum(pair.k * pair.n for pair in joined) * shape.layers
    # Two norms of a block join the residual sum; sandwich norms have twice as many, and one ends the model.
    norms = FAMILIES[shape.family].n_norms * shape.layers + 1
    per_layer = {
        "rotation forward": 2 * (q + kv), "rotation backward": 2 * (q + 2 * kv), "gate forward": 3 * f,
        "gate backward": 6 * f, "thin products": 2 * sum(pair.k + pair.n for pair in joined),
    }  # fmt: skip
    found = {name: float(WIDTH * t * shape.layers * width) for name, width in per_layer.items()}
    found |= {"norm forward": WIDTH * t * 4.0 * e * norms, "norm backward": WIDTH * t * 4.0 * e * norms}
    found["loss"] = 2.0 * WIDTH * step.labelled * shape.vocab
    found["optimizer"] = 16.0 * adapter_numbers(step)
    if step.is_packed_weight:
        found["expansion of 4-bit weights"] = 2 * (PACKED + WIDTH) * weights
    return found


def adapter_numbers(step: Step) -> int:
    """Count the adapter's parameters."""
    separate = linear_pairs(step.shape, is_joined=False)
    return sum(p.per_layer * step.rank * (p.k + p.n) for p in separate) * step.shape.layers
