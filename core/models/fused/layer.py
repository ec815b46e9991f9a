"""A decoder layer as one differentiable function that knows what it keeps.

Forward, for an input x [t, e] of b * s tokens::

    qkv = norm(x) Wqkv';  o = attention(turn(qkv));  h = x + o Wo';  gu = norm(h) Wgu';  y = h + glu(gu) Wdown'

A policy says for each of x, qkv, o, h and gu whether it waits on the GPU, waits in main memory, or is computed again;
y is nobody's to compute again, for the gradient of the down projection needs its input alone. Gemma 3 normalises
what o Wo' and the down projection return, and keeps both.

The backward pass writes gradients over what it has just read: of gu over gu, of the MLP's hidden values over theirs.
It never writes to x, so a graph that is kept can be walked again: what is gone by then is computed again from x.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from core.kernels.attention import Attended, Chooser, Documents
from core.kernels.glu import glu, glu_backward
from core.kernels.lora_linear import Group, Scratch
from core.kernels.rms_norm import accumulate_rms_norm, rms_norm, rms_norm_backward
from core.kernels.rope import rope, rope_backward
from core.models.fused.policy import Place, Policy
from core.models.fused.sites import Norm, Site
from core.models.fused.store import Store


class Angles(NamedTuple):
    """Rotary tables."""

    cos: Tensor
    """[p, d] float32, a row for each position."""
    sin: Tensor


class Stream:
    """The residual stream in float32, beside the rounded tensors that layers pass on and keep.

    Rounding after each of many additions is what would make a deep model in 16 bits wander off.
    """

    def __init__(self) -> None:
        self.exact: Tensor | None = None
        """[t, e] float32; float64 for float64."""
        self.visible: Tensor | None = None
        """Its rounded twin, which autograd sees."""
        self.wide: Tensor | None = None
        """The stream, normalised for the next layer, with room for extra columns."""
        self.rstd: Tensor | None = None
        """Reciprocal roots of that norm [t]."""

    def enter(self, x: Tensor) -> None:
        """Go on from x [t, e], or begin with it."""
        if self.visible is None or self.visible.data_ptr() != x.data_ptr():
            self.exact = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
            self.visible = self.wide = self.rstd = None

    def add(self, added: Tensor, norm: Norm, group: Group | None) -> tuple[Tensor, Tensor]:
        """Add a sublayer's output [t, e].

        Args:
            added: What is added.
            norm: What follows.
            group: Whose input it makes, extra columns included; None if nobody's.

        Returns:
            The rounded sum [t, e], and the sum normalised.
        """
        assert self.exact is not None
        wide = torch.empty_like(added) if group is None else group.inputs(added.shape[0])
        _, rounded, self.rstd = accumulate_rms_norm(
            self.exact, added, norm.weight, norm.eps, offset=norm.offset, out=wide[:, : added.shape[1]]
        )
        return rounded, wide

    def hand_over(self, visible: Tensor, wide: Tensor | None) -> None:
        """Leave the sum, and what was made of it, to whoever comes next."""
        self.visible, self.wide = visible, wide

    def taken(self) -> Tensor | None:
        """Return what the layer before has normalised, if it has; once."""
        wide, self.wide = self.wide, None
        return wide


class Pass:
    """One forward pass over a batch, and all that its backward pass needs."""

    def __init__(
        self,
        shape: tuple[int, int],
        positions: Tensor,
        angles: dict[str, Angles],
        documents: Documents | None,
        store: Store,
        scratch: Scratch,
        chooser: Chooser,
    ) -> None:
        """Gather what the layers share.

        Args:
            shape: (b, s).
            positions: [b * s] int32, rows of the angles' tables.
            angles: By the name of a table.
            documents: Where rows hold several.
            store: Keeps tensors.
            scratch: Room for extended weights.
            chooser: Knows the fastest attention.
        """
        self.shape, self.positions, self.angles, self.documents = shape, positions, angles, documents
        self.store, self.scratch, self.chooser = store, scratch, chooser
        self.sites: dict[int, Site] = {}
        self.policies: dict[int, Policy] = {}
        self.handed: dict[int, Tensor] = {}
        self.stream = Stream()
        self.last: Norm | None = None
        """The norm after the last layer, if it is one of the known ones."""
        self.depth = 0
        """Layers of the model."""

    def hand_on(self, index: int, like: Tensor) -> Tensor:
        """Make room for the gradient that a layer will be given, with the extra columns it will want: [t, e].

        The layer finds them again if nobody replaced the gradient on the way, which saves it a copy.
        """
        site = self.sites.get(index)
        hidden = next(iter(self.sites.values())).hidden
        if site is None or site.after_mlp is not None:
            return like.new_empty(like.shape[0], hidden)
        self.handed[index] = wide = site.down.gradients(like.shape[0])
        return wide[:, :hidden]

    def handed_to(self, index: int, dy: Tensor) -> Tensor | None:
        """Return a gradient with its extra columns [t, e + R], if it is the one that was made for a layer."""
        wide = self.handed.pop(index, None)
        if wide is None or wide.data_ptr() != dy.data_ptr() or wide.stride() != dy.stride():
            return None
        return wide


class Parts(NamedTuple):
    """Queries, keys and values, ready for attention."""

    qkv: Tensor
    """[t, (h + 2g) d] as it is kept: turned already, but raw where heads are normalised."""
    q: Tensor
    """[b, h, s, d]."""
    k: Tensor
    v: Tensor


class DecoderLayer(torch.autograd.Function):
    """The layer; call it with ``decode``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Pass, index: int, keeps: bool, *adapters: Tensor) -> Tensor:
        """Compute y [t, e] from x [t, e]."""
        with torch.autocast(x.device.type, enabled=False):
            y = forward(run, index, x, keeps)
        if keeps:
            policy = run.policies[index]
            ctx.run, ctx.index = run, index
            # Whatever is saved, autograd then refuses a second walk over a graph that was not kept.
            ctx.save_for_backward(
                x if policy.input is not Place.HOST or not run.store.is_gpu else x.new_empty(0)
            )
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x and of the adapters."""
        (x,) = ctx.saved_tensors
        (dy,) = grads
        if dy.stride(-1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()
        needs_x = ctx.needs_input_grad[0]
        with torch.autocast(dy.device.type, enabled=False):
            dx, adapters = backward(ctx.run, ctx.index, x if x.numel() else None, dy, needs_x)
        return (dx, None, None, None, *adapters)


def decode(x: Tensor, run: Pass, index: int, *, keeps: bool) -> Tensor:
    """Run a layer of a pass on x [t, e]."""
    found: Tensor = DecoderLayer.apply(x, run, index, keeps, *run.sites[index].parameters)  # type: ignore[no-untyped-call]
    return found


def forward(run: Pass, index: int, x: Tensor, keeps: bool) -> Tensor:
    """Compute a layer, and keep what its policy says."""
    site, tokens, stream = run.sites[index], x.shape[0], run.stream
    stream.enter(x)
    qkv, low_qkv = project(run, site, x, stream.taken())
    parts = split(run, site, qkv)
    done = attend(run, site, parts)
    added, low_o = site.o.added_to(site.o.fill(run.scratch), flat(done), None)
    residual, wide = stream.add(normed_after(site.after_attention, added), site.before_mlp, site.gate_up)
    matrix = site.gate_up.fill(run.scratch)
    gate_up = site.gate_up.gradients(tokens)
    site.gate_up.forward_into(matrix, wide, gate_up[:, : 2 * site.inner])
    low_up = wide[:, site.hidden :].contiguous() if site.gate_up.spare else None
    del wide
    is_kept = keeps and run.policies[index].gate_up is Place.DEVICE
    h = hidden_values(site, gate_up, over=not is_kept)
    mlp = site.down.forward(site.down.fill(run.scratch), h)
    low_down = h[:, site.inner :].contiguous() if site.down.spare else None
    del h
    if not is_kept:
        del gate_up
    y = leave(run, index, normed_after(site.after_mlp, mlp))
    if keeps:
        policy = run.policies[index]
        items = [
            ("input", x, policy.input if policy.input is Place.HOST else Place.RECOMPUTE),
            ("qkv", parts.qkv, policy.qkv),
            ("attention", done.out.transpose(1, 2), policy.attention),
            ("residual", residual, policy.residual),
        ]
        if is_kept:
            items.append(("gate_up", gate_up, policy.gate_up))
        if policy.attention is not Place.RECOMPUTE:
            run.store.states[index] = done.state
        for name, low in (("low_qkv", low_qkv), ("low_o", low_o), ("low_up", low_up), ("low_down", low_down)):
            if low is not None:
                items.append((name, low, Place.DEVICE))
        if site.after_mlp is not None:
            items += [("attention_out", added, policy.attention_out), ("mlp_out", mlp, policy.mlp_out)]
        run.store.keep(index, items)
    return y


def hidden_values(site: Site, gate_up: Tensor, *, over: bool) -> Tensor:
    """Compute the MLP's hidden values, with room for the extra columns of the down projection's input: [t, f + R].

    Args:
        site: The layer.
        gate_up: [t, 2f + R].
        over: Nobody needs the gate any more: its place is taken, and the extra columns lie where up began.
    """
    f, width = site.inner, site.inner + site.down.spare
    h = gate_up[:, :width] if over and width <= gate_up.shape[1] else site.down.inputs(gate_up.shape[0])
    glu(gate_up[:, : 2 * f], site.activation, out=h[:, :f])
    return h


def normed_after(norm: Norm | None, added: Tensor) -> Tensor:
    """Normalise what a sublayer of a sandwich adds [t, e]; leave another's as it is."""
    if norm is None:
        return added
    return rms_norm(added, norm.weight, norm.eps, offset=norm.offset)[0]


