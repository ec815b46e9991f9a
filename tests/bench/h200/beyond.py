"""Checks of the fused kernels that only a large GPU can make: past 2^31 numbers, and bitsandbytes' own kernels' bits.

Used by `tests.bench.h200.kernels`.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from core.kernels import glu, nf4, rms_norm, rope
from core.kernels import linear_cross_entropy as cross
from core.kernels.glu import reference as glu_plain
from core.kernels.linear_cross_entropy import reference as cross_plain
from core.kernels.nf4 import reference as nf4_plain
from core.kernels.rms_norm import reference as rms_plain
from core.kernels.rope import reference as rope_plain

LAST = 64
"""Rows at the far end that are compared."""
Found = tuple[bool, str]


def checks() -> Iterator[dict[str, Any]]:
    """Run every check; one that fails does not stop the others."""
    for check in (norm, unit, unit_in_place, rotation, rotation_back, loss, weight, bits):
        row: dict[str, Any] = {
            "name": f"beyond 2^31: {check.__name__}" if check is not bits else "bitsandbytes' bits"
        }
        torch.cuda.empty_cache()
        try:
            right, note = check()
            row |= {"right": right, "note": note}
        except Exception as error:  # noqa: BLE001
            row |= {"right": False, "failed": f"{type(error).__name__}: {error}"[:400]}
        yield row


def packed(rows: int, columns: int, nested: bool = True) -> nf4.Packed:
    """Draw a weight of four bits without bitsandbytes."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random_bytes(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count,), device="cuda", dtype=torch.uint8, generator=generator)

    blocks = -(-rows * columns // 64)
    code = torch.linspace(-1, 1, 16, device="cuda").sign() * torch.linspace(-1, 1, 16, device="cuda") ** 2
    data = random_bytes((rows * columns + 1) // 2)
    if not nested:
        return nf4.Packed(data, torch.rand(blocks, device="cuda"), code, 64, (rows, columns), torch.bfloat16)
    inner = (torch.rand(-(-blocks // 256), device="cuda"), torch.linspace(-1, 1, 256, device="cuda"))
    offset = torch.tensor(1.5, device="cuda")
    return nf4.Packed(
        data, random_bytes(blocks), code, 64, (rows, columns), torch.bfloat16, *inner, 256, offset
    )


def peer(weight: nf4.Packed) -> Callable[[], torch.Tensor]:
    """Give bitsandbytes' own way to unpack a weight."""
    from bitsandbytes import functional

    inner, kind = None, {"shape": weight.shape, "blocksize": 64, "quant_type": "nf4", "dtype": weight.dtype}
    if weight.nested_absmax is not None:
        inner = functional.QuantState(
            weight.nested_absmax, code=weight.nested_code, blocksize=256, dtype=torch.float32
        )
    state = functional.QuantState(weight.absmax, code=weight.code, offset=weight.offset, state2=inner, **kind)
    return lambda: functional.dequantize_4bit(weight.data.view(-1, 1), state)


def rows(n: int, width: int) -> torch.Tensor:
    """Make a matrix of more than 2^31 bfloat16 numbers: zeros but for the last rows."""
    assert n * width > 1 << 31
    x = torch.zeros(n, width, device="cuda", dtype=torch.bfloat16)
    x[-LAST:].normal_()
    return x


def close(found: torch.Tensor, exact: torch.Tensor, allowed: float = 4e-3) -> Found:
    """Compare results by their relative Frobenius error."""
    error = ((found.float() - exact.float()).norm() / exact.float().norm()).item()
    return error < allowed, f"error {error:.2e}"


def both(*found: Found) -> Found:
    """Join verdicts."""
    return all(right for right, _ in found), ", ".join(note for _, note in found)


def norm() -> Found:
    """RMS norm, forward and backward."""
    x = rows(600_000, 4096)
    weight = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    y, rstd = rms_norm.rms_norm(x, weight, 1e-5)
    end = x[-LAST:]
    exact, _ = rms_plain.rms_norm(end, weight, 1e-5)
    dx = rms_norm.rms_norm_backward(y, x, weight, rstd, out=y.clone())
    back = rms_plain.rms_norm_backward(y[-LAST:], end, weight, rstd[-LAST:])
    untouched = not y[:-LAST].any().item() and not dx[:-LAST].any().item()
    return both(close(y[-LAST:], exact), close(dx[-LAST:], back), (untouched, "zeros stay"))


def unit() -> Found:
    """Gated unit, forward."""
    gate_up = rows(80_000, 28_672)
    h = glu.glu(gate_up, "silu")
    return both(
        close(h[-LAST:], glu_plain.glu(gate_up[-LAST:], "silu")), (not h[:-LAST].any().item(), "zeros stay")
    )


def unit_in_place() -> Found:
    """Gated unit, backward, both results over their inputs."""
    gate_up = rows(80_000, 28_672)
    dh = torch.zeros(80_000, 14_336, device="cuda", dtype=torch.bfloat16)
    dh[-LAST:].normal_()
    exact_h, exact = glu_plain.glu_backward(dh[-LAST:].clone(), gate_up[-LAST:].clone(), "silu")
    glu.glu_backward(dh, gate_up, "silu", h_out=dh, out=gate_up)
    stay = not dh[:-LAST].any().item() and not gate_up[:-LAST].any().item()
    return both(close(dh[-LAST:], exact_h), close(gate_up[-LAST:], exact), (stay, "zeros stay"))


def _angles(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 1e4 ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(4096).float(), frequencies).repeat(1, 2)
    return angles.cos().cuda(), angles.sin().cuda()


def rotation() -> Found:
    """Rotary embedding, in place."""
    qkv, heads = rows(400_000, 6144), rope.Heads(32, 8, 128)
    cos, sin = _angles(128)
    positions = torch.arange(len(qkv), device="cuda") % 4096
    exact = rope_plain.rope(qkv[-LAST:].clone(), cos, sin, positions[-LAST:], heads)
    rotated = rope.rope(qkv, cos, sin, positions, heads)
    return both(close(rotated[-LAST:], exact), (not qkv[:-LAST].any().item(), "zeros stay"))


def rotation_back() -> Found:
    """Rotary embedding, backward, gradients laid out as attention leaves them."""
    heads, n = rope.Heads(64, 8, 128), 300_000
    cos, sin = _angles(128)
    positions = torch.arange(n, device="cuda") % 4096
    grads = [torch.zeros(1, h, n, 128, device="cuda", dtype=torch.bfloat16) for h in (64, 8, 8)]
    for grad in grads:
        grad[:, :, -LAST:].normal_()
    ends = [grad[:, :, -LAST:] for grad in grads]
    exact = rope_plain.rope_backward(*ends, cos, sin, positions[-LAST:], heads)
    back = rope.rope_backward(*grads, cos, sin, positions, heads)
    return both(close(back[-LAST:], exact), (not back[:-LAST].any().item(), "zeros stay"))


def loss() -> Found:
    """Cross-entropy with all logits in one tile, against small tiles and against the definition."""
    n, v, e = 16_640, 151_936, 64
    hidden = torch.randn(n, e, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(v, e, device="cuda", dtype=torch.bfloat16) * 0.2
    targets = torch.randint(0, v, (n,), device="cuda")
    targets[::5] = -100
    whole = cross.linear_cross_entropy(hidden, weight, targets, tile_numbers=1 << 32)
    parts = cross.linear_cross_entropy(hidden, weight, targets)
    shape = cross.Shape(tile_numbers=1 << 27)
    end = (hidden[-512:].float(), weight.float(), targets[-512:])
    exact = cross_plain.linear_cross_entropy(*end, None, None, shape, True, False)
    assert whole.d_hidden is not None and parts.d_hidden is not None and exact.d_hidden is not None
    ignored = not whole.d_hidden[targets == -100].any().item()
    return both(
        close(whole.loss, parts.loss, 1e-5),
        close(whole.d_hidden, parts.d_hidden, 5e-3),
        close(whole.d_hidden[-512:], exact.d_hidden, 1e-2),
        (ignored, "ignored rows zero"),
    )


def weight() -> Found:
    """A four-bit weight of more than 2^31 numbers, in whole words and in odd columns."""
    verdicts = []
    for columns in (4096, 4095):
        count = 600_000
        blocks = -(-count * columns // 64)
        data = torch.randint(0, 256, (-(-count * columns // 2),), device="cuda", dtype=torch.uint8)
        absmax, code = torch.rand(blocks, device="cuda"), torch.linspace(-1, 1, 16, device="cuda")
        out = nf4.dequantize(nf4.Packed(data, absmax, code, 64, (count, columns), torch.bfloat16))
        # The last rows as a weight of their own: a number of rows after which a block and a byte begin.
        first = count - 128
        bytes_before, blocks_before = first * columns // 2, first * columns // 64
        end = nf4.Packed(
            data[bytes_before:], absmax[blocks_before:], code, 64, (128, columns), torch.bfloat16
        )
        assert first % 64 == 0
        verdicts.append((torch.equal(out[first:], nf4_plain.dequantize(end)), f"{columns} columns"))
        del out
    return both(*verdicts)


def bits() -> Found:
    """Every bit of bitsandbytes' kernels on this GPU, for the fused kernels and for the definition."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return True, "not checked: bitsandbytes is not installed"
    shapes = [
        (63, 65),
        (64, 64),
        (127, 136),
        (9, 1000),
        (5, 3),
        (1, 1),
        (3, 8),
        (1001, 4095),
        (1024, 4096),
        (28_672, 4096),
    ]
    tried, wrong = 0, []
    for shape in shapes:
        for kind in ("nf4", "fp4"):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                for nested in (True, False):
                    tried += 1
                    if not _same_bits(shape, kind, dtype, nested):
                        wrong.append(f"{shape} {kind} {dtype} {nested}")
    return not wrong, f"{tried} weights compared; differing: {'; '.join(wrong) or 'none'}"


def _same_bits(shape: tuple[int, int], kind: str, dtype: torch.dtype, nested: bool) -> bool:
    from bitsandbytes import functional

    values = torch.randn(shape, device="cuda") * torch.randn(shape[0], 1, device="cuda").exp()
    data, state = functional.quantize_4bit(values.to(dtype), quant_type=kind, compress_statistics=nested)
    inner = state.state2
    extra = (inner.absmax, inner.code, inner.blocksize, state.offset) if nested else ()
    code = functional.get_4bit_type(kind, device="cuda")
    ours = nf4.Packed(data, state.absmax, code, state.blocksize, shape, dtype, *extra)
    theirs = functional.dequantize_4bit(data, state)
    unpackers: list[Callable[[nf4.Packed], torch.Tensor]] = [nf4.dequantize, nf4_plain.dequantize]
    return all(torch.equal(unpack(ours), theirs) for unpack in unpackers)
