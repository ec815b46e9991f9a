"""Gated linear units in Triton: one elementwise pass over the rows, each number read and written once."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN201, ANN202, N803

import functools

import torch
import triton
import triton.language as tl

from core.kernels.glu.reference import TANH_CUBIC, TANH_SCALE, Activation

# Triton reads globals only as constants of its own kind; its interpreter wants them to the right of a tensor.
CUBIC = tl.constexpr(TANH_CUBIC)
DOUBLE_SCALE = tl.constexpr(2.0 * TANH_SCALE)
SLOPE_CUBIC = tl.constexpr(6.0 * TANH_SCALE * TANH_CUBIC)
MINUS_LOG2E = tl.constexpr(-1.4426950408889634)
MINUS_DOUBLE_SCALE = tl.constexpr(-2.0 * TANH_SCALE * 1.4426950408889634)
ROOT_HALF = tl.constexpr(0.7071067811865476)
MINUS_HALF_LOG2E = tl.constexpr(-0.7213475204444817)
DENSITY = tl.constexpr(0.3989422804014327)


def glu(gate_up: torch.Tensor, activation: Activation, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return activation(gate) * up [n, f]; one launch."""
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = torch.empty((n, width), dtype=gate_up.dtype, device=gate_up.device)
    block, blocks, warps = _tile(width)
    _glu_forward[(n * blocks,)](
        gate_up, out, gate_up.stride(0), out.stride(0), width, blocks,
        ACTIVATION=activation, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


def glu_backward(
    dh: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation,
    *,
    h_out: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h [n, f] and the gradient of gate_up [n, 2f]; one launch.

    A program reads its stretch of dh, gate and up before it writes the same stretch: either result may lie on its input.
    """
    n, width = dh.shape
    if h_out is None:
        h_out = torch.empty((n, width), dtype=dh.dtype, device=dh.device)
    if out is None:
        out = torch.empty((n, 2 * width), dtype=gate_up.dtype, device=gate_up.device)
    block, blocks, warps = _tile(width)
    _glu_backward[(n * blocks,)](
        dh, gate_up, h_out, out, dh.stride(0), gate_up.stride(0), h_out.stride(0), out.stride(0), width, blocks,
        ACTIVATION=activation, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return h_out, out


@functools.cache
def _tile(width: int) -> tuple[int, int, int]:
    """Return columns per program, programs per row, and warps; stretches that divide the row waste no lanes."""
    block = next((size for size in (2048, 1024) if width % size == 0), 1024)
    return block, -(-width // block), block // 256


@triton.jit
def share_of(gate, one, ACTIVATION: tl.constexpr):
    """Return the factor that the activation lets through, activation(gate) = gate * share, and the power in it.

    One is 1. Where products follow it is an argument of the kernel, which the compiler knows nothing about: else it
    computes everything once more for the products, in the layout that they want.
    """
    if ACTIVATION == "silu":
        power = tl.exp2(gate * MINUS_LOG2E)
        # The square of a root's reciprocal: seven instructions fewer than a division.
        root = tl.rsqrt(one + power)
        share = root * root
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the sigmoid of 2z: no tanh needed, nothing overflows to NaN, nothing cancels.
        power = tl.exp2(tl.minimum(gate * MINUS_DOUBLE_SCALE * (one + gate * gate * CUBIC), 126.0))
        root = tl.rsqrt(one + power)
        share = root * root
    else:
        tl.static_assert(ACTIVATION == "gelu")
        power = 0.0
        share = 0.5 * (one + tl.erf(gate * ROOT_HALF))
    return share, power


@triton.jit
def slope_of(gate, share, power, ACTIVATION: tl.constexpr):
    """Return the activation's derivative share + gate * share'."""
    activated = gate * share
    if ACTIVATION == "silu":
        slope = share + activated * (1.0 - share)
    elif ACTIVATION == "gelu_tanh":
        # power * share, not 1 - share: its last digit would be multiplied by gate cubed.
        slope = share + activated * (DOUBLE_SCALE + gate * gate * SLOPE_CUBIC) * (power * share)
    else:
        slope = share + gate * (tl.exp2(gate * gate * MINUS_HALF_LOG2E) * DENSITY)
    return slope


@triton.jit(do_not_specialize=["blocks"])
def _glu_forward(
    gate_up, h, gate_up_stride, h_stride, width, blocks, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    real = column < width
    start = gate_up + row * gate_up_stride
    gate = tl.load(start + column, mask=real, other=0.0).to(tl.float32)
    up = tl.load(start + width + column, mask=real, other=0.0).to(tl.float32)
    share, _ = share_of(gate, 1.0, ACTIVATION)
    result = gate * share * up
    tl.store(h + row * h_stride + column, result.to(h.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["blocks"])
def _glu_backward(
    dh, gate_up, h, gradient,
    dh_stride, gate_up_stride, h_stride, gradient_stride,
    width, blocks,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    real = column < width
    start = gate_up + row * gate_up_stride
    gate = tl.load(start + column, mask=real, other=0.0).to(tl.float32)
    up = tl.load(start + width + column, mask=real, other=0.0).to(tl.float32)
    upstream = tl.load(dh + row * dh_stride + column, mask=real, other=0.0).to(tl.float32)
    share, power = share_of(gate, 1.0, ACTIVATION)
    activated = gate * share
    gate_gradient = upstream * up * slope_of(gate, share, power, ACTIVATION)
    up_gradient = upstream * activated
    target = gradient + row * gradient_stride
    tl.store(h + row * h_stride + column, (activated * up).to(h.dtype.element_ty), mask=real)
    tl.store(target + column, gate_gradient.to(gradient.dtype.element_ty), mask=real)
    tl.store(target + width + column, up_gradient.to(gradient.dtype.element_ty), mask=real)
