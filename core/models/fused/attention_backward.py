"""A layer's backward pass through attention."""

from torch import Tensor

from core.kernels.rms_norm import rms_norm_backward
from core.kernels.rope import rope_backward
from core.models.fused.gradients import gradients_below, kept_small, sublayer_gradient
from core.models.fused.mlp_backward import Back
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sublayers import flat


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
