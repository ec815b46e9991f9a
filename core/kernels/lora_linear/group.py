"""Adapters in extra rows and columns of the frozen matrix, so that one product computes both.

With R spare columns, R >= the ranks of all adapters of a group of layers that share their input::

    M = [ W   B ]   n + R rows, k + R columns       forward   y  = [x | x (sA)'] [W | B]'
        [ sA  0 ]                                   backward  dx = [dy | dy B] [W ; sA]

Both sums are accumulated in float32 before they are rounded once, and no product's result is read and written a
second time to add the adapter's share. On an H200 the wider product costs what the narrow one does (within the
noise of 2 %), where adding the share of r = 16 to the gate and up projections of 8B costs 0.8 ms of 5.8.
Biases take one more column against a column of ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.backend import runs_fused
from core.kernels.lora_linear.filling import Step, adapter_steps, bias_steps, weight_steps
from core.kernels.lora_linear.reference import Projection, placed
from core.kernels.nf4 import Packed
from core.kernels.products import multiply

SPARE = 64
"""Extra rows and columns come in multiples of this, which keeps every row of the matrix on a 128-byte boundary."""
_OWNER = "_filled_for"
"""The attribute of a matrix of a group's own that says who was given it last. On the tensor itself, so that a new one in
an old one's memory is nobody's."""


class Shape(NamedTuple):
    """Where everything lies in the extended matrix; equal shapes share scratch memory."""

    rows: tuple[int, ...]
    columns: int
    ranks: tuple[tuple[int, ...], ...]
    biases: tuple[bool, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def n(self) -> int:
        """Outputs of all projections."""
        return sum(self.rows)

    @property
    def rank(self) -> int:
        """Ranks of all adapters."""
        return sum(map(sum, self.ranks))

    @property
    def has_bias(self) -> bool:
        """Whether any projection has one."""
        return any(self.biases)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the extended matrix."""
        return self.n + self.spare, self.columns + self.spare

    @property
    def nbytes(self) -> int:
        """Bytes of the extended matrix."""
        return math.prod(self.size) * self.dtype.itemsize

    @property
    def spare(self) -> int:
        """Extra rows and columns."""
        used = self.rank + self.has_bias
        return math.ceil(used / SPARE) * SPARE


class Scratch:
    """Extended matrices that are filled anew for each use, one for every shape."""

    def __init__(self) -> None:
        self.matrices: dict[Shape, Tensor] = {}

    def matrix(self, shape: Shape) -> Tensor:
        """Return the matrix of a shape; zero wherever nothing is ever written."""
        found = self.matrices.get(shape)
        if found is None:
            # Made in an inference, it must serve training too.
            with torch.inference_mode(False):
                found = self.matrices[shape] = torch.zeros(shape.size, dtype=shape.dtype, device=shape.device)
        return found

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(each.nbytes for each in self.matrices.values())


