"""What the choice of cuBLASLt's algorithm is worth: every one it offers, under sustained load, beside torch.mm.

    python -m tests.bench.h200.products OUT [--seconds 90] [--only 8b]

A warm GPU runs at its power limit, where another algorithm wins than in a short run: each gets two turns of a fifth of
a second, between turns of torch.mm. The star marks what ``core.kernels.products`` chooses.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from core.kernels.products import cublaslt
from core.kernels.products.tiles import TILES, fullness

TOKENS = 16_384
TURN = 0.2
"""Seconds."""


class Shape(NamedTuple):
    """A product [t, k] by the transpose of [n, k] (forward) or by [k, n] (backward)."""

    name: str
    n: int
    k: int
    is_forward: bool
    t: int = TOKENS


def layer(name: str, e: int, q: int, kv: int, f: int, t: int = TOKENS) -> list[Shape]:
    """List the products of a decoder layer of width e with 64 extra columns."""
    return [
        Shape(f"{name} gate_up", 2 * f, e + 64, True, t), Shape(f"{name} gate_up back", e + 64, 2 * f, False, t),
        Shape(f"{name} down", e, f + 64, True, t), Shape(f"{name} down back", f, e + 64, False, t),
        Shape(f"{name} qkv", q + 2 * kv, e + 64, True, t), Shape(f"{name} qkv back", e, q + 2 * kv + 64, False, t),
        Shape(f"{name} o", e, q, True, t), Shape(f"{name} o back", q, e + 64, False, t),
    ]  # fmt: skip


SHAPES = (
    *layer("8b", 4096, 4096, 1024, 14336), *layer("4b", 2560, 4096, 1024, 9728),
    *layer("1b", 2048, 2048, 512, 8192), *layer("gemma-1b", 1152, 1024, 256, 6912),
    *layer("8b of 4096", 4096, 4096, 1024, 14336, 4096),
)  # fmt: skip


def timed(act: Callable[[], object], seconds: float) -> float:
    """Return the milliseconds of one call, over as many as fit."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    act()
    begin.record()
    act()
    end.record()
    torch.cuda.synchronize()
    count = max(2, int(seconds * 1e3 / max(begin.elapsed_time(end), 1e-3)))
    begin.record()
    for _ in range(count):
        act()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / count


def compare(shape: Shape) -> list[dict[str, object]]:
    """Time all that is offered for a product; print and return a line for each."""
    x = torch.randn(shape.t, shape.k, device="cuda", dtype=torch.bfloat16)
    held = torch.randn((shape.n, shape.k) if shape.is_forward else (shape.k, shape.n), device="cuda") * 0.02
    w = held.bfloat16().t() if shape.is_forward else held.bfloat16()
    out = torch.empty(shape.t, shape.n, device="cuda", dtype=torch.bfloat16)
    plain = lambda: torch.mm(x, w, out=out)  # noqa: E731
    expected = plain().clone()
    key = cublaslt.key_of(x, w, out)
    offered, chosen = cublaslt.offers(key), cublaslt.prepared(key)
    assert chosen is not None
    timed(plain, 2 * TURN)
    turns: list[list[float]] = [[] for _ in offered]
    base: list[float] = []
    for _ in range(2):
        for number, each in enumerate(offered):
            if number % 3 == 0:
                base.append(timed(plain, TURN))
            turns[number].append(timed(lambda ready=each: cublaslt.run(ready, x, w, out), TURN))
    mm, processors = statistics.median(base), torch.cuda.get_device_properties(0).multi_processor_count
    flops = 2e-9 * shape.t * shape.n * shape.k
    print(f"{shape.name}: torch.mm {mm:.3f} ms, {flops / mm:.0f} TFLOP/s", flush=True)
    lines = []
    for each, times in sorted(zip(offered, turns, strict=True), key=lambda pair: sum(pair[1])):
        cublaslt.run(each, x, w, out)
        tile, ms = cublaslt.tile_of(each), statistics.mean(times)
        full = fullness(TILES[tile], shape.n, shape.t, processors) if tile in TILES else 0.0
        error = float((out.float() - expected.float()).norm() / expected.float().norm())
        is_chosen = bytes(each.offer) == bytes(chosen.offer)
        lines.append(
            {"shape": shape.name, "mm": mm, "ms": ms, "tile": tile, "full": full, "chosen": is_chosen}
        )
        print(
            f" {'*' if is_chosen else ' '} {ms:.3f} ms {ms / mm - 1:+.1%} tile {tile} full {full:.3f} error {error:.0e}"
            f" workspace {each.offer.workspace}"
        )
    return lines


def main() -> None:
    """Time what there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, lines = time.monotonic(), []
    torch.mm(*[torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)] * 2)
    for shape in SHAPES:
        if time.monotonic() - began < options.seconds and shape.name.startswith(options.only):
            lines += compare(shape)
            (options.out / "products.json").write_text(json.dumps(lines, indent=1))
    gains = [float(str(each["ms"])) / float(str(each["mm"])) - 1 for each in lines if each["chosen"]]
    print(f"chosen against torch.mm: {statistics.mean(gains):+.2%} on average, {max(gains):+.1%} at worst")


if __name__ == "__main__":
    main()
