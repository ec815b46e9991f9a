"""The residual stream from layer to layer, and the norm at its end."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from core.kernels.lora_linear import Group
from core.kernels.rms_norm import accumulate, accumulate_rms_norm, rms_norm, rms_norm_backward
from core.models.fused.sites import Norm


class Stream:
    """The residual stream: the rounded tensors that layers pass on and keep, and beside them what rounding took off.

    Forgetting that after each of many additions is what would make a deep model in 16 bits wander off.
    """

    def __init__(self) -> None:
        self.visible: Tensor | None = None
        """The rounded sum [t, e]."""
        self.rest: Tensor | None = None
        """What rounding took off [t, e]; None is nothing. See ``accumulate_rms_norm``."""
        self.normed: tuple[Tensor, Tensor] | None = None
        """The stream, normalised for what comes next, with room for extra columns, and the reciprocal roots [t]."""

    def enter(self, x: Tensor) -> None:
        """Go on from x [t, e], or begin with it."""
        if self.visible is None or self.visible.data_ptr() != x.data_ptr():
            self.visible, self.rest, self.normed = x.detach().contiguous(), None, None

    def add(self, added: Tensor, norm: Norm, group: Group | None) -> tuple[Tensor, Tensor, Tensor]:
        """Add a sublayer's output.

        Args:
            added: What is added [t, e], any row stride.
            norm: What follows.
            group: Whose input it makes, extra columns included; None if nobody's.

        Returns:
            The rounded sum [t, e], the sum normalised, and the norm's reciprocal roots [t].
        """
        assert self.visible is not None
        tokens, e = added.shape
        wide = added.new_empty(tokens, e) if group is None else group.inputs(tokens)
        found = accumulate_rms_norm(
            self.visible, self.rest, added, norm.weight, norm.eps, offset=norm.offset, out=wide[:, :e]
        )
        self.visible, self.rest = found.sum, found.rest
        return found.sum, wide, found.rstd

    def add_last(self, added: Tensor) -> Tensor:
        """Add the output of the last sublayer before one that is not fused; return the rounded sum [t, e]."""
        assert self.visible is not None
        self.visible, self.rest = accumulate(self.visible, self.rest, added)
        return self.visible

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
