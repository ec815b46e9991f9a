"""The rotary embedding against Hugging Face's function and attention modules, and autograd in float64."""

from types import ModuleType

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3TextConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config

from core.kernels import rope as door
from core.kernels.rope import Heads
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)

EPS = 1e-6
# Batch, tokens, heads: grouped, all alike, one key head, widths that are no power of two, one token.
CASES = [
    (2, 5, Heads(4, 2, 64)),
    (1, 63, Heads(2, 2, 32)),
    (3, 7, Heads(3, 1, 80)),
    (1, 9, Heads(6, 3, 6)),
    (2, 1, Heads(32, 8, 128)),
    (1, 11, Heads(4, 1, 256)),
]
DTYPES = [torch.float32, torch.bfloat16]
POSITIONS = 97


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.rope import fused

    return {"fused": fused, "door": door}[request.param]


def table(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=DEVICE) / width)
    angles = torch.arange(POSITIONS, device=DEVICE)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos() * 1.1, angles.sin() * 1.1


def places(n: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(0, POSITIONS, (n,), generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype)


def norms(heads: Heads, dtype: torch.dtype, offset: float | None) -> dict:
    if offset is None:
        return {}
    q_weight, k_weight = normal(2, heads.width, dtype=dtype, seed=7)
    return {"q_weight": q_weight, "k_weight": k_weight, "eps": EPS, "offset": offset}


def turned(qkv, cos, sin, positions, heads, q_weight=None, k_weight=None, eps=0.0, offset=0.0, norm=None):
    """Rotate by Hugging Face's function, in the precision of qkv; return queries | keys | values."""
    q, k, v = qkv.unflatten(1, (-1, heads.width)).split((heads.query, heads.key, heads.key), dim=1)
    if q_weight is not None:
        q = functional.rms_norm(q, (heads.width,), q_weight.to(q.dtype) + offset, eps)
        k = functional.rms_norm(k, (heads.width,), k_weight.to(k.dtype) + offset, eps)
    q, k = apply_rotary_pos_emb(q, k, cos[positions].to(q.dtype), sin[positions].to(q.dtype))
    return torch.cat((q, k, v), dim=1).flatten(1)


def upstream(b: int, s: int, heads: Heads, dtype: torch.dtype, layout: str) -> list[torch.Tensor]:
    """Return gradients [b, heads, s, width] laid out as attention backends leave them."""
    counts = (heads.query, heads.key, heads.key)
    if layout == "heads first":
        return [normal(b, count, s, heads.width, dtype=dtype, seed=i) for i, count in enumerate(counts)]
    if layout == "tokens first":
        made = [normal(b, s, count, heads.width, dtype=dtype, seed=i) for i, count in enumerate(counts)]
        return [x.transpose(1, 2) for x in made]
    packed = torch.full((b, s, sum(counts) + 2, heads.width + 8), float("nan"), dtype=dtype, device=DEVICE)
    views = packed[:, :, 1:-1, 8:].transpose(1, 2).split(counts, dim=1)
    return [view.copy_(normal(*view.shape, dtype=dtype, seed=i)) for i, view in enumerate(views)]


def rows(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.transpose(1, 2).flatten(0, 1).flatten(1) for x in gradients], dim=1)


def autograd(qkv, dqkv, *tables, **norm) -> torch.Tensor:
    qkv = qkv.clone().requires_grad_()
    return torch.autograd.grad(turned(qkv, *tables, **norm), qkv, dqkv.to(qkv.dtype))[0]


@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "s", "heads"), CASES)
def test_rotation_is_as_exact_as_plain_pytorch(op, b, s, heads, dtype, offset):
    n, columns = b * s, (heads.query + heads.key) * heads.width
    qkv, norm = (
        normal(n, columns + heads.key * heads.width, dtype=dtype, scale=2.0),
        norms(heads, dtype, offset),
    )
    tables = (*table(heads.width), places(n), heads)
    source, out = inside(qkv), poisoned((n, columns), dtype)
    assert op.rope(source, *tables, out=out, **norm) is out and margin_untouched(out)
    assert torch.equal(source, qkv)
    truth, plain = turned(qkv.double(), *tables, **norm), turned(qkv, *tables, **norm)
    assert_no_worse(out, plain[:, :columns], truth[:, :columns])
    result = op.rope(source, *tables, **norm)
    assert result.data_ptr() == source.data_ptr() and torch.equal(result, out)
    assert torch.equal(source[:, :columns], out) and torch.equal(source[:, columns:], qkv[:, columns:])
    assert margin_untouched(source)


