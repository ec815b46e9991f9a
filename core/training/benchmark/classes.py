"""Sort the kernels of a training step into kinds, and set each kind beside its floor."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core.kernels.products import NAME
from core.training.benchmark.floors import (
    BANDWIDTH,
    HOST,
    Pair,
    Step,
    attention_flops,
    head_pair,
    linear_pairs,
    product_flops,
    stream_bytes,
)
from core.training.benchmark.reports import OpClass
from core.training.benchmark.trace import Trace, Work

SLACK = 128
"""A product may be wider by so much: adapters are computed in added columns."""
CRUMB = 0.005
"""Kinds of elementwise work below this share of all are added up."""
THIN = 64
"""Products of which one side is no wider are an adapter's own; three joined adapters of rank 16 are 48 wide."""
PRODUCTS = re.compile(rf"^(aten::(mm|addmm_?|bmm|baddbmm|_scaled_mm)|{NAME})$")
PRODUCT_KERNELS = re.compile(r"gemm|nvjet|cutlass|xmma|cublas", re.IGNORECASE)
ATTENTION = re.compile(r"sdpa|flash|fmha|fprop|bprop|dot_do_o|convert_dq|attention", re.IGNORECASE)
FORWARD = re.compile(r"fprop|fwd|forward", re.IGNORECASE)
BACKWARD = re.compile(r"bprop|bwd|backward|dot_do_o|convert_dq|dgrad|_dq|_dkv", re.IGNORECASE)
NAMED = (
    (re.compile(r"dequant|nf4|_unpack_|kgemm_4bit", re.IGNORECASE), "expansion of 4-bit weights"),
    (re.compile(r"cross_entropy|_losses|nll_loss|log_softmax|liger_ce", re.IGNORECASE), "loss"),
    (re.compile(r"optimizer|adam|blockwise", re.IGNORECASE), "optimizer"),
    (re.compile(r"^_spread\b"), "adapters written beside weights"),
    (re.compile(r"^_plus_low_rank\b"), "thin products"),
)
DIRECTED = (
    (re.compile(r"rms_?norm|layernorm", re.IGNORECASE), "norm"),
    (re.compile(r"rope|rotary", re.IGNORECASE), "rotation"),
    (re.compile(r"swiglu|geglu|(^|_)glu|silu|gelu", re.IGNORECASE), "gate"),
)
COPY = re.compile(r"^Memcpy (\w+)")
COPIES = {"HtoD": "copies from main memory", "DtoH": "copies to main memory", "DtoD": "copies on the GPU"}


class Product(NamedTuple):
    """The sizes of a matrix product [m, k] x [k, n]."""

    m: int
    k: int
    n: int

    @property
    def flops(self) -> float:
        """Return twice the multiplications."""
        return 2.0 * self.m * self.k * self.n


def product_of(work: Work) -> Product | None:
    """Read a product's sizes off the operation that launched it; None if it was none."""
    if not PRODUCTS.match(work.operation):
        return None
    first = 1 if "add" in work.operation else 0
    matrices = work.shapes[first : first + 2]
    if len(matrices) < 2 or len(matrices[0]) < 2 or len(matrices[1]) < 2:
        return None
    (*batch, m, k), (*_, n) = matrices
    return Product(m * (batch[0] if batch else 1), k, n)


def is_thin(product: Product, rank: int) -> bool:
    """Tell an adapter's own products from those of the base."""
    return min(product) <= max(THIN, 4 * rank)


class Namer:
    """Names the products of one model."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Know which linear layers there are."""
        self.pairs = pairs

    def match(self, product: Product) -> list[tuple[Pair, str]]:
        """Return the linear layers and directions that a product's sizes fit; closest first, equal ones together."""
        fits: list[tuple[int, Pair, str]] = []
        for pair in self.pairs:
            for a, b, direction in ((pair.k, pair.n, "forward"), (pair.n, pair.k, "backward")):
                over = (product.k - a, product.n - b)
                if all(0 <= each <= SLACK for each in over):
                    fits.append((sum(over), pair, direction))
        best = min((over for over, _, _ in fits), default=0)
        return [(pair, direction) for over, pair, direction in fits if over == best]

    def name(self, product: Product) -> str:
        """Return the class of a product."""
        fits = self.match(product)
        if not fits:
            return "products, other"
        return "product " + " / ".join(f"{pair.name} {direction}" for pair, direction in fits)


def pairs_run(work: Iterable[Work], step: Step) -> tuple[Pair, ...]:
    """Find out whether linear layers that share an input run joined, and list them accordingly."""
    joined = linear_pairs(step.shape, is_joined=True)
    namer = Namer(joined[:2])
    seen = (product_of(each) for each in work)
    is_joined = any(namer.match(p) for p in seen if p and not is_thin(p, step.rank))
    return (*linear_pairs(step.shape, is_joined=is_joined), head_pair(step.shape))


