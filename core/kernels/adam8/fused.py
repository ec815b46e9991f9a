"""AdamW with moments of 8 bits in Triton: one launch for any number of parameters."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools
import operator
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from core.kernels.adam8.reference import BLOCK, Codes, Rates, Slot, factors_of, thresholds

BLOCKS = 4
"""Blocks of 256 numbers to a program."""
WARPS = 4
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
HOMES = tl.constexpr(6)
WIDTH = tl.constexpr(BLOCK)


class Launch:
    """One launch for a set of parameters, and the addresses it reads from the GPU's memory.

    Only what has moved is sent anew, through pinned memory: gradients, if the allocator gave them another place.
    """

    def __init__(self, codes: Codes) -> None:
        """Put the thresholds where the kernel can search them."""
        self._codes = codes
        self._trees = tree(codes.m), tree(codes.v)
        self._slots: list[Slot] = []
        self._parameters: list[int] = []
        self._gradients: list[int] = []
        self._aligned = (False, False)

    def update(self, slots: Sequence[Slot], gradients: Sequence[torch.Tensor], rates: Rates) -> None:
        """Update parameters and moments in place; see `core.kernels.adam8.Adam8.update`."""
        parameter = slots[0].parameter
        self._look_up_homes(slots)
        self._look_up_gradients(gradients)
        with torch.cuda.device_of(parameter):
            _update[(self._programs[0].numel(),)](
                self._home_table, self._gradient_table, *self._programs, *self._codes, *self._trees,
                *factors_of(rates), TYPES[parameter.dtype], TYPES[gradients[0].dtype],
                ALIGNED=all(self._aligned), BLOCKS=BLOCKS, num_warps=WARPS,
            )  # fmt: skip

    def _look_up_homes(self, slots: Sequence[Slot]) -> None:
        """Bring the addresses that stay from step to step up to date."""
        parameters = [slot.parameter.data_ptr() for slot in slots]
        same = len(slots) == len(self._slots) and all(map(operator.is_, slots, self._slots))
        if same and parameters == self._parameters:
            return
        homes = [place for slot in slots for place in _home(slot)]
        device = slots[0].parameter.device
        self._home_table = sent(homes, torch.int64, device)
        self._programs = _programs([slot.parameter.numel() for slot in slots], device)
        self._slots, self._parameters = list(slots), parameters
        # Sixteen numbers lie in one load, or in none: a length counts like an address.
        self._aligned = not any(place % 16 for place in homes), self._aligned[1]

    def _look_up_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Bring the addresses of the gradients up to date."""
        places = [gradient.data_ptr() for gradient in gradients]
        if places == self._gradients:
            return
        self._gradient_table = sent(places, torch.int64, gradients[0].device)
        self._gradients = places
        self._aligned = self._aligned[0], not any(place % 16 for place in places)


def tree(code: torch.Tensor) -> torch.Tensor:
    """Lay the thresholds out as a search tree: the children of node i are 2 i and 2 i + 1.

    Neighbours in a sorted table lie apart by powers of two where a search begins, in one bank of the memory;
    the levels of a tree lie together.

    Args:
        code: [256] ascending float32.

    Returns:
        [256] float32; the root is node 1.
    """
    return thresholds(code)[sent(_tree_order(), torch.int64, code.device)]


@functools.cache
def _tree_order() -> list[int]:
    """List the threshold of every node; node 0 is none."""
    order = [0]
    for level in range(8):
        first, apart = (128 >> level) - 1, 256 >> level
        order += range(first, 255, apart)
    return order


def sent(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Bring numbers to a device without waiting for it.

    The pinned memory is the allocator's, which gives it to nobody else before the copy is done.
    """
    numbers = torch.tensor(values, dtype=dtype)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def _home(slot: Slot) -> tuple[int, int, int, int, int, int]:
    """List a slot's addresses and its length."""
    p, m, v, m_scale, v_scale = slot
    return p.data_ptr(), m.data_ptr(), v.data_ptr(), m_scale.data_ptr(), v_scale.data_ptr(), p.numel()


def _programs(lengths: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Say which parameter each program updates, and from which block of it on."""
    counts = [-(-length // BLOCK) for length in lengths]
    owners = [number for number, count in enumerate(counts) for _ in range(0, count, BLOCKS)]
    firsts = [first for count in counts for first in range(0, count, BLOCKS)]
    return sent(owners, torch.int32, device), sent(firsts, torch.int32, device)


@triton.jit
def _pointer(table, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Read an address."""
    pointer = tl.load(table).to(tl.pointer_type(KIND))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _packed(x, tree):
    """Return the codes of [blocks, 256] numbers, and the scales of their blocks."""
    scale = tl.max(tl.abs(x), axis=1)
    share = x / tl.where(scale == 0.0, 1.0, scale)[:, None]
    node = tl.full(x.shape, 1, tl.int32)
    for _ in tl.static_range(8):
        node = 2 * node + (share >= tl.load(tree + node)).to(tl.int32)
    return (node - 256).to(tl.uint8), scale


@triton.jit
def _update(
    homes, gradients, owners, firsts, m_values, v_values, m_tree, v_tree,
    beta1, rest1, beta2, rest2, kept, rate, eps,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Update some blocks of one parameter."""
    owner = tl.load(owners + tl.program_id(0)).to(tl.int64)
    first = tl.load(firsts + tl.program_id(0)).to(tl.int64)
    home = homes + owner * HOMES
    left = tl.load(home + 5) - first * WIDTH
    if ALIGNED:
        left = tl.multiple_of(left, 16)
    block = tl.arange(0, BLOCKS)
    place = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    real = place < left
    p_at = _pointer(home, P, ALIGNED) + first * WIDTH + place
    g_at = _pointer(gradients + owner, G, ALIGNED) + first * WIDTH + place
    m_at = _pointer(home + 1, tl.uint8, ALIGNED) + first * WIDTH + place
    v_at = _pointer(home + 2, tl.uint8, ALIGNED) + first * WIDTH + place
    m_scale_at = _pointer(home + 3, tl.float32, ALIGNED) + first + block
    v_scale_at = _pointer(home + 4, tl.float32, ALIGNED) + first + block
    begun = block * WIDTH < left

    p = tl.load(p_at, mask=real, other=0.0).to(tl.float32)
    g = tl.load(g_at, mask=real, other=0.0).to(tl.float32)
    m = tl.load(m_values + tl.load(m_at, mask=real, other=0).to(tl.int32))
    v = tl.load(v_values + tl.load(v_at, mask=real, other=0).to(tl.int32))
    m *= tl.load(m_scale_at, mask=begun, other=0.0)[:, None]
    v *= tl.load(v_scale_at, mask=begun, other=0.0)[:, None]
    # False for infinity and for what is no number.
    good = tl.abs(g) < float("inf")
    m = tl.where(real & good, beta1 * m + rest1 * g, 0.0)
    v = tl.where(real & good, beta2 * v + rest2 * g * g, 0.0)
    p = tl.where(good, kept * p - rate * (m / (tl.sqrt(v) + eps)), p)
    tl.store(p_at, p.to(P), mask=real)

    m_codes, m_scale = _packed(m, m_tree)
    v_codes, v_scale = _packed(v, v_tree)
    tl.store(m_at, m_codes, mask=real)
    tl.store(v_at, v_codes, mask=real)
    tl.store(m_scale_at, m_scale, mask=begun)
    tl.store(v_scale_at, v_scale, mask=begun)
