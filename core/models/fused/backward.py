"""A layer's backward pass: through the MLP, then through attention.

Gradients are written over what has just been read: of gu over gu, of the MLP's hidden values over theirs. Nothing is
written to x, so a graph that is kept can be walked again: what is gone by then is computed again from x.
"""

from typing import NamedTuple

from torch import Tensor

from core.kernels.glu import GluGradients, glu, glu_backward, glu_gradients
from core.kernels.lora_linear import Group
from core.kernels.lora_linear.group import exact_product
from core.kernels.rms_norm import (
    NormGradients,
    fits_norm_thin,
    rms_norm,
    rms_norm_backward,
    rms_norm_backward_low,
    rms_norm_gradients,
)
from core.kernels.rope import rope_backward
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sites import Norm
from core.models.fused.sublayers import flat, normed, of_narrow


class Back(NamedTuple):
    """What the MLP's backward pass leaves to attention's."""

    d_residual: Tensor
    """The gradient of the sum after attention, [t, e] in the first columns of a gradient of o."""
    adapters: tuple[Tensor, ...]
    """The gradients of the adapters of gate_up and down."""
    b_o: Tensor | None = None
    """The gradient of o's B [e, R], if it was formed in passing."""


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


def mlp_backward(run: Pass, recalled: Recalled, dy: Tensor) -> Back:
    """Walk back through the MLP."""
    site, index, tokens = recalled.site, recalled.index, dy.shape[0]
    residual, matrix = recalled.residual(), site.gate_up.fill(run.scratch)
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
    back, d_out = down.fill(run.scratch), run.handed_to(recalled.index, dy)
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
    d_out, rank, (of_gate, of_up) = dy, down.shape.rank, site.gate_up.ranks
    if site.after_mlp is not None:
        d_out = dy.new_empty(dy.shape)
        sublayer_gradient(run, recalled, site.after_mlp, "mlp_out", dy, d_out)
    back = down.fill(run.scratch)
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
        run, recalled, wide, residual, found.dot, up.narrow(matrix), dy,
        low_down if site.after_mlp is None else None, low_o if site.after_attention is None else None,
        d_residual[:, :e],
    )  # fmt: skip
    of_down: tuple[Tensor, ...] = ()
    if low_down is not None:
        b_down = passed.b_add if passed.b_add.shape[1] else exact_product(d_out.t(), low_down)
        of_down = site.down.dealt_out(found.a_down, [b_down])
    of_up = up.dealt_out(passed.a, [found.b_gate, found.b_up])
    return Back(d_residual, (*of_up, *of_down), passed.b_x if passed.b_x.shape[1] else None)


def norm_gradients(
    run: Pass,
    recalled: Recalled,
    wide: Tensor,
    residual: Tensor,
    dot: Tensor,
    narrow: Tensor,
    dy: Tensor,
    low_down: Tensor | None,
    low_o: Tensor | None,
    out: Tensor,
) -> NormGradients:
    """Walk back through the MLP's norm, and form what adapters' gradients need of what is read and written there.

    Args:
        run: The pass.
        recalled: The layer.
        wide: The gradient of the norm's result without the adapters' share, and their own [t, e + R].
        residual: The norm's input [t, e].
        dot: See ``rms_norm_backward_low``.
        narrow: The adapters' sA [R, e].
        dy: What is added [t, e].
        low_down: Inner values of adapters whose gradient is dy [t, r], if there are any.
        low_o: Those of the adapters whose gradient is the result.
        out: Where that is written [t, e].
    """
    norm, rank, e = recalled.site.before_mlp, recalled.site.gate_up.shape.rank, residual.shape[1]
    rstd = kept_small(run, recalled.index, "rstd_mlp")
    if fits_norm_thin([rank, columns(low_down), columns(low_o)], dy.dtype, dy.device):
        return rms_norm_gradients(
            wide[:, :e], residual, norm.weight, rstd, dot, wide[:, e:], narrow, dy, rank=rank, offset=norm.offset,
            low_add=low_down, rank_add=columns(low_down), low_x=low_o, rank_x=columns(low_o), out=out,
        )  # fmt: skip
    a = of_narrow(wide[:, e : e + rank], norm, residual, rstd)
    b_down = residual.new_empty(e, 0) if low_down is None else exact_product(dy.t(), low_down)
    rms_norm_backward_low(
        wide[:, :e], residual, norm.weight, rstd, dot, wide[:, e:], narrow, rank=rank, offset=norm.offset, add=dy,
        out=out,
    )  # fmt: skip
    return NormGradients(out, a, b_down, residual.new_empty(e, 0))


def columns(low: Tensor | None) -> int:
    """Count the columns of inner values there may be."""
    return 0 if low is None else low.shape[1]


