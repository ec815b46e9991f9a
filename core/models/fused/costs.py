"""What one decoder layer weighs and what making its tensors again costs, on a GPU of given rates.

Shapes are counted per token; w bytes a number, e width, q = h d query columns, k = g d key columns, f feed-forward.
"""

from enum import StrEnum
from typing import NamedTuple


class Place(StrEnum):
    """Where a tensor waits for the backward pass."""

    RECOMPUTE = "recompute"
    HOST = "host"
    """Pinned main memory."""
    DEVICE = "device"


class Policy(NamedTuple):
    """Where each tensor of one layer waits."""

    input: Place
    """The layer's input [n, e]: never made again."""
    qkv: Place
    """Projected queries, keys and values [n, q + 2k]."""
    attention: Place
    """What attention returns [n, q], and its logarithms of sums [n, h] in float32."""
    residual: Place
    """The sum after attention [n, e]."""
    gate_up: Place
    """Both halves of the gated unit [n, 2f]: never in main memory, the copy could not hide."""
    attention_out: Place
    """Sandwich norms only: what o_proj returns [n, e]. With it the residual is made again without a product."""
    mlp_out: Place
    """Sandwich norms only: what down_proj returns [n, e]: never made again."""


class Sizes(NamedTuple):
    """Bytes of each tensor that a policy places."""

    input: int
    qkv: int
    attention: int
    residual: int
    gate_up: int
    attention_out: int
    mlp_out: int


class Costs(NamedTuple):
    """Milliseconds that making each tensor again takes; they add up."""

    input: float
    qkv: float
    attention: float
    residual: float
    gate_up: float
    attention_out: float
    mlp_out: float


class LayerShape(NamedTuple):
    """One decoder layer."""

    hidden: int
    query: int
    """Columns of all queries, h d."""
    key: int
    """Columns of all keys, g d."""
    heads: int
    head_dim: int
    inner: int
    is_sandwich: bool = False
    """Norms after attention and after the feed-forward part too (Gemma 3)."""
    width: int = 2
    window: int | None = None
    """Tokens that attention looks back; None looks at all."""

    @property
    def weights(self) -> int:
        """Numbers in the layer's seven matrices."""
        e, q = self.hidden, self.query
        return e * (q + 2 * self.key) + q * e + 3 * e * self.inner

    @property
    def item_bytes(self) -> Sizes:
        """Bytes per token of each tensor that a policy places."""
        w, e = self.width, self.hidden
        norms = w * e if self.is_sandwich else 0
        attention = w * self.query + 4 * self.heads
        return Sizes(
            w * e, w * (self.query + 2 * self.key), attention, w * e, w * 2 * self.inner, norms, norms
        )

    def seen(self, longest: int) -> float:
        """Return the mean number of keys a query of a document of so many tokens looks at."""
        if self.window is None or longest <= self.window:
            return longest / 2
        return self.window - self.window**2 / (2 * longest)


TILE_NUMBERS = 1 << 28
"""Logits that exist at once, in the layers' own dtype; those of ``core.kernels.linear_cross_entropy``."""
TILE_ROWS = 128
"""A tile of logits has a multiple of so many tokens, where it has as many."""
BESIDE_HEAD = 4
"""Tensors of the model width beside a tile of logits: the last norm's input, its output, its rows, their gradient."""
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Model types whose decoder layers are known to be what the fused function computes."""
SPARE = 0.04
"""Share of a GPU's memory that is left to fragmentation."""
HOST_SHARE = 0.5
"""Share of the free main memory that may be locked for what layers keep."""


class Rates(NamedTuple):
    """How fast a GPU is; measured on an H200 (2026-11-21) unless said."""

    products: float = 670e12
    """FLOP/s of matrix products in 16 bits."""
    attention: float = 567e12
    """FLOP/s of attention's forward pass."""
    host: float = 55e9
    """Bytes/s of a pinned copy, each way."""
    memory: float = 3.6e12
    """Bytes/s of the GPU's own memory."""


H200 = Rates()


# FLOP per cycle of one processor, dense products of 16 bits added up in 32, by compute capability.
_CYCLE = {
    (7, 5): 512,
    (8, 0): 2048,
    (8, 6): 512,
    (8, 7): 1024,
    (8, 9): 512,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 512,
}
_REACHED = 0.65
"""Share of a GPU's published peak that products reach; an H200 (132 processors, 1.83 GHz) reaches 0.68."""
_COPIES = {7: 10e9, 8: 20e9}
"""Bytes/s of pinned copies by generation: PCI Express 3 and 4, with something to spare."""


