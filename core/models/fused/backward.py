"""A layer's backward pass: through the MLP, then through attention.

Gradients are written over what has just been read: of gu over gu, of the MLP's hidden values over theirs. Nothing is
written to x, so a graph that is kept can be walked again: what is gone by then is computed again from x.
"""

from torch import Tensor

from core.kernels.glu import GluGradients, glu, glu_backward, glu_gradients
from core.kernels.lora_linear import Group
from core.kernels.lora_linear.group import exact_product
from core.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_backward_low
from core.kernels.rope import rope_backward
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sites import Norm
from core.models.fused.sublayers import flat, is_thin, normed, of_narrow, ranks_of


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
    d_residual, of_mlp = mlp_backward(run, recalled, dy)
    run.store.ask(index - 1, ["residual", "mlp_out"])
    dx, of_attention = attention_backward(run, recalled, d_residual, needs_x)
    return dx, (*of_attention, *of_mlp)


def mlp_backward(run: Pass, recalled: Recalled, dy: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Walk back through the MLP.

    Returns:
        The gradient of the sum after attention, [t, e] in the first columns of a gradient of o, and those of the
        adapters of gate_up and down.
    """
    site, index, tokens = recalled.site, recalled.index, dy.shape[0]
    residual, matrix = recalled.residual(), site.gate_up.fill(run.scratch)
    gate_up = run.store.take(index, "gate_up")
    if gate_up is None:
        wide, _ = normed(site.before_mlp, residual, site.gate_up)
        recall_low(run, index, "low_up", wide[:, site.hidden :])
        gate_up = site.gate_up.gradients(tokens)
        site.gate_up.product(matrix, wide, gate_up[:, : 2 * site.inner])
        del wide
    back = site.down.fill(run.scratch)
    d_out = run.handed_to(index, dy)
    if d_out is None:
        d_out = site.down.gradients(tokens)
        sublayer_gradient(run, recalled, site.after_mlp, "mlp_out", dy, d_out[:, : site.hidden])
    site.down.widen_gradient(back, d_out)
    dh = site.down.input_gradient(back, d_out)
    found, of_down = through_gate(run, recalled, dh, d_out, gate_up)
    del dh, d_out
    if found is None:
        d_residual, of_up = through_up(run, recalled, matrix, gate_up, residual, dy)
    else:
        d_residual, of_up = through_up_thin(run, recalled, matrix, found, residual, dy)
    return d_residual, (*of_up, *of_down)


def through_gate(
    run: Pass, recalled: Recalled, dh: Tensor, d_out: Tensor, gate_up: Tensor
) -> tuple[GluGradients | None, tuple[Tensor, ...]]:
    """Walk back through the gated unit; its gradient is written over ``gate_up``.

    Args:
        run: The pass.
        recalled: The layer.
        dh: The gradient of the hidden values [t, f]; written over.
        d_out: The down projection's gradient, widened [t, e + R].
        gate_up: [t, 2f + R].

    Returns:
        The adapters' thin products that a kernel computed in passing, or None if products have to; and the gradients of
        the down projection's adapters.
    """
    site, index, down = recalled.site, recalled.index, recalled.site.down
    halves, rank = gate_up[:, : 2 * site.inner], recalled.site.down.shape.rank
    low = run.store.look(index, "low_down")
    if not is_thin(site):
        h, _ = glu_backward(dh, halves, site.activation, h_out=dh, out=halves)
        return None, down.adapter_gradients(d_out, h, low if low is not None else d_out)
    of_gate, of_up = ranks_of(site.gate_up)
    found = glu_gradients(
        dh, halves, site.activation, low=kept_small(run, index, "low_up"), ranks=(of_gate, of_up),
        d_low=d_out[:, site.hidden :], rank_down=rank, out=halves,
    )  # fmt: skip
    if low is None or not rank:
        return found, ()
    return found, down.dealt_out(found.a_down, [exact_product(d_out[:, : site.hidden].t(), low[:, :rank])])


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
        The gradient of the sum after attention, see ``mlp_backward``, and those of the adapters.
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
    run: Pass, recalled: Recalled, matrix: Tensor, found: GluGradients, residual: Tensor, dy: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Walk back through the up projection by one product; its norm adds the adapters' share. See ``through_up``."""
    site, norm, up, e = recalled.site, recalled.site.before_mlp, recalled.site.gate_up, recalled.site.hidden
    rank, rstd = up.shape.rank, kept_small(run, recalled.index, "rstd_mlp")
    wide = up.gradients_apart(matrix, found.gate_up)
    a_up = of_narrow(wide[:, e : e + rank], norm, residual, rstd)
    if site.after_attention is not None:
        d_residual = wide[:, :e]
    else:
        d_residual = wide if site.o.spare == up.spare else site.o.gradients(wide.shape[0])
    rms_norm_backward_low(
        wide[:, :e], residual, norm.weight, rstd, found.dot, wide[:, e:], up.narrow(matrix), rank=rank,
        offset=norm.offset, add=dy, out=d_residual[:, :e],
    )  # fmt: skip
    return d_residual, up.dealt_out(a_up, [found.b_gate, found.b_up])


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
    run: Pass, recalled: Recalled, d_residual: Tensor, needs_x: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Walk back through attention; see ``backward``."""
    site, e = recalled.site, recalled.site.hidden
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
    of_o = site.o.adapter_gradients(d_added, o, low if low is not None else d_added)
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


def recall_low(run: Pass, index: int, name: str, out: Tensor) -> None:
    """Write the adapters' kept inner values where products read them: [t, R]."""
    low = run.store.look(index, name)
    if low is not None:
        out.copy_(low)