LAYOUTS = ["heads first", "tokens first", "packed"]
OFFSETS = [None, 0.0, 1.0]


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_gradient_equals_autograd_in_every_layout(op, case, dtype, turn):
    """Every case meets every layout and every offset; each layout meets each offset in two cases."""
    (b, s, heads), layout, offset = CASES[case], LAYOUTS[turn], OFFSETS[(turn + case) % 3]
    n, columns = b * s, (heads.query + 2 * heads.key) * heads.width
    raw, norm = normal(n, columns, dtype=dtype, scale=2.0, seed=9), norms(heads, dtype, offset)
    tables, gradients = (*table(heads.width), places(n), heads), upstream(b, s, heads, dtype, layout)
    dqkv = rows(gradients)
    truth, plain = autograd(raw.double(), dqkv, *tables, **norm), autograd(raw, dqkv, *tables, **norm)
    out = poisoned((n, columns), dtype)
    found = op.rope_backward(*gradients, *tables, raw=inside(raw) if norm else None, out=out, **norm)
    assert found is out and margin_untouched(out)
    values = heads.key * heads.width
    assert torch.equal(out[:, -values:], dqkv[:, -values:])
    assert_no_worse(out[:, :-values], plain[:, :-values], truth[:, :-values])
    keys = slice(heads.query * heads.width, -values)
    assert_no_worse(out[:, keys], plain[:, keys], truth[:, keys])


@pytest.mark.parametrize(("b", "s", "heads"), CASES)
def test_gradient_may_replace_the_raw_rows(op, b, s, heads):
    turned, columns = ((heads.query + count * heads.key) * heads.width for count in (1, 2))
    norm, tables = norms(heads, torch.float32, 1.0), (*table(heads.width), places(b * s), heads)
    gradients, raw = upstream(b, s, heads, torch.float32, "tokens first"), inside(normal(b * s, columns))
    expected = op.rope_backward(*gradients, *tables, raw=raw, **norm)
    kept = op.rope_backward(*gradients, *tables, raw=raw[:, :turned].clone(), **norm)
    assert torch.equal(kept, expected)
    assert op.rope_backward(*gradients, *tables, raw=raw, out=raw, **norm) is raw
    # Other strides may be added up in another order.
    torch.testing.assert_close(raw.contiguous(), expected, rtol=1e-6, atol=1e-6)
    assert margin_untouched(raw)


@pytest.mark.parametrize("position", [torch.int32, torch.int64])
def test_positions_choose_the_row_of_the_table(op, position):
    heads = Heads(2, 1, 16)
    cos, sin = table(16)
    qkv, at = normal(4, 64), torch.tensor([3, 0, 96, 3], dtype=position, device=DEVICE)
    out = op.rope(qkv, cos, sin, at, heads, out=poisoned((4, 48), torch.float32))
    torch.testing.assert_close(out[1], qkv[1, :48] * 1.1)
    alone = op.rope(
        qkv[2:3].clone(), cos[96:], sin[96:], torch.zeros(1, dtype=position, device=DEVICE), heads
    )
    torch.testing.assert_close(out[2:3], alone)
    spread = [torch.cat((t, torch.full_like(t, float("nan"))), dim=1)[:, :16] for t in (cos, sin)]
    again = op.rope(qkv, *spread, at, heads, out=poisoned((4, 48), torch.float32))
    assert torch.equal(again, out)


def test_scores_depend_on_distance_alone(op):
    heads, (cos, sin) = Heads(1, 1, 32), table(32)
    qkv = normal(1, 96).expand(2, 96).clone()

    def score(i: int, j: int) -> torch.Tensor:
        out = op.rope(qkv.clone(), cos, sin, torch.tensor([i, j], device=DEVICE), heads)
        return out[0, :32] @ out[1, 32:]

    torch.testing.assert_close(score(10, 3), score(60, 53), rtol=1e-4, atol=1e-4)


def test_backward_turns_back_what_forward_turned(op):
    b, s, heads = CASES[0]
    cos, sin = (t / 1.1 for t in table(heads.width))
    qkv, at = normal(b * s, 8 * heads.width), places(b * s)
    result = op.rope(qkv.clone(), cos, sin, at, heads).unflatten(0, (b, s)).unflatten(2, (6, heads.width))
    dq, dk = result.transpose(1, 2).split((4, 2), dim=1)
    dv = qkv[:, 6 * heads.width :].unflatten(0, (b, s)).unflatten(2, (2, heads.width)).transpose(1, 2)
    torch.testing.assert_close(op.rope_backward(dq, dk, dv, cos, sin, at, heads), qkv)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_values_that_overflowed_pass_through_alone(op):
    b, s, heads = CASES[0]
    tables, gradients = (
        (*table(heads.width), places(b * s), heads),
        upstream(b, s, heads, torch.float32, "packed"),
    )
    gradients[2][0, 1, 2, 3] = float("inf")
    found = op.rope_backward(*gradients, *tables)
    assert torch.equal(found[:, 6 * heads.width :], rows(gradients)[:, 6 * heads.width :])


