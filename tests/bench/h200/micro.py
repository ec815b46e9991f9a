"""The measurements that decided the design of the fused engine: what each building block costs on one GPU.

    python -m tests.bench.h200.micro OUT [--part gemm,skinny,attention,copies]

Matrix products of an 8B layer with and without an adapter in extra columns, thin products, attention kernels, copies
to main memory beside products. Random data, medians. Writes OUT/micro.json.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

TOKENS = 16_384
WIDTHS = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28_672), "down": (14_336, 4096)}
"""Inputs and outputs of the products of a layer of Llama-3.1-8B."""


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
    return sorted(start.elapsed_time(end) for start, end in pairs)[repeats // 2]


def table(shape: tuple[int, int], pad: int = 0) -> torch.Tensor:
    """Draw a matrix whose rows have room for ``pad`` more numbers."""
    rows, columns = shape
    return torch.randn(rows, columns + pad, device="cuda", dtype=torch.bfloat16)[:, :columns] * 0.02


def products(tokens: int) -> dict[str, float]:
    """Time the products of a layer, forward and backward, with 0 to 64 extra columns."""
    found = {}
    for name, (n_in, n_out) in WIDTHS.items():
        work = 2e-9 * tokens * n_in * n_out
        for extra in (0, 16, 32, 64, 128):
            weight = torch.randn(n_out + extra, n_in + extra, device="cuda", dtype=torch.bfloat16) * 0.02
            x = torch.randn(tokens, n_in + extra, device="cuda", dtype=torch.bfloat16)
            dy = torch.randn(tokens, n_out + extra, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(tokens, n_out + extra, device="cuda", dtype=torch.bfloat16)
            residual = torch.randn(tokens, n_out, device="cuda", dtype=torch.bfloat16)
            forward, back = weight[:n_out].t(), weight[:, :n_in]
            ms = timed(lambda: torch.mm(x, forward, out=out[:, :n_out]))
            found[f"{name} fwd +{extra}"] = ms
            found[f"{name} fwd +{extra} TFLOP/s"] = work / ms
            if extra in (0, 64):
                found[f"{name} fwd +{extra} added to a residual"] = timed(
                    lambda: torch.addmm(residual, x, forward)
                )
            found[f"{name} bwd +{extra}"] = timed(lambda: torch.mm(dy, back))
            if extra:
                small = torch.randn(n_out, extra, device="cuda", dtype=torch.bfloat16)
                low = x[:, n_in:]
                base = out[:, :n_out]
                found[f"{name} addmm_ K={extra}"] = timed(lambda: base.addmm_(low, small.t()))
            del weight, x, dy, out, residual, forward, back
    return found


def thin(tokens: int) -> dict[str, float]:
    """Time the adapter's own products: thin inputs, thin outputs."""
    found = {}
    for name, (n_in, n_out) in WIDTHS.items():
        for rank in (16, 32, 48, 64):
            x, dy = table((tokens, n_in), 64), table((tokens, n_out), 64)
            a, b = table((rank, n_in)), table((n_out, rank), 64)
            low = table((tokens, rank))
            into = torch.empty(tokens, n_in + 64, device="cuda", dtype=torch.bfloat16)[:, n_in : n_in + rank]
            found[f"{name} r{rank} x A'"] = timed(lambda: torch.mm(x, a.t(), out=into))
            found[f"{name} r{rank} dy B"] = timed(lambda: torch.mm(dy, b))
            found[f"{name} r{rank} dy' xa"] = timed(lambda: torch.mm(dy.t(), low))
            found[f"{name} r{rank} dyb' x"] = timed(lambda: torch.mm(low.t(), x))
            if rank == 64:
                found[f"{name} r{rank} xa' dy"] = timed(lambda: torch.mm(low.t(), dy))
                try:
                    found[f"{name} r{rank} dyb' x in float32"] = timed(
                        lambda: torch.mm(low.t(), x, out_dtype=torch.float32)
                    )
                except (RuntimeError, TypeError, NotImplementedError) as error:
                    print("out_dtype:", str(error)[:100])
    return found


