"""cuBLASLt by its C interface: PyTorch offers no choice of algorithm.

The library is the one that PyTorch has loaded. Whatever is not there or does not work is left to PyTorch.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.kernels.products.tiles import best

KINDS = {torch.bfloat16: 14, torch.float16: 2}
"""cudaDataType_t."""
FLOAT32, SUMS_IN_FLOAT32 = 0, 68
TURN_FIRST, TILE, WORKSPACE_LIMIT = 3, 1, 1
ASKED = 8
"""Algorithms that are asked for; no more were offered for any product of a layer."""
WORKSPACE = 32 << 20
"""Bytes; what NVIDIA advises for Hopper."""
ALIGNMENT = 256
"""Bytes that the library assumes of every address unless told otherwise."""
ONE, NONE = ctypes.c_float(1.0), ctypes.c_float(0.0)


class Offer(ctypes.Structure):
    """An algorithm (cublasLtMatmulHeuristicResult_t)."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class Key(NamedTuple):
    """What a choice depends on."""

    t: int
    n: int
    k: int
    x_stride: int
    w_stride: int
    out_stride: int
    is_turned: bool
    """w is the transposed view of a matrix."""
    dtype: torch.dtype
    device: int


class Ready(NamedTuple):
    """A product ready to run, its operands swapped: the library's matrices are column-major."""

    description: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    offer: Offer


class Unavailable(Exception):
    """The library is not there, or refused."""


def try_multiply(x: Tensor, w: Tensor, out: Tensor | None, *, onto: bool) -> Tensor | None:
    """Multiply, see ``multiply``; None if PyTorch has to."""
    if not is_hopper(x.device.index) or x.device.index != torch.cuda.current_device():
        return None
    if x.stride(1) != 1 or w.dtype != x.dtype or 1 not in w.stride():
        return None
    if out is None:
        out = torch.empty(x.shape[0], w.shape[1], dtype=x.dtype, device=x.device)
    if (
        out.stride(1) != 1
        or out.dtype != x.dtype
        or (x.data_ptr() | w.data_ptr() | out.data_ptr()) % ALIGNMENT
    ):
        return None
    key = key_of(x, w, out)
    try:
        ready = prepared(key)
    except (Unavailable, OSError, AttributeError):
        return None
    return out if run(ready, x, w, out, onto=onto) else None


def key_of(x: Tensor, w: Tensor, out: Tensor) -> Key:
    """Describe a product."""
    is_turned = w.stride(0) == 1
    return Key(
        x.shape[0], w.shape[1], x.shape[1], x.stride(0), w.stride(1 if is_turned else 0), out.stride(0), is_turned,
        x.dtype, x.device.index,
    )  # fmt: skip


def run(ready: Ready, x: Tensor, w: Tensor, out: Tensor, *, onto: bool = False) -> bool:
    """Multiply by a chosen algorithm; False if the library refused."""
    library, handle = opened(x.device.index)
    first, second, third = ready.layouts
    stream = torch._C._cuda_getCurrentRawStream(x.device.index)
    room = workspace(x.device.index, stream)
    result = ctypes.c_void_p(out.data_ptr())
    status = library.cublasLtMatmul(
        handle, ready.description, ctypes.byref(ONE), ctypes.c_void_p(w.data_ptr()), first,
        ctypes.c_void_p(x.data_ptr()), second, ctypes.byref(ONE if onto else NONE), result, third, result, third,
        ctypes.byref(ready.offer.algorithm), ctypes.c_void_p(room.data_ptr()), ctypes.c_size_t(room.numel()),
        ctypes.c_void_p(stream),
    )  # fmt: skip
    return not status


@functools.cache
def is_hopper(device: int) -> bool:
    """Tell whether the rates of ``tiles`` are this GPU's; elsewhere the library's own choice stands."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def opened(device: int) -> tuple[Any, ctypes.c_void_p]:
    """Find the library that PyTorch has loaded, and open it for a GPU.

    Raises:
        Unavailable: If there is none.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    names = {line.split()[-1] for line in lines if "libcublasLt.so" in line}
    if not names:
        raise Unavailable("cuBLASLt is not loaded")
    library, handle = ctypes.CDLL(min(names)), ctypes.c_void_p()
    with torch.cuda.device(device):
        check(library.cublasLtCreate(ctypes.byref(handle)))
    return library, handle


@functools.cache
def workspace(device: int, stream: int) -> Tensor:
    """Make room for the library's work; products of two streams must not share it.

    Args:
        device: The GPU.
        stream: Address of the stream.
    """
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=torch.device("cuda", device))


@functools.lru_cache(maxsize=4096)
def prepared(key: Key) -> Ready:
    """Choose an algorithm; asking takes the library a millisecond.

    Raises:
        Unavailable: If the library does not help.
    """
    offered = offers(key)
    if not offered:
        raise Unavailable("cuBLASLt offers nothing")
    processors = torch.cuda.get_device_properties(key.device).multi_processor_count
    return offered[best([tile_of(each) for each in offered], key.n, key.t, processors)]


def offers(key: Key) -> list[Ready]:
    """Ask the library for its algorithms, in its own order.

    Raises:
        Unavailable: If it refuses.
    """
    library, handle = opened(key.device)
    description, limit = ctypes.c_void_p(), ctypes.c_void_p()
    check(library.cublasLtMatmulDescCreate(ctypes.byref(description), SUMS_IN_FLOAT32, FLOAT32))
    set_number(library.cublasLtMatmulDescSetAttribute, description, TURN_FIRST, ctypes.c_int(key.is_turned))
    rows, columns = (key.k, key.n) if key.is_turned else (key.n, key.k)
    layouts = (
        layout(library, key, rows, columns, key.w_stride), layout(library, key, key.k, key.t, key.x_stride),
        layout(library, key, key.n, key.t, key.out_stride),
    )  # fmt: skip
    check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(limit)))
    set_number(
        library.cublasLtMatmulPreferenceSetAttribute, limit, WORKSPACE_LIMIT, ctypes.c_uint64(WORKSPACE)
    )
    found, count = (Offer * ASKED)(), ctypes.c_int()
    check(library.cublasLtMatmulAlgoGetHeuristic(
        handle, description, *layouts, layouts[2], limit, ASKED, found, ctypes.byref(count)
    ))  # fmt: skip
    check(library.cublasLtMatmulPreferenceDestroy(limit))
    return [Ready(description, layouts, each) for each in found[: count.value] if each.state == 0]


def layout(library: Any, key: Key, rows: int, columns: int, stride: int) -> ctypes.c_void_p:
    """Describe a column-major matrix."""
    made = ctypes.c_void_p()
    check(library.cublasLtMatrixLayoutCreate(
        ctypes.byref(made), KINDS[key.dtype], ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(stride)
    ))  # fmt: skip
    return made


def tile_of(ready: Ready) -> int:
    """Return the number of an algorithm's tile; 0 if it does not say."""
    found, written = ctypes.c_uint32(), ctypes.c_size_t()
    library = opened(torch.cuda.current_device())[0]
    status = library.cublasLtMatmulAlgoConfigGetAttribute(
        ctypes.byref(ready.offer.algorithm),
        TILE,
        ctypes.byref(found),
        ctypes.c_size_t(4),
        ctypes.byref(written),
    )
    return 0 if status else int(found.value)


def set_number(setter: Any, target: ctypes.c_void_p, name: int, value: Any) -> None:
    """Set one attribute."""
    check(setter(target, name, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))))


def check(status: int) -> None:
    """Insist on success."""
    if status:
        raise Unavailable(f"cuBLASLt answered {status}")