class Group:
    """Projections that share an input, such as q, k and v, as one matrix."""

    def __init__(
        self, projections: Sequence[Projection], dtype: torch.dtype, *, home: Tensor | None = None
    ) -> None:
        """Lay the projections out.

        Args:
            projections: At least one, all with the same k.
            dtype: What is computed in.
            home: An extended matrix that holds the weights for good, from ``at_home``; adapters are still
                written into it, once for each owner in turn.
        """
        self.projections = tuple(projections)
        first = self.projections[0].weight
        device = first.data.device if isinstance(first, Packed) else first.device
        self.shape = Shape(
            tuple(each.rows for each in self.projections),
            self.projections[0].columns,
            tuple(tuple(int(one.a.shape[0]) for one in each.adapters) for each in self.projections),
            tuple(each.bias is not None for each in self.projections),
            dtype,
            device,
        )
        self.n: int = self.shape.n
        """Outputs of all projections."""
        self.k: int = self.shape.columns
        """Inputs."""
        self.ranks: tuple[int, ...] = tuple(each.rank for each in self.projections)
        """Of each projection's adapters together."""
        self.rank: int = self.shape.rank
        """Of all adapters."""
        self.spare: int = self.shape.spare
        """Extra columns of an input or of a gradient."""
        self._filling: tuple[Tensor, list[Step]] | None = None
        self.home = home

    @property
    def home(self) -> Tensor | None:
        """Return the matrix that holds the weights for good, if there is one."""
        return self._home

    @home.setter
    def home(self, matrix: Tensor | None) -> None:
        # What was prepared for another matrix would keep it alive.
        self._home, self._filling = matrix, None

    def inputs(self, tokens: int) -> Tensor:
        """Make room for an input and its extra columns: [t, k + R], the first k to be written."""
        return torch.empty(tokens, self.k + self.spare, dtype=self.shape.dtype, device=self.shape.device)

    def gradients(self, tokens: int) -> Tensor:
        """Make room for a gradient and its extra columns: [t, n + R], the first n to be written."""
        return torch.empty(tokens, self.n + self.spare, dtype=self.shape.dtype, device=self.shape.device)

    def fill(self, scratch: Scratch, owner: int | None = None) -> Tensor:
        """Write weights, biases and adapters into the extended matrix.

        Args:
            scratch: Where there is room, for a group without a matrix of its own.
            owner: Who asks. A group's own matrix that the same one was given last is returned as it is: adapters must
                not change in between. None has everything written.
        """
        matrix = self.home
        if matrix is None:
            matrix = scratch.matrix(self.shape)
        else:
            if owner is not None and getattr(matrix, _OWNER, None) == owner:
                return matrix
            # Nobody's until it is whole: memory may run out while it is written.
            setattr(matrix, _OWNER, None)
        self._write(matrix)
        if self.home is not None:
            setattr(matrix, _OWNER, owner)
        return matrix

    @torch.no_grad()
    def _write(self, matrix: Tensor) -> None:
        # What is prepared is for one GPU, and launched on the one that is current.
        with torch.cuda.device_of(matrix):
            if self._filling is None or self._filling[0] is not matrix:
                self._filling = matrix, self._steps(matrix)
            for step in self._filling[1]:
                step()

    def _steps(self, matrix: Tensor) -> list[Step]:
        """Prepare what ``fill`` does to a matrix; a home holds its weights already."""
        steps = weight_steps(self.projections, matrix, self.k) if self.home is None else []
        steps += bias_steps(self.projections, matrix, self.k + self.rank)
        return steps + (adapter_steps(self.projections, matrix, self.n, self.k) if self.rank else [])

    def forward(self, matrix: Tensor, x: Tensor) -> Tensor:
        """Compute all outputs [t, n], side by side, and the extra columns of the input.

        Args:
            matrix: From ``fill``.
            x: [t, k + R] from ``inputs``, its first k columns written.
        """
        self.widen(matrix, x)
        return multiply(x, matrix[: self.n].t())

    def forward_into(self, matrix: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Like ``forward``, into [t, n] of any row stride."""
        self.widen(matrix, x)
        return self.product(matrix, x, out)

    def product(self, matrix: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the outputs from an input whose extra columns are written, into [t, n] of any row stride."""
        return multiply(x, matrix[: self.n].t(), out=out)

    def added_to(self, matrix: Tensor, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute the outputs from an input without extra columns, added to something before they are rounded.

        Args:
            matrix: From ``fill``.
            x: [t, k], any row stride.
            other: [t, n], or None.

        Returns:
            [t, n] and the adapters' inner values [t, R], or None if there are no extra columns.
        """
        weight = matrix[: self.n, : self.k].t()
        if not self.spare:
            return (multiply(x, weight) if other is None else torch.addmm(other, x, weight)), None
        low = self.low(matrix, x)
        if self.shape.has_bias:
            low[:, self.rank].fill_(1.0)
        up = matrix[: self.n, self.k :]
        return multiply(x, weight, out=plus_low_rank(other, low, up), onto=True), low

    def widen(self, matrix: Tensor, x: Tensor) -> None:
        """Write x (sA)' into the extra columns of an input; the ways to compute outputs do so themselves."""
        if not self.spare:
            return
        torch.mm(x[:, : self.k], matrix[self.n :, : self.k].t(), out=x[:, self.k :])
        if self.shape.has_bias:
            x[:, self.k + self.rank].fill_(1.0)

    def low(self, matrix: Tensor, x: Tensor) -> Tensor:
        """Compute the adapters' inner values x (sA)' alone: [t, R]."""
        return torch.mm(x[:, : self.k], matrix[self.n :, : self.k].t())

    def widen_gradient(self, matrix: Tensor, dy: Tensor) -> None:
        """Write dy B into the extra columns of a gradient, before the gradients below are asked for.

        Args:
            matrix: From ``fill``, with the adapters of the forward pass.
            dy: [t, n + R] from ``gradients``, its first n columns written.
        """
        if self.spare:
            torch.mm(dy[:, : self.n], matrix[: self.n, self.k :], out=dy[:, self.n :])

    def input_gradient(self, matrix: Tensor, dy: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the input's gradient [t, k] from a widened one; into ``out``, of any row stride, if given."""
        return multiply(dy, matrix[:, : self.k], out=out)

    def gradients_apart(self, matrix: Tensor, dy: Tensor) -> Tensor:
        """Compute dy [W B] in one product: [t, k + R].

        The first k columns are the input's gradient but for the adapters' share, which is what the rank columns after
        them times ``narrow`` gives; whoever reads the gradient next adds it, and dy is not read again for dy B.

        Args:
            matrix: From ``fill``, with the adapters of the forward pass.
            dy: [t, n], any row stride.
        """
        return multiply(dy[:, : self.n], matrix[: self.n])

    def narrow(self, matrix: Tensor) -> Tensor:
        """View the adapters' sA in the extended matrix: [R, k], zero below the rank."""
        return matrix[self.n :, : self.k]

    def adapter_gradients(
        self, dy: Tensor, x: Tensor, low: Tensor, up: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the gradients A, B, A, B, .. in the order of the projections and their adapters.

        Args:
            dy: A widened gradient.
            x: The input, [t, k] or wider.
            low: [t, R], the input's extra columns; not read if there is no adapter.
            up: dy' low [n, the ranks], if somebody has it already.
        """
        rank, n = self.rank, self.n
        if not rank:
            return ()
        down = exact_product(dy[:, n : n + rank].t(), x[:, : self.k])
        up = exact_product(dy[:, :n].t(), low[:, :rank]) if up is None else up
        return self.dealt_out(down, self.apart(up))

    def apart(self, up: Tensor) -> list[Tensor]:
        """Cut dy' low [n, R] into each projection's own rows and ranks."""
        found, column = [], 0
        for each, rows in placed(self.projections):
            found.append(up[rows, column : column + each.rank])
            column += each.rank
        return found

    def dealt_out(self, down: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Give every adapter its gradients: A, B, A, B, .. in the order of the projections and their adapters.

        Args:
            down: (dy B)' x of all adapters [R, k]; scaled in place.
            ups: dy' low of each projection [its outputs, its ranks].
        """
        found: list[Tensor] = []
        row = 0
        for each, up in zip(self.projections, ups, strict=True):
            column = 0
            for a, b, scale in each.adapters:
                rank = int(a.shape[0])
                found.append(scaled(down[row : row + rank], scale).to(a.dtype))
                found.append(up[:, column : column + rank].to(b.dtype))
                row, column = row + rank, column + rank
        return tuple(found)


def at_home(projections: Sequence[Projection], dtype: torch.dtype) -> Tensor:
    """Make an extended matrix that holds the frozen weights for good; those of 4 bits expanded."""
    shape = Group(projections, dtype).shape
    matrix = torch.zeros(shape.size, dtype=dtype, device=shape.device)
    with torch.no_grad():
        for step in weight_steps(tuple(projections), matrix, shape.columns):
            step()
    return matrix


def plus_low_rank(other: Tensor | None, low: Tensor, up: Tensor) -> Tensor:
    """Return other [t, n] + low [t, R] up' [R, n]; the product alone without other."""
    if other is None:
        return torch.mm(low, up.t())
    if runs_fused(low.device) and low.dtype != torch.float64:
        from core.kernels.lora_linear import fused

        return fused.plus_low_rank(other, low, up)
    return torch.addmm(other, low, up.t())


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """Multiply in place, unless there is nothing to do: a copy would leave the memory with whoever shares it."""
    return tensor if scale == 1.0 else tensor.mul_(scale)


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices, with the float32 sums not rounded where the library offers that."""
    if left.device.type == "cuda" and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)
