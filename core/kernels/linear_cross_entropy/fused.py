"""Output layer and cross-entropy: cuBLAS for the two products, one Triton program per token for all between."""

# Kernels are a species of their own: Triton types the arguments.
# ruff: noqa: ANN001, ANN202

import torch
import triton
import triton.language as tl

from core.kernels.linear_cross_entropy.reference import Outcome, Shape, tiles
from core.kernels.products import multiply

SCALED = 4096
"""Numbers of a gradient that one program scales."""


@triton.jit
def _tanh(x):
    """Compute tanh without losing small arguments to 1 - exp."""
    t = tl.exp(-2.0 * tl.abs(x))
    large = tl.where(x < 0.0, t - 1.0, 1.0 - t) / (1.0 + t)
    s = x * x
    # Taylor series to x^9: relative error below 1e-8 where |x| < 1/4.
    small = x + x * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
    return tl.where(s < 0.0625, small, large)


@triton.jit
def _log1p(x):
    """Compute log(1 + x) for x >= 0 without losing a small x to the 1."""
    series = x * (1.0 - x * (0.5 - x * (1 / 3 - x * 0.25)))
    return tl.where(x < 0.01, series, tl.log(1.0 + x))


@triton.jit
def _number(place, here):
    """Load as float32; 0 where there is nothing. Whole tiles pass no mask, which keeps their loads vectors."""
    x = tl.load(place) if here is None else tl.load(place, mask=here, other=0.0)
    return x.to(tl.float32)


@triton.jit
def _logits(line, bias, column, here, scale, softcap, capped: tl.constexpr, scaled: tl.constexpr):
    """Load products and make logits of them in float32; -inf past the end."""
    x = _number(line + column, here)
    if bias is not None:
        x += _number(bias + column, here)
    if scaled:
        x *= scale
    if capped:
        x = softcap * _tanh(x / softcap)
    if here is not None:
        x = tl.where(here, x, float("-inf"))
    return x


@triton.jit
def _gather(high, total, x, others):
    """Fold a tile [lanes, vector] into each lane's running maximum and its sum of exponentials without the target."""
    top = tl.maximum(high, tl.max(x, axis=1))
    # A lane that has seen nothing stays at -inf; the subtraction must not make a NaN of it.
    base = tl.where(top == float("-inf"), 0.0, top)
    e = tl.where(others, tl.exp(x - base[:, None]), 0.0)
    return top, total * tl.exp(high - base) + tl.sum(e, axis=1)


@triton.jit
def _spread(line, bias, column, here, target, high, inverse, rest, factor, scale, softcap,
            capped: tl.constexpr, scaled: tl.constexpr):  # fmt: skip
    """Overwrite products by the gradient of the loss."""
    y = _logits(line, bias, column, here, scale, softcap, capped, scaled)
    # The target's p - 1 is minus the others' share, exactly; 1 - p would be lost for a confident row.
    d = tl.where(column == target, -rest, tl.exp(y - high)) * inverse * factor
    if capped:
        d *= (1.0 - (y / softcap)) * (1.0 + (y / softcap))
    tl.store(line + column, d.to(line.dtype.element_ty), mask=here)


@triton.jit
def _erase(line, classes, lanes: tl.constexpr, vector: tl.constexpr):
    """Write zeros over a row of products."""
    column = tl.arange(0, lanes)[:, None] * vector + tl.arange(0, vector)[None, :]
    zero = tl.zeros((lanes, vector), line.dtype.element_ty)
    for start in range(0, classes, lanes * vector):
        tl.store(line + start + column, zero, mask=start + column < classes)


@triton.jit
def _sums(line, bias, target, classes, scale, softcap,
          capped: tl.constexpr, scaled: tl.constexpr, lanes: tl.constexpr, vector: tl.constexpr):  # fmt: skip
    """Return a row's largest logit m, and the sum of exp(x - m) over all but the target."""
    step: tl.constexpr = lanes * vector
    column = tl.arange(0, lanes)[:, None] * vector + tl.arange(0, vector)[None, :]
    whole = classes // step * step
    highs = tl.full((lanes,), float("-inf"), tl.float32)
    totals = tl.zeros((lanes,), tl.float32)
    for start in range(0, whole, step):
        x = _logits(line, bias, start + column, None, scale, softcap, capped, scaled)
        highs, totals = _gather(highs, totals, x, start + column != target)
    if whole < classes:
        here = whole + column < classes
        x = _logits(line, bias, whole + column, here, scale, softcap, capped, scaled)
        highs, totals = _gather(highs, totals, x, here & (whole + column != target))
    high = tl.max(highs, axis=0)
    return high, tl.sum(totals * tl.exp(highs - high), axis=0)


