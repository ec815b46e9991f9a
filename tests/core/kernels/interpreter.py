"""Triton's interpreter made to round to bfloat16 as the hardware does.

The interpreter cuts a float32 off to make a bfloat16 of it; hardware and PyTorch round to the nearest, ties to even.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float


def convert_float(values: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
    """Convert as the interpreter does, but float32 to bfloat16 as PyTorch does."""
    if source != tl.float32 or target != tl.bfloat16:
        return _convert(values, source, target, rounding)
    numbers = np.frombuffer(values.tobytes(), dtype=np.float32).copy()
    return (
        torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
    )


def round_as_hardware_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the interpreter's conversion for the length of a test."""
    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
