"""What the backward passes of the MLP and of attention share: norms, adapters below them, and kept small tensors."""

from torch import Tensor

from core.kernels.glu import glu
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
from core.models.fused.passes import Pass
from core.models.fused.recalled import Recalled
from core.models.fused.sites import Norm
from core.models.fused.sublayers import flat, normed, of_narrow


def norm_gradients(
    norm: Norm,
    rank: int,
    rstd: Tensor,
    x: Tensor,
    wide: Tensor,
    dot: Tensor,
    narrow: Tensor,
    add: Tensor,
    out: Tensor,
    *,
    low_add: Tensor | None = None,
    low_x: Tensor | None = None,
) -> NormGradients:
    """Walk back through a norm, and form what adapters' gradients need of what is read and written there.

    Args:
        norm: The norm.
        rank: Of the adapters behind it.
        rstd: Its reciprocal roots [t].
        x: Its input [t, e].
        wide: The gradient of its result without the adapters' share, and their own [t, e + R].
        dot: See ``rms_norm_backward_low``.
        narrow: The adapters' sA [R, e].
        add: What is added [t, e].
        out: Where the gradient of x is written [t, e].
        low_add: Inner values of adapters whose result's gradient is ``add`` [t, r], if there are any.
        low_x: Those of the adapters whose result's gradient is x's.
    """
    e = x.shape[1]
    if fits_norm_thin([rank, columns(low_add), columns(low_x)], x.dtype, x.device):
        return rms_norm_gradients(
            wide[:, :e], x, norm.weight, rstd, dot, wide[:, e:], narrow, add, rank=rank, offset=norm.offset,
            low_add=low_add, rank_add=columns(low_add), low_x=low_x, rank_x=columns(low_x), out=out,
        )  # fmt: skip
    a = of_narrow(wide[:, e : e + rank], norm, x, rstd)
    b_add = x.new_empty(e, 0) if low_add is None else exact_product(add.t(), low_add)
    rms_norm_backward_low(
        wide[:, :e], x, norm.weight, rstd, dot, wide[:, e:], narrow, rank=rank, offset=norm.offset, add=add, out=out
    )  # fmt: skip
    b_x = x.new_empty(e, 0) if low_x is None else exact_product(out.t(), low_x)
    return NormGradients(out, a, b_add, b_x)


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
    rank, n = group.rank, group.n
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
        matrix = run.filled(site.o)
        return site.o.added_to(matrix, flat(done), None)[0]
    matrix = run.filled(site.gate_up)
    wide, _ = normed(site.before_mlp, recalled.residual(), site.gate_up)
    gate_up = site.gate_up.forward(matrix, wide)
    return site.down.added_to(run.filled(site.down), glu(gate_up, site.activation), None)[0]


def kept_small(run: Pass, index: int, name: str) -> Tensor:
    """Return a small tensor that every layer keeps on the GPU."""
    found = run.store.look(index, name)
    assert found is not None
    return found


def low_of(run: Pass, index: int, name: str) -> Tensor | None:
    """Return the kept inner values of a projection's adapters [t, R], R their ranks; None if it has none."""
    site = run.sites[index]
    group = {"low_o": site.o, "low_down": site.down}[name]
    return kept_small(run, index, name)[:, : group.rank] if group.rank else None


def recall_low(run: Pass, index: int, name: str, out: Tensor) -> None:
    """Write the adapters' kept inner values where products read them: [t, R]."""
    low = run.store.look(index, name)
    if low is not None:
        out.copy_(low)
