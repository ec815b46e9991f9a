"""The steps by which a group's extended matrix is written, prepared once and taken again for every pass."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from core.kernels.backend import runs_fused
from core.kernels.lora_linear.reference import Projection, placed
from core.kernels.nf4 import Packed, unpacking

Step = Callable[[], object]


def weight_steps(projections: tuple[Projection, ...], matrix: Tensor, k: int) -> list[Step]:
    """Prepare to write frozen weights, expanded where they are packed.

    Args:
        projections: In the order of their rows; their tensors stay where they are.
        matrix: [n + R, k + R].
        k: Inputs.
    """
    return [weight_step(each.weight, matrix[rows, :k]) for each, rows in placed(projections)]


def weight_step(weight: Tensor | Packed, out: Tensor) -> Step:
    """Prepare to write one frozen weight."""
    return unpacking(weight, out) if isinstance(weight, Packed) else partial(out.copy_, weight)


def bias_steps(projections: tuple[Projection, ...], matrix: Tensor, column: int) -> list[Step]:
    """Prepare to write the biases there are into a column."""
    return [
        partial(matrix[rows, column].copy_, each.bias)
        for each, rows in placed(projections)
        if each.bias is not None
    ]


def adapter_steps(projections: tuple[Projection, ...], matrix: Tensor, n: int, k: int) -> list[Step]:
    """Prepare to write scaled A and B of all adapters into the spare rows and columns; see ``weight_steps``.

    Args:
        projections: In the order of their rows.
        matrix: [n + R, k + R].
        n: Outputs of all of them.
        k: Inputs.
    """
    if runs_fused(matrix.device) and matrix.dtype != torch.float64:
        from core.kernels.lora_linear.fused import spreading

        return spreading(matrix, projections, n, k)
    steps: list[Step] = []
    column = 0
    for each, rows in placed(projections):
        for a, b, scale in each.adapters:
            rank = int(a.shape[0])
            steps.append(partial(matrix[rows, k + column : k + column + rank].copy_, b))
            out = matrix[n + column : n + column + rank, :k]
            steps.append(partial(torch.mul, a, scale, out=out))
            column += rank
    return steps