def leave(run: Pass, index: int, added: Tensor) -> Tensor:
    """Add the MLP's output and normalise the sum for what comes next; return the rounded sum [t, e]."""
    following = run.sites.get(index + 1)
    if following is not None:
        y, wide = run.stream.add(added, following.before_attention, following.qkv)
    elif run.last is not None and index == run.depth - 1:
        y, wide = run.stream.add(added, run.last, None)
    else:
        assert run.stream.exact is not None
        run.stream.exact += added
        y, wide = run.stream.exact.to(added.dtype, copy=True), None
    run.stream.hand_over(y, wide)
    return y


def normed(norm: Norm, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Normalise x [t, e] into a group's input [t, e + R]; return it and the reciprocal roots [t]."""
    wide = group.inputs(x.shape[0])
    _, rstd = rms_norm(x, norm.weight, norm.eps, offset=norm.offset, out=wide[:, : x.shape[1]])
    return wide, rstd


def project(run: Pass, site: Site, x: Tensor, wide: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Compute queries, keys and values side by side, and the adapters' inner values [t, R].

    Args:
        run: The pass.
        site: The layer.
        x: [t, e].
        wide: x normalised, if that was done before.
    """
    matrix = site.qkv.fill(run.scratch)
    if wide is None:
        wide, _ = normed(site.before_attention, x, site.qkv)
    qkv = site.qkv.forward(matrix, wide)
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


def close(
    run: Pass, group: Group, norm: Norm | None, x: Tensor, residual: Tensor
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Project what a sublayer computed back to the model's width and add it to the residual.

    Args:
        run: The pass.
        group: o or down.
        norm: Of a sandwich: what is added is normalised first.
        x: [t, k].
        residual: [t, e].

    Returns:
        The adapters' inner values [t, R], the sum [t, e], and in a sandwich what was normalised.
    """
    matrix = group.fill(run.scratch)
    if norm is None:
        found, low = group.added_to(matrix, x, residual)
        return low, found, None
    added, low = group.added_to(matrix, x, None)
    found, _ = rms_norm(added, norm.weight, norm.eps, offset=norm.offset, residual=residual)
    return low, found, added


def flat(done: Attended) -> Tensor:
    """View what attention returned as [t, h d]."""
    return done.out.transpose(1, 2).flatten(0, 1).flatten(1)


class Recalled:
    """The tensors of a layer in its backward pass: what was kept, or else computed again, each once."""

    def __init__(self, run: Pass, index: int, x: Tensor | None) -> None:
        """Ask for what waits in main memory.

        Args:
            run: The pass.
            index: The layer.
            x: Its input, unless that waits in main memory.
        """
        self.run, self.index, self.site = run, index, run.sites[index]
        self.held_x = x
        self.parts: Parts | None = None
        self.done: Attended | None = None
        self.added: Tensor | None = None
        run.store.ask(index, ["residual", "mlp_out", "qkv", "attention", "input", "attention_out"])

    def x(self) -> Tensor:
        """Return the input [t, e]."""
        if self.held_x is None:
            self.held_x = self.run.store.take(self.index, "input")
        assert self.held_x is not None
        return self.held_x

    def attention(self) -> tuple[Parts, Attended]:
        """Return queries, keys and values, and what attention made of them."""
        if self.parts is None or self.done is None:
            kept = self.run.store.take(self.index, "qkv")
            qkv = project(self.run, self.site, self.x())[0] if kept is None else kept
            self.parts = split(self.run, self.site, qkv, is_turned=kept is not None)
            out = self.run.store.take(self.index, "attention")
            if out is None:
                self.done = attend(self.run, self.site, self.parts)
            else:
                self.done = Attended(out.transpose(1, 2), self.run.store.states[self.index])
        return self.parts, self.done

    def residual(self) -> Tensor:
        """Return the sum after attention [t, e]."""
        kept = self.run.store.take(self.index, "residual")
        if kept is not None:
            return kept
        norm, added = self.site.after_attention, self.sublayer_out("attention_out")
        if norm is not None and added is not None:
            found, _ = rms_norm(added, norm.weight, norm.eps, offset=norm.offset, residual=self.x())
            return found
        _, done = self.attention()
        site = self.site
        _, found, self.added = close(self.run, site.o, site.after_attention, flat(done), self.x())
        return found

    def sublayer_out(self, name: str) -> Tensor | None:
        """Return what a sublayer of a sandwich returned before its norm, if it was kept."""
        if name == "mlp_out":
            return self.run.store.take(self.index, name)
        if self.added is None:
            self.added = self.run.store.take(self.index, name)
        return self.added


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
    up, down, f, e = site.gate_up, site.down, site.inner, site.hidden
    residual = recalled.residual()
    matrix = up.fill(run.scratch)
    wide, rstd = normed(site.before_mlp, residual, up)
    gate_up = run.store.take(index, "gate_up")
    recall_low(run, index, "low_up", wide[:, e:])
    if gate_up is None:
        gate_up = up.gradients(tokens)
        up.product(matrix, wide, gate_up[:, : 2 * f])
    back = down.fill(run.scratch)
    d_out = run.handed_to(index, dy)
    if d_out is None:
        d_out = down.gradients(tokens)
        sublayer_gradient(run, recalled, site.after_mlp, "mlp_out", dy, d_out[:, :e])
    down.widen_gradient(back, d_out)
    dh = down.input_gradient(back, d_out)
    h, _ = glu_backward(dh, gate_up[:, : 2 * f], site.activation, h_out=dh, out=gate_up[:, : 2 * f])
    low = run.store.look(index, "low_down")
    of_down = down.adapter_gradients(d_out, h, low if low is not None else d_out)
    del dh, h, d_out
    up.widen_gradient(matrix, gate_up)
    of_up = up.adapter_gradients(gate_up, wide, wide[:, e:])
    norm = site.before_mlp
    d_residual = site.o.gradients(tokens) if site.after_attention is None else dy.new_empty(tokens, e)
    dx = up.input_gradient(matrix, gate_up, out=d_residual[:, :e])
    rms_norm_backward(dx, residual, norm.weight, rstd, offset=norm.offset, add=dy, out=d_residual[:, :e])
    return d_residual, (*of_up, *of_down)


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
    wide, rstd = normed(norm, x, site.qkv)
    recall_low(run, recalled.index, "low_qkv", wide[:, e:])
    site.qkv.widen_gradient(matrix, d_qkv)
    of_qkv = site.qkv.adapter_gradients(d_qkv, wide, wide[:, e:])
    if not needs_x:
        return None, (*of_qkv, *of_o)
    dx = site.qkv.input_gradient(matrix, d_qkv, out=run.hand_on(recalled.index - 1, d_residual))
    rms_norm_backward(dx, x, norm.weight, rstd, offset=norm.offset, add=d_residual[:, :e], out=dx)
    return dx, (*of_qkv, *of_o)


def recall_low(run: Pass, index: int, name: str, out: Tensor) -> None:
    """Write the adapters' kept inner values where products read them: [t, R]."""
    low = run.store.look(index, name)
    if low is not None:
        out.copy_(low)


class FinalNorm(torch.autograd.Function):
    """The norm after the last layer; its weight is frozen."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, norm: Norm, stream: Stream) -> Tensor:
        """Normalise x [t, e], unless the last layer has done so."""
        y, rstd = stream.taken(), stream.rstd
        if y is None or rstd is None or stream.visible is None or stream.visible.data_ptr() != x.data_ptr():
            y, rstd = rms_norm(x, norm.weight, norm.eps, offset=norm.offset)
        ctx.save_for_backward(x, rstd)
        ctx.norm = norm  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of x."""
        x, rstd = ctx.saved_tensors
        norm: Norm = ctx.norm
        dy = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        return rms_norm_backward(dy, x, norm.weight, rstd, offset=norm.offset), None, None
