"""A decoder layer as one differentiable function that knows what it keeps.

Forward, for an input x [t, e] of b * s tokens::

    qkv = norm(x) Wqkv';  o = attention(turn(qkv));  h = x + o Wo';  gu = norm(h) Wgu';  y = h + glu(gu) Wdown'

A policy says for each of x, qkv, o, h and gu whether it waits on the GPU, waits in main memory, or is computed again;
y is nobody's to compute again, for the gradient of the down projection needs its input alone. Gemma 3 normalises
what o Wo' and the down projection return, and keeps both.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.models.fused.backward import backward
from core.models.fused.passes import Pass
from core.models.fused.policy import Place
from core.models.fused.sublayers import (
    attend,
    flat,
    hidden_values,
    lead_back,
    normed,
    normed_after,
    project,
    split,
)


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
            ctx.versions = [each._version for each in adapters]
            # Whatever is saved, autograd then refuses a second walk over a graph that was not kept.
            ctx.save_for_backward(
                x if policy.input is not Place.HOST or not run.store.is_gpu else x.new_empty(0)
            )
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x and of the adapters."""
        (x,) = ctx.saved_tensors
        if [each._version for each in ctx.run.sites[ctx.index].parameters] != ctx.versions:
            raise RuntimeError("an adapter was changed in place between the forward and the backward pass")
        (dy,) = grads
        if dy.stride(-1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()
        needs_x = ctx.needs_input_grad[0]
        with torch.autocast(dy.device.type, enabled=False):
            dx, adapters = backward(ctx.run, ctx.index, x if x.numel() else None, dy, needs_x)
            if ctx.run.gathering is None:
                return (dx, None, None, None, *adapters)
            kept = ctx.run.gathering.take(ctx.index, ctx.run.sites[ctx.index].parameters, adapters)
        return (dx, None, None, None, *kept)


def decode(x: Tensor, run: Pass, index: int, *, keeps: bool) -> Tensor:
    """Run a layer of a pass on x [t, e]."""
    found: Tensor = DecoderLayer.apply(x, run, index, keeps, *run.sites[index].parameters)  # type: ignore[no-untyped-call]
    return found


def forward(run: Pass, index: int, x: Tensor, keeps: bool) -> Tensor:
    """Compute a layer, and keep what its policy says."""
    site, tokens, stream = run.sites[index], x.shape[0], run.stream
    stream.enter(x)
    wide, rstd_attention = stream.taken() or normed(site.before_attention, x, site.qkv)
    qkv, low_qkv = project(run, site, wide)
    parts = split(run, site, qkv)
    done = attend(run, site, parts)
    added, low_o = lead_back(run, site.o, flat(done))
    residual, wide, rstd_mlp = stream.add(
        normed_after(site.after_attention, added), site.before_mlp, site.gate_up
    )
    attention_out = added if site.after_attention is not None else None
    del added
    matrix = run.filled(site.gate_up)
    gate_up = site.gate_up.gradients(tokens)
    site.gate_up.forward_into(matrix, wide, gate_up[:, : 2 * site.inner])
    low_up = wide[:, site.hidden :].contiguous() if site.gate_up.spare else None
    del wide
    is_kept = keeps and run.policies[index].gate_up is Place.DEVICE
    h = hidden_values(site, gate_up, over=not is_kept)
    mlp, low_down = lead_back(run, site.down, h)
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
        for name, small in (
            ("low_qkv", low_qkv), ("low_o", low_o), ("low_up", low_up), ("low_down", low_down),
            ("rstd_attention", rstd_attention), ("rstd_mlp", rstd_mlp),
        ):  # fmt: skip
            if small is not None:
                items.append((name, small, Place.DEVICE))
        if attention_out is not None:
            items += [
                ("attention_out", attention_out, policy.attention_out),
                ("mlp_out", mlp, policy.mlp_out),
            ]
        run.store.keep(index, items)
    return y


def leave(run: Pass, index: int, added: Tensor) -> Tensor:
    """Add the MLP's output and normalise the sum for what comes next; return the rounded sum [t, e]."""
    following = run.sites.get(index + 1)
    if following is not None:
        y, *normed_already = run.stream.add(added, following.before_attention, following.qkv)
    elif run.last is not None and index == run.depth - 1:
        y, *normed_already = run.stream.add(added, run.last, None)
    else:
        y, normed_already = run.stream.add_last(added), []
    run.stream.hand_over(y, *normed_already)
    return y