@pytest.mark.parametrize("offset", [None, 0.0])
def test_definition_is_exact_in_float64(op, offset):
    if op.__name__.endswith("fused"):
        pytest.skip("the kernels compute in float32")
    b, s, heads = CASES[0]
    norm, tables = norms(heads, torch.float64, offset), (*table(heads.width), places(b * s), heads)
    gradients, raw = upstream(b, s, heads, torch.float64, "packed"), normal(b * s, 8 * heads.width).double()
    assert (
        relative_error(op.rope(raw.clone(), *tables, **norm), turned(raw, *tables, **norm)[:, :384]) < 1e-14
    )
    found = op.rope_backward(*gradients, *tables, raw=raw, **norm)
    assert relative_error(found, autograd(raw, rows(gradients), *tables, **norm)) < 1e-14


FAMILIES = {
    "llama": (LlamaAttention, LlamaConfig, None),
    "qwen3": (Qwen3Attention, Qwen3Config, 0.0),
    "gemma3": (Gemma3Attention, Gemma3TextConfig, 1.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_hugging_face_sees_the_same_heads_and_gives_the_same_gradients(op, family):
    kind, config_kind, offset = FAMILIES[family]
    b, s, heads = 2, 9, Heads(4, 2, 16)
    module, x = attention(kind, config_kind, heads), normal(b, s, 48)
    cos, sin = table(heads.width)
    projected = (
        torch.cat([p(x) for p in (module.q_proj, module.k_proj, module.v_proj)], dim=2).flatten(0, 1).detach()
    )
    norm = {} if offset is None else head_norms(module, offset)
    seen, at = watched(module, x, cos, sin), torch.arange(s, device=DEVICE).repeat(b)
    out = op.rope(projected, cos, sin, at, heads, out=poisoned((b * s, 96), torch.float32), **norm)
    torch.testing.assert_close(out, rows(list(seen[:2])), rtol=1e-5, atol=2e-6)
    gradients = upstream(b, s, heads, torch.float32, "heads first")
    sources = [module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]
    expected = torch.cat(torch.autograd.grad(seen, sources, gradients))
    found = op.rope_backward(*gradients, cos, sin, at, heads, raw=projected, **norm)
    torch.testing.assert_close(found.T @ x.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def attention(kind, config_kind, heads: Heads) -> torch.nn.Module:
    config = config_kind(
        hidden_size=48,
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key,
        head_dim=heads.width,
        rms_norm_eps=EPS,
        attn_implementation="watched",
    )
    module = kind(config, layer_idx=0).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def head_norms(module: torch.nn.Module, offset: float) -> dict:
    weights = {"q_weight": module.q_norm.weight.detach(), "k_weight": module.k_norm.weight.detach()}
    return {**weights, "eps": EPS, "offset": offset}


def watched(module: torch.nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple:
    """Return the queries, keys and values [b, heads, s, width] that the module hands to attention."""
    seen: list[tuple] = []

    def watch(module, query, key, value, attention_mask, **kwargs):
        seen.append((query, key, value))
        return functional.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(
            1, 2
        ), None

    AttentionInterface.register("watched", watch)
    module(x, position_embeddings=(cos[: x.shape[1]][None], sin[: x.shape[1]][None]), attention_mask=None)
    return seen[0]


def test_one_weight_alone_or_weights_without_raw_rows_are_refused():
    heads, weight, (cos, sin) = Heads(2, 1, 16), normal(16), table(16)
    with pytest.raises(ValueError, match="both weights or neither"):
        door.rope(normal(4, 64), cos, sin, places(4), heads, q_weight=weight)
    gradients = upstream(1, 4, heads, torch.float32, "heads first")
    for given in ({"q_weight": weight, "k_weight": weight}, {"k_weight": weight, "raw": normal(4, 64)}):
        with pytest.raises(ValueError, match="raw rows"):
            door.rope_backward(*gradients, cos, sin, places(4), heads, **given)


def test_no_tokens_at_all(op):
    heads, (cos, sin) = Heads(2, 1, 16), table(16)
    assert op.rope(normal(0, 64), cos, sin, places(0), heads).shape == (0, 48)


def test_offsets_beyond_two_to_the_31(op):
    stride, heads, (cos, sin) = 1 << 30, Heads(2, 1, 16), table(16)
    buffer = torch.empty(2 * stride + 64, dtype=torch.bfloat16, device=DEVICE)
    qkv = buffer.as_strided((3, 64), (stride, 1)).copy_(normal(3, 64))
    near, at = qkv.contiguous(), places(3)
    gradients = [
        far.as_strided((1, h, 3, 16), (0, 16, stride, 1)) for far, h in ((buffer, 2), (buffer[32:], 1))
    ]
    close = [g.contiguous() for g in gradients]
    expected = op.rope_backward(close[0], close[1], close[1], cos, sin, at, heads)
    assert torch.equal(
        op.rope_backward(gradients[0], gradients[1], gradients[1], cos, sin, at, heads), expected
    )
    assert torch.equal(op.rope(qkv, cos, sin, at, heads), op.rope(near, cos, sin, at, heads))
