"""The measurements that decided the design of the fused engine: what each building block costs on one GPU.

    python -m tests.bench.h200.micro OUT [--parts gemm,skinny,attention,copies] [--tokens 16384]

Matrix products of an 8B layer with and without an adapter in extra columns, thin products, attention kernels, copies
to main memory beside products. Random data, medians. Writes OUT/micro.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

TOKENS = 16_384
WIDTHS = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28_672), "down": (14_336, 4096)}
"""Inputs and outputs of the products of a layer of Llama-3.1-8B."""
EXTRA = (0, 16, 32, 64, 128)
RANKS = (16, 32, 48, 64)
Figures = Iterator[tuple[str, float]]
"""Name and value, one after the other: what was found before an error is kept."""


def timed(work: Callable[[], object], repeats: int = 20) -> float:
    """Return the median milliseconds of some work."""
    for _ in range(3):
        work()
    pairs = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return float(sorted(start.elapsed_time(end) for start, end in pairs)[repeats // 2])


def table(shape: tuple[int, int], pad: int = 0) -> torch.Tensor:
    """Draw a matrix whose rows have room for ``pad`` more numbers."""
    rows, columns = shape
    return torch.randn(rows, columns + pad, device="cuda", dtype=torch.bfloat16)[:, :columns] * 0.02


def dense(rows: int, columns: int) -> torch.Tensor:
    """Draw a matrix whose rows follow each other."""
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def attempt(label: str, figures: Figures) -> Figures:
    """Hand figures on until one cannot be had, and say why not."""
    try:
        yield from figures
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        print(label, str(error)[:300])


def products(tokens: int) -> Figures:
    """Time the products of a layer, forward and backward, with 0 to 128 extra columns."""
    for name, (n_in, n_out) in WIDTHS.items():
        for extra in EXTRA:
            yield from product(name, tokens, n_in, n_out, extra)


def product(name: str, tokens: int, n_in: int, n_out: int, extra: int) -> Figures:
    """Time one product with extra columns."""
    weight = dense(n_out + extra, n_in + extra) * 0.02
    x, dy = dense(tokens, n_in + extra), dense(tokens, n_out + extra)
    base = torch.empty_like(dy)[:, :n_out]
    forward, back = weight[:n_out].t(), weight[:, :n_in]
    ms = timed(lambda: torch.mm(x, forward, out=base))
    yield f"{name} fwd +{extra}", ms
    yield f"{name} fwd +{extra} TFLOP/s", 2e-9 * tokens * n_in * n_out / ms
    if extra in (0, 64):
        residual = dense(tokens, n_out)
        yield f"{name} fwd +{extra} added to a residual", timed(lambda: torch.addmm(residual, x, forward))
    yield f"{name} bwd +{extra}", timed(lambda: torch.mm(dy, back))
    if extra:
        low, up = x[:, n_in:], dense(n_out, extra)
        yield f"{name} addmm_ K={extra}", timed(lambda: base.addmm_(low, up.t()))


def thin(tokens: int) -> Figures:
    """Time the adapter's own products: thin inputs, thin outputs."""
    for name, (n_in, n_out) in WIDTHS.items():
        for rank in RANKS:
            yield from thin_product(f"{name} r{rank}", tokens, n_in, n_out, rank)


def thin_product(label: str, tokens: int, n_in: int, n_out: int, rank: int) -> Figures:
    """Time the products of one adapter, or of several side by side."""
    x, dy = table((tokens, n_in), 64), table((tokens, n_out), 64)
    a, b = table((rank, n_in)), table((n_out, rank), 64)
    low = table((tokens, rank))
    into = torch.empty(tokens, n_in + 64, device="cuda", dtype=torch.bfloat16)[:, n_in : n_in + rank]
    yield f"{label} x A'", timed(lambda: torch.mm(x, a.t(), out=into))
    yield f"{label} dy B", timed(lambda: torch.mm(dy, b))
    yield f"{label} dy' xa", timed(lambda: torch.mm(dy.t(), low))
    yield f"{label} dyb' x", timed(lambda: torch.mm(low.t(), x))
    if rank == max(RANKS):
        yield f"{label} xa' dy", timed(lambda: torch.mm(low.t(), dy))
        yield from attempt("out_dtype:", summed_wide(label, low, x))


