"""A layer's backward pass through the MLP, by kernels that form the adapters' thin products in passing, or by products."""

from typing import NamedTuple

from torch import Tensor

from core.kernels.glu import GluGradients, glu_backward, glu_gradients
from core.kernels.lora_linear.group import exact_product
from core.kernels.rms_norm import rms_norm_backward
from core.models.fused.gradients import (
    gradients_below,
    kept_small,
    low_of,
    norm_gradients,
    recall_low,
    sublayer_gradient,
)
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sublayers import normed


class Back(NamedTuple):
    """What the MLP's backward pass leaves to attention's."""

    d_residual: Tensor
    """The gradient of the sum after attention, [t, e] in the first columns of a gradient of o."""
    adapters: tuple[Tensor, ...]
    """The gradients of the adapters of gate_up and down."""
    b_o: Tensor | None = None
    """The gradient of o's B [e, R], if it was formed in passing."""


def mlp_backward(run: Pass, recalled: Recalled, dy: Tensor) -> Back:
    """Walk back through the MLP."""
    site, index, tokens = recalled.site, recalled.index, dy.shape[0]
    residual, matrix = recalled.residual(), run.filled(site.gate_up)
    gate_up = run.store.take(index, "gate_up")
    if gate_up is None:
        wide, _ = normed(site.before_mlp, residual, site.gate_up)
        recall_low(run, index, "low_up", wide[:, site.hidden :])
        gate_up = site.gate_up.gradients(tokens)
        site.gate_up.product(matrix, wide, gate_up[:, : 2 * site.inner])
        del wide
    if not site.is_thin:
        of_down = through_gate(run, recalled, gate_up, dy)
        d_residual, of_up = through_up(run, recalled, matrix, gate_up, residual, dy)
        return Back(d_residual, (*of_up, *of_down))
    found, d_out = through_gate_thin(run, recalled, gate_up, dy)
    return through_up_thin(run, recalled, matrix, found, residual, dy, d_out)


def through_gate(run: Pass, recalled: Recalled, gate_up: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Walk back through the down projection and the gated unit, whose gradient is written over ``gate_up``.

    Args:
        run: The pass.
        recalled: The layer.
        gate_up: [t, 2f + R].
        dy: The layer's own gradient [t, e].

    Returns:
        The gradients of the down projection's adapters.
    """
    site, down, halves = recalled.site, recalled.site.down, gate_up[:, : 2 * recalled.site.inner]
    back, d_out = run.filled(down), run.handed_to(recalled.index, dy)
    if d_out is None:
        d_out = down.gradients(dy.shape[0])
        sublayer_gradient(run, recalled, site.after_mlp, "mlp_out", dy, d_out[:, : site.hidden])
    down.widen_gradient(back, d_out)
    dh = down.input_gradient(back, d_out)
    h, _ = glu_backward(dh, halves, site.activation, h_out=dh, out=halves)
    low = run.store.look(recalled.index, "low_down")
    return down.adapter_gradients(d_out, h, low if low is not None else d_out)


def through_gate_thin(
    run: Pass, recalled: Recalled, gate_up: Tensor, dy: Tensor
) -> tuple[GluGradients, Tensor]:
    """Do the same by one product, whose result lacks the adapters' share until the gated unit's kernel adds it.

    Args:
        run: The pass.
        recalled: The layer.
        gate_up: [t, 2f + R].
        dy: The layer's own gradient [t, e].

    Returns:
        What the kernel formed, and the gradient of what the down projection returned [t, e].
    """
    site, index, down, f = recalled.site, recalled.index, recalled.site.down, recalled.site.inner
    d_out, rank, (of_gate, of_up) = dy, down.rank, site.gate_up.ranks
    if site.after_mlp is not None:
        d_out = dy.new_empty(dy.shape)
        sublayer_gradient(run, recalled, site.after_mlp, "mlp_out", dy, d_out)
    back = run.filled(down)
    wide = down.gradients_apart(back, d_out)
    found = glu_gradients(
        wide[:, :f], gate_up[:, : 2 * f], site.activation, low=kept_small(run, index, "low_up"),
        ranks=(of_gate, of_up), d_low=wide[:, f:], rank_down=rank, narrow=down.narrow(back) if rank else None,
        out=gate_up[:, : 2 * f],
    )  # fmt: skip
    return found, d_out


def through_up(
    run: Pass, recalled: Recalled, matrix: Tensor, gate_up: Tensor, residual: Tensor, dy: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Walk back through the up projection and its norm by products that read the gradient three times.

    Args:
        run: The pass.
        recalled: The layer.
        matrix: The up projection's, extended.
        gate_up: Its gradient [t, 2f + R].
        residual: The sum after attention [t, e].
        dy: The layer's own gradient [t, e].

    Returns:
        The gradient of the sum after attention, see ``Back``, and those of the adapters.
    """
    site, norm, e = recalled.site, recalled.site.before_mlp, recalled.site.hidden
    site.gate_up.widen_gradient(matrix, gate_up)
    rstd = kept_small(run, recalled.index, "rstd_mlp")
    of_up = gradients_below(run, recalled.index, "low_up", site.gate_up, gate_up, norm, residual, rstd)
    d_residual = (
        site.o.gradients(dy.shape[0]) if site.after_attention is None else dy.new_empty(dy.shape[0], e)
    )
    dx = site.gate_up.input_gradient(matrix, gate_up, out=d_residual[:, :e])
    rms_norm_backward(dx, residual, norm.weight, rstd, offset=norm.offset, add=dy, out=d_residual[:, :e])
    return d_residual, of_up


def through_up_thin(
    run: Pass,
    recalled: Recalled,
    matrix: Tensor,
    found: GluGradients,
    residual: Tensor,
    dy: Tensor,
    d_out: Tensor,
) -> Back:
    """Walk back through the up projection by one product; its norm adds the adapters' share.

    Where nothing lies between them, the norm's kernel also forms the gradients of the B of down, whose own gradient it
    adds, and of o, whose own it makes.

    Args:
        run: The pass.
        recalled: The layer.
        matrix: The up projection's, extended.
        found: From the gated unit.
        residual: The sum after attention [t, e].
        dy: The layer's own gradient [t, e].
        d_out: That of what the down projection returned [t, e].
    """
    site, index, up, e = recalled.site, recalled.index, recalled.site.gate_up, recalled.site.hidden
    wide = up.gradients_apart(matrix, found.gate_up)
    low_down, low_o = (low_of(run, index, name) for name in ("low_down", "low_o"))
    if site.after_attention is not None:
        d_residual = wide[:, :e]
    else:
        d_residual = wide if site.o.spare == up.spare else site.o.gradients(wide.shape[0])
    passed = norm_gradients(
        site.before_mlp, up.rank, kept_small(run, index, "rstd_mlp"), residual, wide, found.dot,
        up.narrow(matrix), dy, d_residual[:, :e], low_add=low_down if site.after_mlp is None else None,
        low_x=low_o if site.after_attention is None else None,
    )  # fmt: skip
    of_down: tuple[Tensor, ...] = ()
    if low_down is not None:
        b_down = passed.b_add if passed.b_add.shape[1] else exact_product(d_out.t(), low_down)
        of_down = site.down.dealt_out(found.a_down, [b_down])
    of_up = up.dealt_out(passed.a, [found.b_gate, found.b_up])
    return Back(d_residual, (*of_up, *of_down), passed.b_x if passed.b_x.shape[1] else None)
