"""Triton's interpreter made to compute with bfloat16 as the hardware does.

The interpreter cuts a float32 off to make a bfloat16 of it; hardware and PyTorch round to the nearest, ties to even.
In a product of matrices it takes the bits of a bfloat16 for a whole number.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float
_dot = interpreter.InterpreterBuilder.create_dot


def convert_float(values: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
    """Convert as the interpreter does, but float32 to bfloat16 as PyTorch does."""
    if source != tl.float32 or target != tl.bfloat16:
        return _convert(values, source, target, rounding)
    numbers = np.frombuffer(values.tobytes(), dtype=np.float32).copy()
    return (
        torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
    )


def create_dot(
    self: interpreter.InterpreterBuilder, a: Any, b: Any, total: Any, precision: Any, inexact: Any
) -> Any:
    """Multiply as the interpreter does, but bfloat16 as the numbers they are."""
    return _dot(self, widened(a), widened(b), total, precision, inexact)


def widened(tile: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Return a tile of bfloat16 as float32, any other as it is."""
    if tile.dtype.scalar != tl.bfloat16:
        return tile
    return interpreter.TensorHandle((tile.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def round_as_hardware_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the interpreter's conversion and product for the length of a test."""
    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
