"""Output layer and cross-entropy in one: the logits of all tokens never exist at once."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from core.kernels.backend import runs_fused
from core.kernels.linear_cross_entropy import reference
from core.kernels.linear_cross_entropy.reference import IGNORED, TILE_NUMBERS, Outcome, Shape

__all__ = [
    "LinearCrossEntropy",
    "Outcome",
    "Shape",
    "linear_cross_entropy",
    "scaled",
    "summed_linear_cross_entropy",
]


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    weights: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
    tile_numbers: int = TILE_NUMBERS,
    need_grad: bool = True,
    need_weight_grad: bool = False,
) -> Outcome:
    """Compute the summed cross-entropy of a linear layer's logits together with its gradients.

    The gradients are made while a tile of logits exists, so that no logit is computed twice or kept. Ignored
    tokens cost no synchronisation: their loss and their row of the gradient are zero.

    Args:
        hidden: Inputs of the output layer [n, e].
        weight: Its weight [v, e], of hidden's dtype.
        targets: Class of each token [n] int64. On the GPU a class outside 0..v-1 that is not `ignore_index`
            gives a loss of NaN; there is nobody to raise an error.
        bias: Its bias [v], or None.
        softcap: Bound c of the logits, c * tanh(logit / c), or None.
        scale: Factor of the logits, applied before the softcap.
        weights: Factor of each token's loss [n] float32, or None for 1. A token of weight 0 is ignored.
        ignore_index: Label of tokens without a loss.
        tile_numbers: Logits that may exist at once; decides the memory, never the result beyond summation order.
        need_grad: Whether d_hidden is wanted.
        need_weight_grad: Whether d_weight is wanted.

    Returns:
        The loss and, where asked for, its gradients.
    """
    shape = Shape(softcap, scale, ignore_index, tile_numbers)
    with torch.no_grad():
        if runs_fused(hidden.device) and hidden.dtype != torch.float64:
            from core.kernels.linear_cross_entropy import fused

            return fused.linear_cross_entropy(
                hidden, weight, targets, bias, weights, shape, need_grad, need_weight_grad
            )
        return reference.linear_cross_entropy(
            hidden, weight, targets, bias, weights, shape, need_grad, need_weight_grad
        )


def scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply by a number that lies on the GPU, such as one over the tokens of a step, and round once.

    PyTorch would round the number to the gradient's dtype first: up to 0.2 % off, the same way everywhere.

    Args:
        gradient: [n, e], contiguous; it stays as it is.
        factor: [] of any float dtype.

    Returns:
        [n, e] in the gradient's dtype.
    """
    if runs_fused(gradient.device) and gradient.dtype != torch.float64:
        from core.kernels.linear_cross_entropy import fused

        return fused.scaled(gradient, factor)
    return reference.scaled(gradient, factor)


class LinearCrossEntropy(torch.autograd.Function):
    """The summed loss for autograd: its gradients were made on the way forward, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        weights: torch.Tensor | None,
        shape: Shape,
        records: bool,
    ) -> torch.Tensor:
        """Compute the loss and keep the gradients that will be asked for."""
        outcome = linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias=bias,
            weights=weights,
            **shape._asdict(),
            need_grad=records and ctx.needs_input_grad[0],
            need_weight_grad=records and ctx.needs_input_grad[1],
        )
        ctx.save_for_backward(outcome.d_hidden, outcome.d_weight)
        ctx.weight_dtype = weight.dtype
        return outcome.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients; never in place, because a graph that is retained comes back."""
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = None if d_hidden is None else scaled(d_hidden, d_loss)
        d_weight = None if d_weight is None else (d_weight * d_loss).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None, None, None


def summed_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    weights: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
    tile_numbers: int = TILE_NUMBERS,
) -> torch.Tensor:
    """Compute the summed cross-entropy of a linear layer's logits, differentiable in its input and its weight.

    Sums, not means: the caller divides by the number of labelled tokens of the whole step, which no single
    micro-batch knows.

    Args:
        hidden: Inputs of the output layer [n, e].
        weight: Its weight [v, e]; its gradient is computed only when it requires one.
        targets: Class of each token [n] int64.
        bias: Its bias [v], frozen.
        softcap: Bound of the logits, or None.
        scale: Factor of the logits, applied before the softcap.
        weights: Factor of each token's loss [n] float32, or None for 1.
        ignore_index: Label of tokens without a loss.
        tile_numbers: Logits that may exist at once.

    Returns:
        The sum of the weighted losses [].

    Raises:
        ValueError: The bias or the token weights require a gradient, which nothing here computes.
    """
    records = torch.is_grad_enabled()
    for name, tensor in (("bias", bias), ("weights", weights)):
        if records and tensor is not None and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient; linear_cross_entropy gives none")
    shape = Shape(softcap, scale, ignore_index, tile_numbers)
    loss: torch.Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, bias, weights, shape, records
    )
    return loss