def gradients_below(
    run: Pass, index: int, name: str, group: Group, dy: Tensor, norm: Norm, x: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    """Compute the gradients of adapters whose input was norm(x), which nobody computes again.

    Args:
        run: The pass.
        index: The layer.
        name: Of the kept inner values.
        group: Whose adapters.
        dy: Its gradient, widened [t, n + R].
        norm: The norm.
        x: [t, e].
        rstd: The norm's reciprocal roots [t].
    """
    rank, n = group.shape.rank, group.n
    if not rank:
        return ()
    up = exact_product(dy[:, :n].t(), kept_small(run, index, name)[:, :rank])
    return group.dealt_out(of_narrow(dy[:, n : n + rank], norm, x, rstd), group.apart(up))


def sublayer_gradient(
    run: Pass, recalled: Recalled, norm: Norm | None, name: str, dy: Tensor, out: Tensor
) -> None:
    """Write the gradient of what a sublayer returned into ``out`` [t, e]: through its norm, if it has one."""
    if norm is None:
        out.copy_(dy)
        return
    returned = recalled.sublayer_out(name)
    if returned is None:
        returned = again(run, recalled, name)
    _, rstd = rms_norm(returned, norm.weight, norm.eps, offset=norm.offset, out=out)
    rms_norm_backward(dy, returned, norm.weight, rstd, offset=norm.offset, out=out)


def again(run: Pass, recalled: Recalled, name: str) -> Tensor:
    """Compute what a sublayer returned once more: after attention by policy, after the MLP on a second walk only."""
    site = recalled.site
    if name == "attention_out":
        _, done = recalled.attention()
        matrix = site.o.fill(run.scratch)
        return site.o.added_to(matrix, flat(done), None)[0]
    matrix = site.gate_up.fill(run.scratch)
    wide, _ = normed(site.before_mlp, recalled.residual(), site.gate_up)
    gate_up = site.gate_up.forward(matrix, wide)
    return site.down.added_to(site.down.fill(run.scratch), glu(gate_up, site.activation), None)[0]


def attention_backward(
    run: Pass, recalled: Recalled, of_mlp: Back, needs_x: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Walk back through attention; see ``backward``."""
    site, e, d_residual = recalled.site, recalled.site.hidden, of_mlp.d_residual
    parts, done = recalled.attention()
    d_added = d_residual
    if site.after_attention is not None:
        d_added = site.o.gradients(d_residual.shape[0])
        sublayer_gradient(run, recalled, site.after_attention, "attention_out", d_residual, d_added[:, :e])
    matrix = site.o.fill(run.scratch)
    site.o.widen_gradient(matrix, d_added)
    o = flat(done)
    d_o = site.o.input_gradient(matrix, d_added)
    low = run.store.look(recalled.index, "low_o")
    of_o = site.o.adapter_gradients(d_added, o, low if low is not None else d_added, of_mlp.b_o)
    _, q, k, v = parts
    kernel = run.chooser.choose(q, k, v, site.scale, site.window, run.documents)
    heads, (b, s) = site.heads, run.shape
    d_o = d_o.view(b, s, heads.query, heads.width).transpose(1, 2)
    dq, dk, dv = kernel.backward(d_o, q, k, v, done, site.scale, site.window, run.documents)
    d_qkv = site.qkv.gradients(d_residual.shape[0])
    cos, sin = run.angles[site.rope]
    head_norms = site.head_norms
    rope_backward(
        dq, dk, dv, cos, sin, run.positions, heads,
        raw=parts.qkv if head_norms else None, q_weight=head_norms[0].weight if head_norms else None,
        k_weight=head_norms[1].weight if head_norms else None, eps=head_norms[0].eps if head_norms else 0.0,
        offset=head_norms[0].offset if head_norms else 0.0, out=d_qkv[:, : site.qkv.n],
    )  # fmt: skip
    del dq, dk, dv, d_o, parts, done, o
    recalled.parts = recalled.done = None
    matrix = site.qkv.fill(run.scratch)
    x, norm = recalled.x(), site.before_attention
    rstd = kept_small(run, recalled.index, "rstd_attention")
    site.qkv.widen_gradient(matrix, d_qkv)
    of_qkv = gradients_below(run, recalled.index, "low_qkv", site.qkv, d_qkv, norm, x, rstd)
    if not needs_x:
        return None, (*of_qkv, *of_o)
    dx = site.qkv.input_gradient(matrix, d_qkv, out=run.hand_on(recalled.index - 1, d_residual))
    rms_norm_backward(dx, x, norm.weight, rstd, offset=norm.offset, add=d_residual[:, :e], out=dx)
    return dx, (*of_qkv, *of_o)


def kept_small(run: Pass, index: int, name: str) -> Tensor:
    """Return a small tensor that every layer keeps on the GPU."""
    found = run.store.look(index, name)
    assert found is not None
    return found


def low_of(run: Pass, index: int, name: str) -> Tensor | None:
    """Return the kept inner values of a projection's adapters [t, R], R their ranks; None if it has none."""
    site = run.sites[index]
    group = {"low_o": site.o, "low_down": site.down}[name]
    return kept_small(run, index, name)[:, : group.shape.rank] if group.shape.rank else None


def recall_low(run: Pass, index: int, name: str, out: Tensor) -> None:
    """Write the adapters' kept inner values where products read them: [t, R]."""
    low = run.store.look(index, name)
    if low is not None:
        out.copy_(low)