def rates_of(processors: int, capability: tuple[int, int], hertz: float, memory: float) -> Rates:
    """Estimate the rates of a GPU that was not measured, on the low side.

    Too low a rate of products keeps more in main memory than can hide; too low a rate of copies keeps less there.

    Args:
        processors: Streaming multiprocessors.
        capability: Compute capability, such as (8, 9).
        hertz: Clock under load.
        memory: Bytes/s of its own memory, as published.
    """
    known = max((each for each in _CYCLE if each <= capability), default=(7, 5))
    products = _REACHED * processors * _CYCLE[known] * hertz
    # Away from Hopper's cuDNN attention runs as flash attention does, at under half the rate of products.
    attention = products * (0.8 if capability[0] == 9 else 0.45)
    copies = _COPIES.get(max(capability[0], 7), 20e9 if capability[0] > 9 else 40e9)
    return Rates(products, attention, copies, 0.75 * memory)


def forward_ms(shape: LayerShape, tokens: int, longest: int, rates: Rates = H200) -> float:
    """Predict a layer's forward pass: products, attention, and what is read and written between them."""
    e, q, f = shape.hidden, shape.query, shape.inner
    between = shape.width * (10 * e + 3 * q + 2 * shape.key + 4 * f)
    products = 2 * shape.weights / rates.products
    return 1e3 * tokens * (products + between / rates.memory) + attention_ms(shape, tokens, longest, rates)


def attention_ms(shape: LayerShape, tokens: int, longest: int, rates: Rates = H200) -> float:
    """Predict attention's forward pass, 4 FLOPs for each column of each key that a query looks at."""
    return 1e3 * 4 * tokens * shape.seen(longest) * shape.query / rates.attention


def recompute_costs(shape: LayerShape, tokens: int, longest: int, rates: Rates = H200) -> Costs:
    """Return what making each tensor again takes.

    The costs add up: whatever a tensor is made from is needed by the backward pass anyway.
    """

    def product(columns: int) -> float:
        return 1e3 * 2 * tokens * columns / rates.products

    e, q = shape.hidden, shape.query
    output = product(q * e)
    summed = 1e3 * 3 * tokens * shape.width * e / rates.memory
    residual, attention_out = (summed, output) if shape.is_sandwich else (output, 0.0)
    qkv, gate_up = product(e * (q + 2 * shape.key)), product(2 * e * shape.inner)
    attention = attention_ms(shape, tokens, longest, rates)
    return Costs(0.0, qkv, attention, residual, gate_up, attention_out, 0.0)


def floor_bytes(shape: LayerShape, tokens: int, *, fetches: bool = True) -> int:
    """Count what one layer's backward pass has in hand at its peak, whatever is kept.

    Both halves of the gated unit, the gradient of their product, eight tensors of the layer's width, the gradient of
    queries, keys and values, and of the layer before, on their way from main memory, all that may wait there.

    Args:
        shape: The layer.
        tokens: Tokens of a micro-batch.
        fetches: Something waits in main memory.
    """
    w, sizes = shape.width, shape.item_bytes
    fetched = sum(sizes) - sizes.gate_up if fetches else 0
    return tokens * (w * (3 * shape.inner + 8 * shape.hidden + shape.query + 2 * shape.key) + fetched)


def tile_bytes(tokens: int, vocabulary: int, width: int) -> int:
    """Count the logits that exist at once for so many tokens, their rows padded to 64."""
    rows = max(1, TILE_NUMBERS // max(1, vocabulary))
    rows = rows // TILE_ROWS * TILE_ROWS or rows
    return width * min(tokens, rows) * (-(-vocabulary // 64) * 64)


def head_bytes(shape: LayerShape, tokens: int, vocabulary: int) -> int:
    """Count what the head has in hand, while all that is kept of the layers waits."""
    return BESIDE_HEAD * shape.width * shape.hidden * tokens + tile_bytes(tokens, vocabulary, shape.width)


def peak_bytes(shape: LayerShape, tokens: int, vocabulary: int) -> int:
    """Count what a micro-batch needs beside what is kept: in a layer's backward pass or at the head, never at once.

    Args:
        shape: The layer.
        tokens: Tokens of a micro-batch.
        vocabulary: Classes of the head.
    """
    return max(floor_bytes(shape, tokens), head_bytes(shape, tokens, vocabulary))
