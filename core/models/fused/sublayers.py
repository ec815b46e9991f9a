"""The steps of a layer's forward pass, which its backward pass takes again where nothing was kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from core.kernels.attention import Attended
from core.kernels.glu import glu
from core.kernels.lora_linear import Group
from core.kernels.lora_linear.group import exact_product
from core.kernels.rms_norm import rms_norm
from core.kernels.rope import rope
from core.models.fused.passes import Pass
from core.models.fused.sites import Norm, Site


class Parts(NamedTuple):
    """Queries, keys and values, ready for attention."""

    qkv: Tensor
    """[t, (h + 2g) d] as it is kept: turned already, but raw where heads are normalised."""
    q: Tensor
    """[b, h, s, d]."""
    k: Tensor
    v: Tensor


def normed(norm: Norm, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Normalise x [t, e] into a group's input [t, e + R]; return it and the reciprocal roots [t]."""
    wide = group.inputs(x.shape[0])
    _, rstd = rms_norm(x, norm.weight, norm.eps, offset=norm.offset, out=wide[:, : x.shape[1]])
    return wide, rstd


def normed_after(norm: Norm | None, added: Tensor) -> Tensor:
    """Normalise what a sublayer of a sandwich adds [t, e]; leave another's as it is."""
    if norm is None:
        return added
    return rms_norm(added, norm.weight, norm.eps, offset=norm.offset)[0]


def project(run: Pass, site: Site, wide: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute queries, keys and values side by side [t, (h + 2g) d], and the adapters' inner values [t, R].

    Args:
        run: The pass.
        site: The layer.
        wide: Its input normalised, with room for extra columns [t, e + R].
    """
    qkv = site.qkv.forward(run.filled(site.qkv), wide)
    return qkv, wide[:, site.hidden :].contiguous() if site.qkv.spare else None


def split(run: Pass, site: Site, qkv: Tensor, *, is_turned: bool = False) -> Parts:
    """Turn queries and keys, and view all three as attention wants them.

    Args:
        run: The pass.
        site: The layer.
        qkv: [t, (h + 2g) d]; turned in place unless heads are normalised.
        is_turned: It was kept after it was turned.
    """
    heads, (b, s) = site.heads, run.shape
    turned = (heads.query + heads.key) * heads.width
    cos, sin = run.angles[site.rope]
    if site.head_norms:
        q_norm, k_norm = site.head_norms
        both = qkv.new_empty(qkv.shape[0], turned)
        rope(qkv, cos, sin, run.positions, heads, q_weight=q_norm.weight, k_weight=k_norm.weight, eps=q_norm.eps,
             offset=q_norm.offset, out=both)  # fmt: skip
    else:
        both = qkv[:, :turned]
        if not is_turned:
            rope(qkv, cos, sin, run.positions, heads)
    q, k = both.unflatten(0, (b, s)).unflatten(-1, (-1, heads.width)).split([heads.query, heads.key], dim=2)
    v = qkv[:, turned:].unflatten(0, (b, s)).unflatten(-1, (-1, heads.width))
    return Parts(qkv, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


def attend(run: Pass, site: Site, parts: Parts) -> Attended:
    """Compute attention by the fastest kernel."""
    _, q, k, v = parts
    kernel = run.chooser.choose(q, k, v, site.scale, site.window, run.documents)
    return kernel.forward(q, k, v, site.scale, site.window, run.documents)


def flat(done: Attended) -> Tensor:
    """View what attention returned as [t, h d]."""
    return done.out.transpose(1, 2).flatten(0, 1).flatten(1)


def close(
    run: Pass, group: Group, norm: Norm | None, x: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Project what a sublayer computed back to the model's width and add it to the residual.

    Args:
        run: The pass.
        group: o or down.
        norm: Of a sandwich: what is added is normalised first.
        x: [t, k].
        residual: [t, e].

    Returns:
        The sum [t, e], and in a sandwich what was normalised.
    """
    matrix = run.filled(group)
    if norm is None:
        return group.added_to(matrix, x, residual)[0], None
    added, _ = group.added_to(matrix, x, None)
    found, _ = rms_norm(added, norm.weight, norm.eps, offset=norm.offset, residual=residual)
    return found, added


def hidden_values(site: Site, gate_up: Tensor, *, over: bool) -> Tensor:
    """Compute the MLP's hidden values, with room for the extra columns of the down projection's input: [t, f + R].

    Args:
        site: The layer.
        gate_up: [t, 2f + R].
        over: Nobody needs the gate any more: its place is taken, and the extra columns lie where up began.
    """
    f, down = site.inner, site.down
    width = f + down.spare
    h = gate_up[:, :width] if over and width <= gate_up.shape[1] else down.inputs(gate_up.shape[0])
    glu(gate_up[:, : 2 * f], site.activation, out=h[:, :f])
    return h


def lead_back(run: Pass, group: Group, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Project what a sublayer computed back to the model's width, for the stream.

    Args:
        run: The pass.
        group: o or down.
        x: [t, k], or [t, k + R] with room for the extra columns.

    Returns:
        What is added [t, e], and the adapters' inner values [t, R].
    """
    matrix = run.filled(group)
    if x.shape[1] == group.k:
        return group.added_to(matrix, x, None)
    group.widen(matrix, x)
    return group.product(matrix, x), x[:, group.k :].contiguous()


def of_narrow(d_low: Tensor, norm: Norm, x: Tensor, rstd: Tensor) -> Tensor:
    """Compute d_low' y [R, e] for y = norm(x) without y: its roots scale the rows of d_low, its weight the columns.

    Args:
        d_low: [t, R].
        norm: The norm.
        x: Its input [t, e].
        rstd: Its reciprocal roots [t].
    """
    factor = norm.weight.to(torch.promote_types(norm.weight.dtype, torch.float32)) + norm.offset
    if x.dtype is torch.float16:
        # The roots of small inputs would leave its range.
        most = (d_low.float().abs() * rstd[:, None]).amax().clamp_min(1e-30)
        rstd, factor = rstd / most, factor * most
    rows = torch.mul(d_low, rstd[:, None], out=torch.empty_like(d_low))
    return exact_product(rows.t(), x) * factor
