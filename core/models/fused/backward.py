"""A layer's backward pass: through the MLP, then through attention.

Gradients are written over what has just been read: of gu over gu, of the MLP's hidden values over theirs. Nothing is
written to x, so a graph that is kept can be walked again: what is gone by then is computed again from x.
"""

from torch import Tensor

from core.models.fused.attention_backward import attention_backward
from core.models.fused.mlp_backward import mlp_backward
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled


def backward(
    run: Pass, index: int, x: Tensor | None, dy: Tensor, needs_x: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Compute the gradients of a layer's input and adapters.

    Args:
        run: The pass.
        index: The layer.
        x: Its input [t, e], unless that waits in main memory.
        dy: [t, e].
        needs_x: Whether the input's gradient is wanted.
    """
    recalled = Recalled(run, index, x)
    of_mlp = mlp_backward(run, recalled, dy)
    run.store.ask(index - 1, ["residual", "mlp_out"])
    dx, of_attention = attention_backward(run, recalled, of_mlp, needs_x)
    return dx, (*of_attention, *of_mlp.adapters)