def attention(tokens: int) -> dict[str, float]:
    """Time attention kernels on views of one buffer of queries, keys and values."""
    found: dict[str, float] = {}
    aten = torch.ops.aten
    cases = [("8b", 32, 8, 128, 2048), ("8b", 32, 8, 128, 8192), ("8b", 32, 8, 128, 32_768), ("1b", 32, 8, 64, 2048),
             ("gemma", 8, 4, 256, 2048)]  # fmt: skip
    for name, heads, keys, width, length in cases:
        b = max(1, tokens // length)
        qkv = torch.randn(b, length, heads + 2 * keys, width, device="cuda", dtype=torch.bfloat16)
        q, k, v = (part.transpose(1, 2) for part in qkv.split([heads, keys, keys], dim=2))
        flops = 2 * b * heads * length * length * width * 1e-9
        label = f"{name} s={length} b={b} "
        scale = width**-0.5
        try:

            def cudnn():
                return aten._scaled_dot_product_cudnn_attention(
                    q, k, v, None, True, 0.0, True, False, scale=scale
                )

            out = cudnn()
            do = torch.randn_like(out[0])
            print(label, "cudnn out strides", out[0].stride(), out[1].shape, out[1].dtype)
            ms = timed(cudnn, 8)
            found[label + "cudnn fwd TFLOP/s"] = flops / ms

            def back():
                return aten._scaled_dot_product_cudnn_attention_backward(
                    do, q, k, v, out[0], out[1], out[6], out[7], None, out[2], out[3], out[4], out[5], 0.0, True,
                    scale=scale,
                )  # fmt: skip

            grads = back()
            print(label, "cudnn grad strides", [g.stride() for g in grads], [g.shape for g in grads])
            ms = timed(back, 8)
            found[label + "cudnn bwd TFLOP/s"] = 2.5 * flops / ms
        except (RuntimeError, TypeError) as error:
            print(label, "cudnn:", str(error)[:300])
        flat = qkv.view(b * length, heads + 2 * keys, width)
        fq, fk, fv = flat.split([heads, keys, keys], dim=1)
        starts = torch.arange(0, b * length + 1, length, device="cuda", dtype=torch.int32)
        for window in (None, 1024):
            more = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
            try:

                def flash():
                    return aten._flash_attention_forward(
                        fq, fk, fv, starts, starts, length, length, 0.0, True, False, scale=scale, **more
                    )

                out = flash()
                do = torch.randn_like(out[0])
                ms = timed(flash, 8)
                found[label + f"flash varlen fwd window {window} TFLOP/s"] = flops / ms

                def flash_back():
                    return aten._flash_attention_backward(
                        do, fq, fk, fv, out[0], out[1], starts, starts, length, length, 0.0, True, out[2], out[3],
                        scale=scale, **more,
                    )  # fmt: skip

                flash_back()
                ms = timed(flash_back, 8)
                found[label + f"flash varlen bwd window {window} TFLOP/s"] = 2.5 * flops / ms
            except (RuntimeError, TypeError) as error:
                print(label, "flash:", str(error)[:300])
        if length > 8192:
            continue  # cuDNN 9 reads beyond its buffers there: illegal memory access
        try:

            def varlen():
                return aten._cudnn_attention_forward(
                    fq, fk, fv, None, starts, starts, length, length, True, 0.0, True, False, scale=scale
                )

            out = varlen()
            do = torch.randn_like(out[0])
            found[label + "cudnn varlen fwd TFLOP/s"] = flops / timed(varlen, 8)

            def varlen_back():
                return aten._cudnn_attention_backward(
                    do, fq, fk, fv, out[0], out[1], out[6], out[7], None, starts, starts, length, length, 0.0, True,
                    scale=scale,
                )  # fmt: skip

            varlen_back()
            found[label + "cudnn varlen bwd TFLOP/s"] = 2.5 * flops / timed(varlen_back, 8)
        except (RuntimeError, TypeError, AttributeError) as error:
            print(label, "cudnn varlen:", str(error)[:300])
    return found


def copies(tokens: int) -> dict[str, float]:
    """Time copies to and from main memory alone, and what they cost products that run beside them."""
    found = {}
    there = torch.randn(tokens, 6144, device="cuda", dtype=torch.bfloat16)
    import time

    began = time.perf_counter()
    here = torch.empty(tokens, 6144, dtype=torch.bfloat16, pin_memory=True)
    found["pinning 201 MB ms"] = (time.perf_counter() - began) * 1e3
    size = there.numel() * 2e-6
    found["to host GB/s"] = size / timed(lambda: here.copy_(there, non_blocking=True))
    found["to device GB/s"] = size / timed(lambda: there.copy_(here, non_blocking=True))
    side = torch.cuda.Stream()
    x, weight = table((tokens, 4096)), table((28_672, 4096))
    alone = timed(lambda: torch.mm(x, weight.t()))
    for name, copy in (
        ("to host", lambda: here.copy_(there, non_blocking=True)),
        ("to device", lambda: there.copy_(here, non_blocking=True)),
    ):
        with torch.cuda.stream(side):
            for _ in range(40):
                copy()
        found[f"product beside copies {name} ms"] = timed(lambda: torch.mm(x, weight.t()), 10)
        torch.cuda.synchronize()
    found["product alone ms"] = alone
    out = torch.empty(tokens, 28_672, device="cuda", dtype=torch.bfloat16)
    ms = timed(lambda: torch.mm(x, weight.t(), out=out), 400)
    found["product for seconds on end TFLOP/s"] = 2e-9 * tokens * 4096 * 28_672 / ms
    return found


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
        results[part] = PARTS[part](options.tokens)
        for name, value in results[part].items():
            print(f"{part:10} {name:55} {value:9.3f}", flush=True)
        (options.out / "micro.json").write_text(json.dumps(results, indent=1))
        torch.cuda.empty_cache()
    print(torch.__version__, torch.cuda.get_device_name(), torch.backends.cudnn.version(), file=sys.stderr)


if __name__ == "__main__":
    main()
