"""Kernels that form thin products in passing, beside what they replace: a kernel, and products that read again.

    python -m tests.bench.h200.passing OUT [--quick]

One layer of Llama-3.1-8B, Qwen3-4B and Llama-3.2-1B with adapters of rank 16, in bfloat16. "before" of the gated
unit is the same kernel after a pass that adds the adapters' share; the thin products that made its inner values are
not in it. Times are medians on the GPU with a cold L2 cache. Both ways are checked against the definition in float32:
what errs more than 1.5 times as much as the old way is marked WRONG. Writes OUT/passing.json after every line.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.kernels import glu, rms_norm
from core.kernels.glu import reference as glu_plain
from core.kernels.lora_linear.group import exact_product, plus_low_rank
from core.kernels.rms_norm import reference as rms_plain
from core.models.fused.sites import Norm
from core.models.fused.sublayers import of_narrow
from tests.bench.h200.clock import timed

EPS, RANK, SPARE = 1e-5, 16, 64


class Model(NamedTuple):
    """The widths of one."""

    name: str
    hidden: int
    inner: int


MODELS = (Model("8b", 4096, 14336), Model("4b", 2560, 9728), Model("1b", 2048, 8192))


class Pair(NamedTuple):
    """A kernel and what it replaces; each returns the same tensors."""

    name: str
    new: Callable[[], tuple[Tensor, ...]]
    old: Callable[[], tuple[Tensor, ...]]
    exact: Callable[[], tuple[Tensor, ...]]
    moved: float
    """Bytes that the new one cannot but move."""


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    """Draw bfloat16 numbers on the GPU."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def wide(*tensors: Tensor) -> list[Tensor]:
    """Return float32 copies."""
    return [each.float() for each in tensors]


def norms(n: int, model: Model) -> Pair:
    """Give the backward pass of the norm before the MLP."""
    e, rank = model.hidden, 2 * RANK
    both, x, add, weight = draw(n, e + SPARE), draw(n, e), draw(n, e), draw(e)
    narrow, low_add, low_x = draw(SPARE, e, scale=e**-0.5), draw(n, SPARE), draw(n, SPARE)
    dy, low, out = both[:, :e], both[:, e:], torch.empty_like(x)
    rstd, dot = rms_plain.rms_norm(x, weight, EPS)[1], torch.randn(n, device="cuda")
    given = (dy, x, weight, rstd, dot, low, narrow)
    more: dict[str, Any] = {
        "rank": rank,
        "low_add": low_add,
        "rank_add": RANK,
        "low_x": low_x,
        "rank_x": RANK,
    }

    def old() -> tuple[Tensor, ...]:
        dx = rms_norm.rms_norm_backward_low(*given, rank=rank, add=add, out=out)
        return (
            dx, of_narrow(low[:, :rank], Norm(weight, EPS, 0.0), x, rstd),
            exact_product(add.t(), low_add[:, :RANK]), exact_product(dx.t(), low_x[:, :RANK]),
        )  # fmt: skip

    def exact() -> tuple[Tensor, ...]:
        floats = wide(dy, x, weight, rstd, dot, low, narrow, add, low_add, low_x)
        return rms_plain.rms_norm_gradients(
            *floats[:8], rank=rank, low_add=floats[8], rank_add=RANK, low_x=floats[9], rank_x=RANK
        )

    return Pair(
        f"norm {model.name}",
        lambda: rms_norm.rms_norm_gradients(*given, add, **more, out=out),
        old,
        exact,
        8.0 * n * e,
    )


def gates(n: int, model: Model) -> Pair:
    """Give the backward pass of the gated unit."""
    f = model.inner
    both, gate_up, low = draw(n, f + SPARE), draw(n, 2 * f), draw(n, SPARE)
    narrow, out = draw(SPARE, f, scale=f**-0.5), torch.empty_like(gate_up)
    dh, d_low = both[:, :f], both[:, f:]
    given: dict[str, Any] = {"low": low, "ranks": (RANK, RANK), "d_low": d_low, "rank_down": RANK}

    def old() -> tuple[Tensor, ...]:
        whole = plus_low_rank(dh, d_low[:, :RANK].contiguous(), narrow[:RANK].t().contiguous())
        return glu.glu_gradients(whole, gate_up, "silu", **given, out=out)

    def exact() -> tuple[Tensor, ...]:
        floats = given | dict(zip(("low", "d_low"), wide(low, d_low), strict=True))
        return glu_plain.glu_gradients(dh.float(), gate_up.float(), "silu", narrow=narrow.float(), **floats)

    return Pair(
        f"gate {model.name}", lambda: glu.glu_gradients(dh, gate_up, "silu", narrow=narrow, **given, out=out), old,
        exact, 10.0 * n * f,
    )  # fmt: skip


def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Return the relative error of each tensor that both have."""
    pairs = zip(found, exact, strict=False)
    return [((one.float() - other.float()).norm() / other.float().norm()).item() for one, other in pairs]


def looked_at(pair: Pair, budget: float) -> dict[str, Any]:
    """Check and time a kernel."""
    exact = pair.exact()
    new, old = (errors(each(), exact) for each in (pair.new, pair.old))
    is_right = all(one <= 1.5 * other + 1e-6 for one, other in zip(new, old, strict=False))
    del exact
    (ms, host), (old_ms, old_host) = (timed(each, budget) for each in (pair.new, pair.old))
    return {
        "name": pair.name, "right": is_right, "errors": new, "old_errors": old, "ms": ms, "old_ms": old_ms,
        "tb_s": pair.moved / ms / 1e9, "host_us": host, "old_host_us": old_host,
    }  # fmt: skip


def cases(quick: bool) -> Iterator[tuple[int, Callable[[int, Model], Pair], Model]]:
    """Give what is looked at."""
    for model in MODELS[: 1 if quick else None]:
        for n in (16384,) if quick else (16384, 4096):
            for make in (norms, gates):
                yield n, make, model


def main() -> None:
    """Look at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    found = []
    for n, make, model in cases(options.quick):
        one = {"tokens": n, **looked_at(make(n, model), 40 if options.quick else 150)}
        found.append(one)
        (options.out / "passing.json").write_text(json.dumps(found, indent=1))
        print(
            f"{one['name']:12} {n:6} {one['ms']:.4f} ms {one['tb_s']:.2f} TB/s, before {one['old_ms']:.4f}  "
            f"host {one['host_us']:.0f} us, before {one['old_host_us']:.0f}  {'right' if one['right'] else 'WRONG'}  "
            f"{' '.join(f'{each:.2e}' for each in one['errors'])}",
            flush=True,
        )
        torch.cuda.empty_cache()
    print(f"median gain {statistics.median(each['old_ms'] / each['ms'] for each in found):.2f}", flush=True)


if __name__ == "__main__":
    main()