def summed_wide(label: str, low: torch.Tensor, x: torch.Tensor) -> Figures:
    """Time a product that is handed over in float32."""
    ms = timed(lambda: torch.mm(low.t(), x, out_dtype=torch.float32))
    yield f"{label} dyb' x in float32", ms


class Heads(NamedTuple):
    """Attention of one model over rows of one length."""

    name: str
    query: int
    key: int
    width: int
    length: int


HEADS = (
    Heads("8b", 32, 8, 128, 2048),
    Heads("8b", 32, 8, 128, 8192),
    Heads("8b", 32, 8, 128, 32_768),
    Heads("1b", 32, 8, 64, 2048),
    Heads("gemma", 8, 4, 256, 2048),
)
WINDOWS = (None, 1024)
SAFE = 8192
"""Tokens beyond which cuDNN 9's kernel for documents reads outside its buffers: an illegal memory access."""


class Drawn(NamedTuple):
    """Queries, keys and values as views of one buffer, and what kernels want to know of them."""

    label: str
    length: int
    scale: float
    flops: float
    """Of a forward pass, in units that milliseconds turn into TFLOP/s; a backward pass takes 2.5 times as many."""
    rows: tuple[torch.Tensor, ...]
    """[b, heads, s, d] each."""
    flat: tuple[torch.Tensor, ...]
    """[b * s, heads, d] each."""
    starts: torch.Tensor


def drawn(heads: Heads, tokens: int) -> Drawn:
    """Draw the input of attention."""
    name, query, key, width, length = heads
    b = max(1, tokens // length)
    qkv = torch.randn(b, length, query + 2 * key, width, device="cuda", dtype=torch.bfloat16)
    parts = [query, key, key]
    return Drawn(
        f"{name} s={length} b={b} ",
        length,
        width**-0.5,
        2e-9 * b * query * length * length * width,
        tuple(part.transpose(1, 2) for part in qkv.split(parts, dim=2)),
        qkv.view(b * length, query + 2 * key, width).split(parts, dim=1),
        torch.arange(0, b * length + 1, length, device="cuda", dtype=torch.int32),
    )


def attention(tokens: int) -> Figures:
    """Time attention kernels on views of one buffer of queries, keys and values."""
    for heads in HEADS:
        case = drawn(heads, tokens)
        yield from attempt(f"{case.label} cudnn:", cudnn(case))
        for window in WINDOWS:
            yield from attempt(f"{case.label} flash:", flash(case, window))
        if heads.length <= SAFE:
            yield from attempt(f"{case.label} cudnn varlen:", cudnn_documents(case))


def rates(case: Drawn, name: str, forward: Callable[[], Any], back: Callable[[], Any]) -> Figures:
    """Time both directions of a kernel; ``name`` has a place for the direction."""
    yield case.label + name.format("fwd") + " TFLOP/s", case.flops / timed(forward, 8)
    back()
    yield case.label + name.format("bwd") + " TFLOP/s", 2.5 * case.flops / timed(back, 8)


def cudnn(case: Drawn) -> Figures:
    """Time cuDNN's kernel for rows, and show how its results lie."""
    q, k, v = case.rows
    call = torch.ops.aten._scaled_dot_product_cudnn_attention
    out = call(q, k, v, None, True, 0.0, True, False, scale=case.scale)
    do = torch.randn_like(out[0])

    def back() -> Any:
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            do, q, k, v, out[0], out[1], out[6], out[7], None, out[2], out[3], out[4], out[5], 0.0, True,
            scale=case.scale,
        )  # fmt: skip

    print(case.label, "cudnn out strides", out[0].stride(), out[1].shape, out[1].dtype)
    yield from rates(
        case, "cudnn {}", lambda: call(q, k, v, None, True, 0.0, True, False, scale=case.scale), back
    )
    print(case.label, "cudnn grad strides", [(each.stride(), each.shape) for each in back()])


