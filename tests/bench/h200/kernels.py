"""What each fused kernel costs on one GPU against its floor, and whether it is right at the sizes it will meet.

    python -m tests.bench.h200.kernels OUT [--quick] [--sweep] [--only weights,losses]

Times are medians on the GPU with a cold L2 cache, the host's beside them; bytes are those an operator cannot avoid.
A kernel is right when it errs at most 1.5 times as much as its plain definition does at the same precision, both
against the definition in float32. Sizes past 2^31 numbers are checked too, and four-bit weights bit for bit against bitsandbytes where it is installed.
Writes OUT/kernels.json.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from core.kernels import glu, nf4, rms_norm, rope
from core.kernels import linear_cross_entropy as cross
from core.kernels.glu import reference as glu_plain
from core.kernels.linear_cross_entropy import fused as cross_fused
from core.kernels.linear_cross_entropy import reference as cross_plain
from core.kernels.nf4 import fused as nf4_fused
from core.kernels.nf4 import reference as nf4_plain
from core.kernels.rms_norm import reference as rms_plain
from core.kernels.rope import reference as rope_plain
from tests.bench.h200 import adapters
from tests.bench.h200.beyond import checks, packed, peer
from tests.bench.h200.clock import timed

PEAK = 4.3
"""TB/s that copies reach on an H200."""
EPS = 1e-5
Tensors = tuple[torch.Tensor, ...]


class Case(NamedTuple):
    """One operator at one size.

    Attributes:
        name: What it is.
        run: What is timed; its result is checked.
        plain: The definition on float32 (True) or on the operator's own precision (False).
        moved: Bytes it must move.
        work: Operations, for products of matrices.
    """

    name: str
    run: Callable[[], Tensors]
    plain: Callable[[bool], Tensors] | None
    moved: float = 0.0
    work: float = 0.0


def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Draw bfloat16 numbers on the GPU."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def widened(wide: bool, *tensors: torch.Tensor) -> Tensors:
    """Return float32 copies, or the tensors as they are."""
    return tuple(tensor.float() for tensor in tensors) if wide else tensors


def norms(n: int, e: int, offset: float) -> Iterator[Case]:
    """Give the RMS norms of several models' widths."""
    x, residual, dy, weight = draw(n, e), draw(n, e), draw(n, e), draw(e)
    _, rstd = rms_norm.rms_norm(x, weight, EPS, offset=offset)
    size = 2.0 * n * e
    yield Case(
        f"rms_norm {e}",
        lambda: rms_norm.rms_norm(x, weight, EPS, offset=offset),
        lambda wide: rms_plain.rms_norm(*widened(wide, x, weight), EPS, offset=offset),
        2 * size,
    )
    yield Case(
        f"rms_norm_backward {e} add",
        lambda: (rms_norm.rms_norm_backward(dy, x, weight, rstd, offset=offset, add=residual),),
        lambda wide: (_rms_backward(wide, dy, x, weight, rstd, residual, offset),),
        4 * size,
    )


def _rms_backward(wide: bool, *tensors: Any) -> torch.Tensor:
    *floats, offset = tensors
    dy, x, weight, rstd, add = widened(wide, *floats)
    return rms_plain.rms_norm_backward(dy, x, weight, rstd, offset=offset, add=add)


