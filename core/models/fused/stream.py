"""The residual stream from layer to layer, and the norm at its end."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from core.kernels.lora_linear import Group
from core.kernels.rms_norm import accumulate_rms_norm, rms_norm, rms_norm_backward
from core.models.fused.sites import Norm


class Stream:
    """The residual stream in float32, beside the rounded tensors that layers pass on and keep.

    Rounding after each of many additions is what would make a deep model in 16 bits wander off.
    """

    def __init__(self) -> None:
        self.exact: Tensor | None = None
        """[t, e] float32; float64 for float64."""
        self.visible: Tensor | None = None
        """Its rounded twin, which autograd sees."""
        self.normed: tuple[Tensor, Tensor] | None = None
        """The stream, normalised for what comes next, with room for extra columns, and the reciprocal roots [t]."""

    def enter(self, x: Tensor) -> None:
        """Go on from x [t, e], or begin with it."""
        if self.visible is None or self.visible.data_ptr() != x.data_ptr():
            self.exact = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
            self.visible = self.normed = None

    def add(self, added: Tensor, norm: Norm, group: Group | None) -> tuple[Tensor, Tensor, Tensor]:
        """Add a sublayer's output [t, e].

        Args:
            added: What is added.
            norm: What follows.
            group: Whose input it makes, extra columns included; None if nobody's.

        Returns:
            The rounded sum [t, e], the sum normalised, and the norm's reciprocal roots [t].
        """
        assert self.exact is not None
        wide = torch.empty_like(added) if group is None else group.inputs(added.shape[0])
        _, rounded, rstd = accumulate_rms_norm(
            self.exact, added, norm.weight, norm.eps, offset=norm.offset, out=wide[:, : added.shape[1]]
        )
        return rounded, wide, rstd

    def hand_over(self, visible: Tensor, wide: Tensor | None = None, rstd: Tensor | None = None) -> None:
        """Leave the sum, and what was made of it, to whoever comes next."""
        # Detached: the tensor itself will refer to the pass by its graph, and the pass to this.
        self.visible = visible.detach()
        self.normed = None if wide is None or rstd is None else (wide, rstd)

    def taken(self) -> tuple[Tensor, Tensor] | None:
        """Return what the layer before has normalised, and the reciprocal roots, if it has; once."""
        normed, self.normed = self.normed, None
        return normed


class FinalNorm(torch.autograd.Function):
    """The norm after the last layer; its weight is frozen."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, norm: Norm, stream: Stream) -> Tensor:
        """Normalise x [t, e], unless the last layer has done so."""
        handed, is_next = (
            stream.taken(),
            stream.visible is not None and stream.visible.data_ptr() == x.data_ptr(),
        )
        y, rstd = handed if handed and is_next else rms_norm(x, norm.weight, norm.eps, offset=norm.offset)
        ctx.save_for_backward(x, rstd)
        ctx.norm = norm  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of x."""
        x, rstd = ctx.saved_tensors
        norm: Norm = ctx.norm
        dy = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        return rms_norm_backward(dy, x, norm.weight, rstd, offset=norm.offset), None, None
