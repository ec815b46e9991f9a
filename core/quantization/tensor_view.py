"""What llama.cpp computes, seen from Python while it computes: the fields of ggml's tensor struct.

The library exports no function that names a tensor's inputs, so they are read from memory. The layout is that
of ggml.h as the wheel ships it (include/ggml.h, struct ggml_tensor); ``multiplication`` proves it on tensors whose
contents are known before anything is believed. Imports nothing but llama_cpp and numpy: for child processes.
"""

import ctypes
from typing import Any

import llama_cpp._ggml as ggml
import numpy as np
from numpy.typing import NDArray

F32 = 0
"""ggml_type of float32."""
_BUFFER = 1 << 20
_COLUMNS, _ROWS, _INPUTS = 8, 3, 5


class Tensor(ctypes.Structure):
    """struct ggml_tensor."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Settings(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def _library() -> Any:
    library = ggml.libggml
    pointer = ctypes.POINTER(Tensor)
    for name, result, arguments in (
        ("ggml_init", ctypes.c_void_p, [_Settings]),
        ("ggml_free", None, [ctypes.c_void_p]),
        ("ggml_new_tensor_2d", pointer, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_mul_mat", pointer, [ctypes.c_void_p, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_get_data", ctypes.c_void_p, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _address(pointer: Any) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def multiplication() -> int | None:
    """Return the number of the operation matrix product if memory is laid out as this module thinks, else None.

    Builds one product of two named matrices and finds them again through the struct.
    """
    library = _library()
    context = library.ggml_init(_Settings(_BUFFER, None, False))
    try:
        weight = library.ggml_new_tensor_2d(context, F32, _COLUMNS, _ROWS)
        inputs = library.ggml_new_tensor_2d(context, F32, _COLUMNS, _INPUTS)
        library.ggml_set_name(weight, b"blk.0.probe.weight")
        library.ggml_set_name(inputs, b"probe")
        product = library.ggml_mul_mat(context, weight, inputs).contents
        # Whatever could be followed into nowhere comes last: pointers are compared before they are.
        sound = (
            weight.contents.name == b"blk.0.probe.weight"
            and inputs.contents.name == b"probe"
            and [_address(each) for each in product.src[:3]] == [_address(weight), _address(inputs), None]
            and list(product.ne) == [_ROWS, _INPUTS, 1, 1]
            and list(inputs.contents.nb[:2]) == [4, 4 * _COLUMNS]
            and inputs.contents.type == F32
            and inputs.contents.data == library.ggml_get_data(inputs)
            and library.ggml_op_name(product.op) == b"MUL_MAT"
        )
        return int(product.op) if sound else None
    finally:
        library.ggml_free(context)


def rows(tensor: Tensor) -> NDArray[np.float32]:
    """Return a float32 tensor's content as rows, ``[s, e]``, whatever its strides; it is not copied.

    Args:
        tensor: A tensor whose memory the processor can read.
    """
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    span = 4 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * span).from_address(tensor.data)
    flat: NDArray[np.float32] = np.ndarray(shape, np.float32, memory, strides=strides)
    return flat.reshape(-1, shape[-1])