def rotations(n: int, query: int, key: int, width: int, normed: bool) -> Iterator[Case]:
    """Give the rotary embeddings of several models' heads, with and without norms over them."""
    s = min(n, 2048)
    heads = rope.Heads(query, key, width)
    qkv = draw(n, (query + 2 * key) * width)
    angles = torch.outer(torch.arange(s).float(), 1e4 ** (-torch.arange(0, width, 2).float() / width)).repeat(
        1, 2
    )
    cos, sin = angles.cos().cuda(), angles.sin().cuda()
    positions = torch.arange(n, device="cuda") % s
    extra = {"q_weight": draw(width), "k_weight": draw(width), "eps": EPS} if normed else {}
    out = torch.empty(n, (query + key) * width, device="cuda", dtype=torch.bfloat16)
    grads = [draw(n // s, s, h, width).transpose(1, 2) for h in (query, key, key)]
    size, label = 2.0 * n * width, f"{query}/{key}x{width}{' normed' if normed else ''}"
    yield Case(
        f"rope {label}",
        lambda: (rope.rope(qkv, cos, sin, positions, heads, **extra, out=out),),
        lambda wide: (_rope(wide, qkv, cos, sin, positions, heads, extra),),
        2 * size * (query + key),
    )
    raw = {"raw": qkv, **extra} if normed else {}
    yield Case(
        f"rope_backward {label}",
        lambda: (rope.rope_backward(*grads, cos, sin, positions, heads, **raw),),
        lambda wide: (_rope_backward(wide, grads, cos, sin, positions, heads, raw),),
        size * (2 * (query + 2 * key) + (query + key if normed else 0)),
    )


def _wide_extra(wide: bool, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.float() if wide and isinstance(value, torch.Tensor) else value
        for key, value in extra.items()
    }


def _rope(
    wide: bool, qkv: torch.Tensor, cos: Any, sin: Any, positions: Any, heads: Any, extra: Any
) -> torch.Tensor:
    out = torch.empty(
        len(qkv),
        (heads.query + heads.key) * heads.width,
        device="cuda",
        dtype=torch.float32 if wide else qkv.dtype,
    )
    return rope_plain.rope(
        *widened(wide, qkv), cos, sin, positions, heads, **_wide_extra(wide, extra), out=out
    )


def _rope_backward(
    wide: bool, grads: Any, cos: Any, sin: Any, positions: Any, heads: Any, raw: Any
) -> torch.Tensor:
    return rope_plain.rope_backward(
        *widened(wide, *grads), cos, sin, positions, heads, **_wide_extra(wide, raw)
    )


def units(n: int, f: int, activation: glu.Activation) -> Iterator[Case]:
    """Give the gated units of several models."""
    gate_up, dh = draw(n, 2 * f), draw(n, f)
    yield Case(
        f"glu {f} {activation}",
        lambda: (glu.glu(gate_up, activation),),
        lambda wide: (glu_plain.glu(*widened(wide, gate_up), activation),),
        6.0 * n * f,
    )
    yield Case(
        f"glu_backward {f} {activation}",
        lambda: glu.glu_backward(dh, gate_up, activation),
        lambda wide: glu_plain.glu_backward(*widened(wide, dh, gate_up), activation),
        12.0 * n * f,
    )


def weights(_: int, rows: int, columns: int, nested: bool, pad: int) -> Iterator[Case]:
    """Give the four-bit weights of an 8B model: its joined projections, one alone, one written into wider rows."""
    weight = packed(rows, columns, nested)
    out = torch.empty(rows, columns + pad, device="cuda", dtype=torch.bfloat16)[:, :columns]
    label = f"{rows}x{columns}{'' if nested else ' plain'}{f' +{pad}' if pad else ''}"
    yield Case(
        f"nf4 {label}",
        lambda: (nf4.dequantize(weight, out),),
        lambda wide: (nf4_plain.dequantize(weight._replace(dtype=torch.float32) if wide else weight),),
        rows * columns * (2.5 + (1 / 64 if nested else 4 / 64)),
    )
    if importlib.util.find_spec("bitsandbytes") is not None and not pad:
        theirs = peer(weight)
        yield Case(f"bitsandbytes {label}", lambda: (theirs(),), None, rows * columns * 2.5)


def losses(n: int, v: int, e: int) -> Iterator[Case]:
    """Give the output layers of Llama 3 and Gemma 3, whole and without their products of matrices."""
    hidden, weight = draw(n, e), draw(v, e, scale=0.02)
    targets = torch.randint(0, v, (n,), device="cuda")
    targets[: n // 4] = -100
    yield Case(
        f"linear_cross_entropy {v}x{e}",
        lambda: cross.linear_cross_entropy(hidden, weight, targets)[:2],
        lambda wide: _loss(wide, hidden, weight, targets),
        work=4.0 * n * v * e,
    )
    rows = min(n, cross_plain.tiles(n, v, cross_plain.TILE_NUMBERS)[0][1])
    yield _row_wise(f"cross entropy alone {rows}x{v}", hidden[-rows:] @ weight.T)


def _in_place(products: torch.Tensor, targets: torch.Tensor, sums: torch.Tensor) -> Tensors:
    cross_fused.to_losses(products, targets, None, None, sums, cross.Shape(), True)
    return (sums,)


def _loss(wide: bool, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Tensors:
    hidden, weight = widened(wide, hidden, weight)
    shape = cross.Shape(tile_numbers=1 << 27)
    return cross_plain.linear_cross_entropy(hidden, weight, targets, None, None, shape, True, False)[:2]  # type: ignore[return-value]


def shares(n: int, width: int, rank: int) -> Iterator[Case]:
    """Give the adapters' share of an output added to a residual."""
    return (Case(*row) for row in adapters.shares(n, width, rank))


PARTS: dict[str, tuple[Callable[..., Iterator[Case]], list[tuple[Any, ...]]]] = {
    "norms": (norms, [(4096, 0.0), (2048, 0.0), (2560, 0.0), (1152, 1.0)]),
    "rotations": (
        rotations,
        [(32, 8, 128, False), (32, 8, 64, False), (32, 8, 128, True), (4, 1, 256, True)],
    ),
    "units": (units, [(14_336, "silu"), (8192, "silu"), (9728, "silu"), (6912, "gelu_tanh")]),
    "weights": (
        weights,
        [
            (28_672, 4096, True, 0),
            (28_672, 4096, True, 64),
            (28_672, 4096, False, 0),
            (4096, 14_336, True, 0),
            (6144, 4096, True, 0),
            (4096, 4096, True, 0),
            (1024, 4096, True, 0),
        ],
    ),
    "losses": (losses, [(128_256, 4096), (151_936, 2560), (262_144, 4096), (262_144, 1152)]),
    "shares": (shares, [(4096, 64), (2560, 64), (2048, 64)]),
}
"""What is measured: shapes of Llama-3.1-8B, Llama-3.2-1B, Qwen3-4B and Gemma-3-1B, the largest first."""


def errors(case: Case) -> list[tuple[float, float]]:
    """Measure the relative error of each result of a case, beside the plain definition's."""
    if case.plain is None:
        return []
    found, same, exact = case.run(), case.plain(False), case.plain(True)
    return [(_error(a, c), _error(b, c)) for a, b, c in zip(found, same, exact, strict=True)]


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    # The norm of a difference in float32 is exact enough and takes half the memory of float64.
    return ((found.float() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def measured(case: Case, repeats: int) -> dict[str, Any]:
    """Check and time one case."""
    row: dict[str, Any] = {"name": case.name}
    try:
        pairs = errors(case)
        row["error"], row["plain_error"] = max(pairs, default=(0.0, 0.0))
        row["right"] = all(ours <= 1.5 * theirs + 1e-5 for ours, theirs in pairs)
        torch.cuda.empty_cache()
        ms, host = timed(case.run, repeats)
        row |= {
            "ms": ms,
            "host us": host,
            "bytes": case.moved,
            "TB/s": case.moved / ms * 1e-9,
            "TFLOP/s": case.work / ms * 1e-9,
        }
        row["share"] = row["TB/s"] / PEAK
    except Exception as error:  # noqa: BLE001
        row |= {"right": False, "failed": f"{type(error).__name__}: {error}"[:400]}
    return row


def swept_weights(repeats: int) -> Iterator[dict[str, Any]]:
    """Time other tile sizes of the expansion of weights."""
    weight, before = packed(28_672, 4096), (nf4_fused.WORDS, nf4_fused.WARPS)
    out = torch.empty(28_672, 4096, device="cuda", dtype=torch.bfloat16)
    for words, warps in (*itertools.product((128, 256, 512, 1024), (4, 8)), (512, 16), (2048, 8)):
        nf4_fused.WORDS, nf4_fused.WARPS = words, warps
        name = f"sweep nf4 {words} words {warps} warps"
        yield measured(
            Case(name, lambda: (nf4.dequantize(weight, out),), None, 28_672 * 4096 * 2.515625), repeats
        )
    nf4_fused.WORDS, nf4_fused.WARPS = before


def swept_losses(repeats: int) -> Iterator[dict[str, Any]]:
    """Time other tile sizes of the cross entropy."""
    original = cross_fused.lanes_and_warps
    for v in (128_256, 262_144):
        products = draw((1 << 28) // v // 128 * 128, v)
        for lanes, warps in ((256, 8), (512, 8), (512, 16), (1024, 16), (1024, 32), (2048, 32), (4096, 32)):
            cross_fused.lanes_and_warps = functools.partial(_chosen, (lanes, warps))
            yield measured(
                _row_wise(f"sweep cross entropy {v} {lanes} lanes {warps} warps", products), repeats
            )
    cross_fused.lanes_and_warps = original


SWEEPS = {"weights": swept_weights, "losses": swept_losses}
"""Other tile sizes of the kernels whose best nobody can compute."""


def _chosen(pair: tuple[int, int], *_: int) -> tuple[int, int]:
    return pair


def _row_wise(name: str, products: torch.Tensor) -> Case:
    targets = torch.zeros(len(products), device="cuda", dtype=torch.int64)
    sums = torch.empty(len(products), device="cuda")
    return Case(name, lambda: _in_place(products, targets, sums), None, 6.0 * products.numel())


def line(row: dict[str, Any]) -> str:
    """Write one line of the table."""
    if "failed" in row:
        return f"{row['name']:44s} FAILED {row['failed']}"
    if "ms" not in row:
        return f"{row['name']:44s} {'right' if row['right'] else 'WRONG'}  {row.get('note', '')}"
    rate = (
        f"{row['TFLOP/s']:7.0f} TFLOP/s" if row["TFLOP/s"] else f"{row['TB/s']:7.2f} TB/s {row['share']:4.0%}"
    )
    verdict = "" if row["right"] else "  WRONG"
    host = f"host {row['host us']:5.0f} us"
    errs = f"{row['error']:.2e} / {row['plain_error']:.2e}"
    return f"{row['name']:44s} {row['ms']:9.4f} ms {rate:18s} {host} {errs}{verdict}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, short timings")
    parser.add_argument("--sweep", action="store_true", help="other tile sizes too")
    parser.add_argument(
        "--only", default="", help="comma-separated: norms,rotations,units,weights,losses,shares,checks"
    )
    arguments = parser.parse_args()
    n, repeats = (2048, 20) if arguments.quick else (16_384, 100)
    torch.manual_seed(0)
    chosen = [part for part in arguments.only.split(",") if part]
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(line(row), flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "kernels.json").write_text(json.dumps(rows, indent=1))

    for name, (part, shapes) in PARTS.items():
        for shape in shapes if not chosen or name in chosen else ():
            for case in part(n, *shape):
                keep(measured(case, repeats))
            torch.cuda.empty_cache()
    if not chosen or "checks" in chosen:
        for row in checks():
            keep(row)
    for name, sweep in SWEEPS.items() if arguments.sweep else ():
        for row in sweep(repeats) if not chosen or name in chosen else ():
            keep(row)
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, {n} tokens"
    )
    print(*(line(row) for row in rows), sep="\n")
    wrong = [row["name"] for row in rows if not row["right"]]
    print(f"{len(rows)} rows, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
