"""A layer's backward pass through attention."""

from torch import Tensor

from core.kernels.rms_norm import rms_norm_backward
from core.kernels.rope import rope_backward
from core.models.fused.gradients import gradients_below, kept_small, sublayer_gradient
from core.models.fused.mlp_backward import Back
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sites import Norm
from core.models.fused.sublayers import flat

Upstream = tuple[Tensor, Tensor, Tensor]
"""Gradients of queries [b, h, s, d], keys and values [b, g, s, d]."""


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
    matrix = run.filled(site.o)
    site.o.widen_gradient(matrix, d_added)
    o = flat(done)
    d_o = site.o.input_gradient(matrix, d_added)
    low = run.store.look(recalled.index, "low_o")
    of_o = site.o.adapter_gradients(d_added, o, low if low is not None else d_added, of_mlp.b_o)
    _, q, k, v = parts
    kernel = run.chooser.choose(q, k, v, site.scale, site.window, run.documents)
    heads, (b, s) = site.heads, run.shape
    d_o = d_o.view(b, s, heads.query, heads.width).transpose(1, 2)
    upstream = kernel.backward(d_o, q, k, v, done, site.scale, site.window, run.documents)
    del d_o, done, o, q, k, v
    recalled.parts = recalled.done = None
    d_qkv = turned_back(run, recalled, parts.qkv, upstream)
    del upstream, parts
    dx, of_qkv = through_qkv(run, recalled, d_qkv, d_residual, needs_x)
    return dx, (*of_qkv, *of_o)


def turned_back(run: Pass, recalled: Recalled, qkv: Tensor, upstream: Upstream) -> Tensor:
    """Walk back through the rotation, and the norms over heads.

    Args:
        run: The pass.
        recalled: The layer.
        qkv: [t, n] as it was kept.
        upstream: What attention's backward pass returned.

    Returns:
        The gradient of what was projected, with room for extra columns [t, n + R].
    """
    site = recalled.site
    d_qkv, (cos, sin) = site.qkv.gradients(qkv.shape[0]), run.angles[site.rope]
    q_weight, k_weight, eps, offset = scales_of(site.head_norms)
    rope_backward(
        *upstream, cos, sin, run.positions, site.heads, raw=qkv if site.head_norms else None, q_weight=q_weight,
        k_weight=k_weight, eps=eps, offset=offset, out=d_qkv[:, : site.qkv.n],
    )  # fmt: skip
    return d_qkv


def through_qkv(
    run: Pass, recalled: Recalled, d_qkv: Tensor, d_residual: Tensor, needs_x: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Walk back through the projection and its norm.

    Args:
        run: The pass.
        recalled: The layer.
        d_qkv: From ``turned_back``.
        d_residual: The gradient of the sum after attention, [t, e] in its first columns.
        needs_x: Whether the input's gradient is wanted.

    Returns:
        It [t, e], and the gradients of the adapters.
    """
    site, index, e = recalled.site, recalled.index, recalled.site.hidden
    matrix, x, norm = run.filled(site.qkv), recalled.x(), site.before_attention
    rstd = kept_small(run, index, "rstd_attention")
    site.qkv.widen_gradient(matrix, d_qkv)
    of_qkv = gradients_below(run, index, "low_qkv", site.qkv, d_qkv, norm, x, rstd)
    if not needs_x:
        return None, of_qkv
    dx = site.qkv.input_gradient(matrix, d_qkv, out=run.hand_on(index - 1, d_residual))
    rms_norm_backward(dx, x, norm.weight, rstd, offset=norm.offset, add=d_residual[:, :e], out=dx)
    return dx, of_qkv


def scales_of(norms: tuple[Norm, Norm] | None) -> tuple[Tensor | None, Tensor | None, float, float]:
    """Return the weights of the norms over query and key heads, their epsilon and offset."""
    if norms is None:
        return None, None, 0.0, 0.0
    return norms[0].weight, norms[1].weight, norms[0].eps, norms[0].offset