@triton.jit
def _losses(
    products, targets, bias, weights, losses, classes, stride, scale, softcap, ignore_index,
    capped: tl.constexpr, scaled: tl.constexpr, grad: tl.constexpr, lanes: tl.constexpr, vector: tl.constexpr,
):  # fmt: skip
    """Compute a token's loss and, in place of its products, the loss's gradient."""
    row = tl.program_id(0)
    line = products + row.to(tl.int64) * stride
    target = tl.load(targets + row)
    factor = tl.load(weights + row).to(tl.float32) if weights is not None else 1.0
    if (target == ignore_index) | (factor == 0.0):
        tl.store(losses + row, 0.0)
        if grad:
            _erase(line, classes, lanes, vector)
        return
    # A class that does not exist poisons the loss: there is nobody to raise an error here.
    exists = (target >= 0) & (target < classes)
    factor = tl.where(exists, factor, float("nan"))
    target = tl.where(exists, target, 0).to(tl.int32)
    high, rest = _sums(line, bias, target, classes, scale, softcap, capped, scaled, lanes, vector)
    own = _logits(line, bias, target, None, scale, softcap, capped, scaled)
    # loss = log(sum) - own; with the target on top that is log(1 + rest), whose small values matter.
    peak = tl.exp(own - high)
    loss = tl.where(own == high, _log1p(rest), (high - own) + tl.log(peak + rest))
    tl.store(losses + row, loss * factor)
    if grad:
        inverse = 1.0 / (peak + rest)
        if scaled:
            factor *= scale
        # Every lane must have read the target's product before one of them overwrites it.
        tl.debug_barrier()
        step: tl.constexpr = lanes * vector
        column = tl.arange(0, lanes)[:, None] * vector + tl.arange(0, vector)[None, :]
        whole = classes // step * step
        for start in range(0, whole, step):
            _spread(line, bias, start + column, None, target, high, inverse, rest, factor, scale, softcap,
                    capped, scaled)  # fmt: skip
        if whole < classes:
            _spread(line, bias, whole + column, whole + column < classes, target, high, inverse, rest, factor,
                    scale, softcap, capped, scaled)  # fmt: skip


@triton.jit
def _scale(gradient, factor, result, count, numbers: tl.constexpr):
    # Triton has to know that the count is a multiple of 16: else every number is loaded alone.
    place = tl.program_id(0).to(tl.int64) * numbers + tl.arange(0, numbers)
    x = tl.load(gradient + place, mask=place < count, other=0.0).to(tl.float32)
    x *= tl.load(factor).to(tl.float32)
    tl.store(result + place, x.to(result.dtype.element_ty), mask=place < count)


def scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply by a number on the GPU; see `core.kernels.linear_cross_entropy`."""
    gradient = gradient.contiguous()
    result = torch.empty_like(gradient)
    count = gradient.numel()
    if count:
        _scale[(triton.cdiv(count, SCALED),)](gradient, factor, result, count, SCALED, num_warps=4)
    return result


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    shape: Shape,
    need_grad: bool,
    need_weight_grad: bool,
) -> Outcome:
    """Compute the summed cross-entropy and its gradients; see `core.kernels.linear_cross_entropy`."""
    (n, e), v = hidden.shape, weight.shape[0]
    cuts = tiles(n, v, shape.tile_numbers)
    targets = targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    products = _products(hidden, max((stop - start for start, stop in cuts), default=0), v)
    losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty(n, e, dtype=hidden.dtype, device=hidden.device) if need_grad else None
    d_weight = torch.zeros(v, e, dtype=torch.float32, device=hidden.device) if need_weight_grad else None
    for start, stop in cuts:
        rows, tile = hidden[start:stop], products[: stop - start]
        multiply(rows, weight.T, out=tile)
        label_weights = None if weights is None else weights[start:stop]
        to_losses(
            tile,
            targets[start:stop],
            bias,
            label_weights,
            losses[start:stop],
            shape,
            need_grad or need_weight_grad,
        )
        if d_hidden is not None:
            multiply(tile, weight, out=d_hidden[start:stop])
        if d_weight is not None:
            d_weight += tile.T @ rows
    return Outcome(losses.sum(), d_hidden, d_weight)


def _products(hidden: torch.Tensor, rows: int, classes: int) -> torch.Tensor:
    """Allocate a tile of products [rows, classes] whose rows begin on 128 bytes, so that vector loads stay whole."""
    padded = triton.cdiv(classes, 64) * 64
    return torch.empty(rows, padded, dtype=hidden.dtype, device=hidden.device)[:, :classes]


def to_losses(
    products: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    losses: torch.Tensor,
    shape: Shape,
    grad: bool,
) -> None:
    """Turn products into losses and, in their own place, into gradients.

    Args:
        products: hidden @ weight.T [n, v], row-strided; overwritten when `grad`.
        targets: Classes [n].
        bias: Bias [v], or None.
        weights: Factors of the losses [n], or None.
        losses: Where the weighted losses go [n] float32.
        shape: How logits are made.
        grad: Whether the gradient with regard to the products is wanted.
    """
    rows, classes = products.shape
    vector = 16 // products.element_size()
    lanes, warps = lanes_and_warps(classes, vector)
    _losses[(rows,)](
        products, targets, bias, weights, losses, classes, products.stride(0), shape.scale, shape.softcap or 0.0,
        shape.ignore_index, shape.softcap is not None, shape.scale != 1.0, grad, lanes, vector, num_warps=warps,
    )  # fmt: skip


def lanes_and_warps(classes: int, vector: int) -> tuple[int, int]:
    """Choose the lanes that each take a vector of a row at once, and the warps they are spread over.

    On long rows 32 warps: one program fills a multiprocessor, so that the rows in flight stay in the L2 cache until
    the second pass reads them again.
    """
    warps = 32 if classes >= 32768 else 8
    return min(warps * 64, triton.next_power_of_2(triton.cdiv(classes, vector))), warps