def class_of(work: Work, namer: Namer, rank: int) -> str:
    """Return the kind that a kernel belongs to."""
    if found := COPY.match(work.name):
        return COPIES.get(found[1], "copies on the GPU")
    product = product_of(work)
    if product is not None:
        return "thin products" if is_thin(product, rank) else namer.name(product)
    # What is computed again in a backward pass is forward work: the kernel's own name counts before its caller's.
    operation = work.operation if work.operation.startswith("aten::") else ""
    both = f"{work.name} {operation}"
    direction = direction_of(work.name) or direction_of(operation) or "forward"
    if ATTENTION.search(both):
        return f"attention {direction}"
    for pattern, name in NAMED:
        if pattern.search(both):
            return name
    for pattern, name in DIRECTED:
        if pattern.search(both):
            return f"{name} {direction}"
    if PRODUCT_KERNELS.search(work.name):
        return "products, other"
    return f"elementwise {operation or short(work.name)}"


def direction_of(name: str) -> str | None:
    """Tell which pass a name speaks of; None if it does not say."""
    if FORWARD.search(name):
        return "forward"
    return "backward" if BACKWARD.search(name) else None


def short(name: str) -> str:
    """Shorten a kernel's name."""
    return re.sub(r"<.*|\(.*", "", name).removeprefix("void ").rsplit("::", 1)[-1][:40]


def classified(trace: Trace, step: Step, gemm: float, n_steps: int) -> tuple[OpClass, ...]:
    """Add up a trace by kind, the most expensive first; gaps come last.

    Args:
        trace: Of so many steps.
        step: What one of them has to do.
        gemm: FLOP/s of products.
        n_steps: Steps in the trace.
    """
    pairs = pairs_run(trace.work, step)
    namer = Namer(pairs)
    kinds: dict[str, list[Work]] = {}
    for work in trace.work:
        kinds.setdefault(class_of(work, namer, step.rank), []).append(work)
    found = [
        _summed(name, works, floor_of(name, works, step, pairs, gemm, n_steps), n_steps)
        for name, works in kinds.items()
    ]
    gaps = OpClass(name="gaps", ms=trace.idle / 1e3 / n_steps, launches=0)
    return (*without_crumbs(found), gaps)


def without_crumbs(found: Sequence[OpClass]) -> list[OpClass]:
    """Sort kinds by their time, and add up the elementwise ones that hardly count."""
    total = sum(each.ms for each in found)
    crumbs = [each for each in found if each.name.startswith("elementwise ") and each.ms < CRUMB * total]
    kept = [each for each in found if each not in crumbs]
    if crumbs:
        ms, launches = sum(each.ms for each in crumbs), sum(each.launches for each in crumbs)
        kept.append(OpClass(name=f"elementwise, {len(crumbs)} more", ms=ms, launches=launches))
    return sorted(kept, key=lambda each: -each.ms)


def _summed(name: str, works: Sequence[Work], floor: float | None, n_steps: int) -> OpClass:
    seconds = sum(w.microseconds for w in works) * 1e-6
    flops = product_flops_run(works)
    size = sum(w.bytes for w in works if COPY.match(w.name))
    rate = f"{flops / seconds / 1e12:.0f} TFLOP/s" if flops and seconds and name.startswith("product") else ""
    rate = rate or (f"{size / seconds / 1e9:.0f} GB/s" if size and seconds else "")
    ms = seconds * 1e3 / n_steps
    launches = sum(not w.is_fill for w in works) / n_steps
    return OpClass(name=name, ms=ms, launches=launches, floor_ms=floor, rate=rate)


def product_flops_run(works: Iterable[Work]) -> float:
    """Add up products, each call once: beside its kernel one may fill memory, or add up the parts of a split."""
    total, seen = 0.0, set[int]()
    for work in works:
        product = product_of(work)
        if product is None or work.is_fill or work.call in seen:
            continue
        total += product.flops
        if work.call is not None:
            seen.add(work.call)
    return total


def floor_of(
    name: str, works: Sequence[Work], step: Step, pairs: Sequence[Pair], gemm: float, n_steps: int
) -> float | None:
    """Return the least milliseconds per step of a kind; None for what the shape does not make necessary."""
    if name.startswith("product "):
        wanted = set(name.removeprefix("product ").split(" / "))
        flops = sum(
            product_flops(step, p)
            for p in pairs
            for way in ("forward", "backward")
            if f"{p.name} {way}" in wanted
        )
        return flops / gemm * 1e3
    if name.startswith("attention "):
        return attention_flops(step) * (2.5 if name.endswith("backward") else 1.0) / gemm * 1e3
    if name in COPIES.values() and name != COPIES["DtoD"]:
        return sum(w.bytes for w in works) / HOST * 1e3 / n_steps
    size = stream_bytes(step).get(name)
    return size / BANDWIDTH * 1e3 if size is not None else None