def flash(case: Drawn, window: int | None) -> Figures:
    """Time flash attention over documents."""
    (q, k, v), starts, s = case.flat, case.starts, case.length
    more: dict[str, Any] = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}

    def forward() -> Any:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, s, s, 0.0, True, False, scale=case.scale, **more
        )

    out = forward()
    do = torch.randn_like(out[0])

    def back() -> Any:
        return torch.ops.aten._flash_attention_backward(
            do,
            q,
            k,
            v,
            out[0],
            out[1],
            starts,
            starts,
            s,
            s,
            0.0,
            True,
            out[2],
            out[3],
            scale=case.scale,
            **more,
        )

    yield from rates(case, f"flash varlen {{}} window {window}", forward, back)


def cudnn_documents(case: Drawn) -> Figures:
    """Time cuDNN's kernel for documents."""
    (q, k, v), starts, s = case.flat, case.starts, case.length

    def forward() -> Any:
        return torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, starts, starts, s, s, True, 0.0, True, False, scale=case.scale
        )

    out = forward()
    do = torch.randn_like(out[0])

    def back() -> Any:
        return torch.ops.aten._cudnn_attention_backward(
            do,
            q,
            k,
            v,
            out[0],
            out[1],
            out[6],
            out[7],
            None,
            starts,
            starts,
            s,
            s,
            0.0,
            True,
            scale=case.scale,
        )

    yield from rates(case, "cudnn varlen {}", forward, back)


def copies(tokens: int) -> Figures:
    """Time copies to and from main memory alone, and what they cost products that run beside them."""
    there = dense(tokens, 6144)
    began = time.perf_counter()
    here = torch.empty(tokens, 6144, dtype=torch.bfloat16, pin_memory=True)
    yield "pinning 201 MB ms", (time.perf_counter() - began) * 1e3
    size = there.numel() * 2e-6
    ways = {
        "to host": lambda: here.copy_(there, non_blocking=True),
        "to device": lambda: there.copy_(here, non_blocking=True),
    }
    for name, copy in ways.items():
        yield f"{name} GB/s", size / timed(copy)
    x, weight = table((tokens, 4096)), table((28_672, 4096))
    yield "product alone ms", timed(lambda: torch.mm(x, weight.t()))
    for name, copy in ways.items():
        yield f"product beside copies {name} ms", beside(copy, lambda: torch.mm(x, weight.t()))
    out = torch.empty(tokens, 28_672, device="cuda", dtype=torch.bfloat16)
    ms = timed(lambda: torch.mm(x, weight.t(), out=out), 400)
    yield "product for seconds on end TFLOP/s", 2e-9 * tokens * 4096 * 28_672 / ms


def beside(copy: Callable[[], object], work: Callable[[], object]) -> float:
    """Time work while copies run on a stream of their own."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(40):
            copy()
    ms = timed(work, 10)
    torch.cuda.synchronize()
    return ms


PARTS = {"attention": attention, "copies": copies, "gemm": products, "skinny": thin}


def main() -> None:
    """Run the parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, float]] = {}
    for part in options.parts.split(","):
        results[part] = dict(PARTS[part](options.tokens))
        for name, value in results[part].items():
            print(f"{part:10} {name:55} {value:9.3f}", flush=True)
        (options.out / "micro.json").write_text(json.dumps(results, indent=1))
        torch.cuda.empty_cache()
    print(torch.__version__, torch.cuda.get_device_name(), torch.backends.cudnn.version(), file=sys.stderr)


if __name__ == "__main__":
    main()
