"""The gated linear units against Hugging Face's activations and autograd in float64."""

from types import ModuleType

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3TextConfig
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from core.kernels import glu as door
from tests.core.kernels.conftest import (
    DEVICE,
    assert_no_worse,
    inside,
    margin_untouched,
    normal,
    poisoned,
    relative_error,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered"
)  # exp in the interpreter: infinity is meant
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
SIZES = [(7, 63), (3, 1100), (1, 1), (2, 2048), (2, 3072)]


@pytest.fixture(params=["fused", "door"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    """Without a GPU, and for float64, the door leads to the definition."""
    from core.kernels.glu import fused

    return {"fused": fused, "door": door}[request.param]


def product(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return ACT2FN[ACTIVATIONS[activation]](gate) * up


def gradient(gate_up: torch.Tensor, dh: torch.Tensor, activation: str) -> torch.Tensor:
    gate_up = gate_up.clone().requires_grad_()
    return torch.autograd.grad(product(gate_up, activation), gate_up, dh)[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "f"), SIZES)
def test_product_is_as_exact_as_plain_pytorch(op, n, f, dtype, activation):
    gate_up = normal(n, 2 * f, dtype=dtype, scale=3.0)
    out = poisoned((n, f), dtype)
    assert op.glu(inside(gate_up), activation, out=out) is out and margin_untouched(out)
    assert_no_worse(out, product(gate_up, activation), product(gate_up.double(), activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "into"),
    [(torch.float32, "new"), (torch.bfloat16, "out"), (torch.float32, "inputs"), (torch.bfloat16, "inputs")],
)
@pytest.mark.parametrize(("n", "f"), SIZES)
def test_gradient_equals_autograd_also_in_place(op, n, f, dtype, into, activation):
    gate_up, dh = normal(n, 2 * f, dtype=dtype, scale=3.0), normal(n, f, dtype=dtype, seed=1)
    truth = gradient(gate_up.double(), dh.double(), activation)
    rough, h_truth = gradient(gate_up, dh, activation), product(gate_up.double(), activation)
    source, upstream = inside(gate_up), inside(dh, f + 8)
    h_out = {"new": None, "out": poisoned((n, f), dtype), "inputs": upstream}[into]
    out = {"new": None, "out": poisoned((n, 2 * f), dtype), "inputs": source}[into]
    h, found = op.glu_backward(upstream, source, activation, h_out=h_out, out=out)
    if h_out is not None and out is not None:
        assert h is h_out and found is out and margin_untouched(h_out) and margin_untouched(out)
    assert_no_worse(h, product(gate_up, activation), h_truth)
    assert_no_worse(found[:, :f], rough[:, :f], truth[:, :f])
    assert_no_worse(found[:, f:], rough[:, f:], truth[:, f:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_one_result_in_place(op, activation):
    gate_up, dh = normal(5, 126), normal(5, 63, seed=1)
    expected = op.glu_backward(dh, gate_up, activation)
    source, upstream = gate_up.clone(), dh.clone()
    h, found = op.glu_backward(upstream, gate_up, activation, h_out=upstream)
    assert torch.equal(h, expected[0]) and torch.equal(found, expected[1])
    h, found = op.glu_backward(dh, source, activation, out=source)
    assert torch.equal(h, expected[0]) and torch.equal(found, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates_far_out_are_finite_and_right(op, activation, dtype):
    gate = torch.tensor([-3e4, -500.0, -90.0, -20.0, -8.0, -0.0, 0.0, 1e-8, 8.0, 20.0, 90.0, 500.0, 3e4])
    gate_up = torch.cat((gate, torch.ones(13))).to(DEVICE, dtype).unsqueeze(0)
    dh = torch.ones(1, 13, device=DEVICE, dtype=dtype)
    truth = product(gate_up.double(), activation)
    h, found = op.glu_backward(dh, gate_up, activation)
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(h.double(), truth, rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(h, op.glu(gate_up, activation))
    exact = gradient(gate_up.double(), dh.double(), activation)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition_is_exact_in_float64(op, activation):
    if op.__name__.endswith("fused"):
        pytest.skip("the kernels compute in float32")
    gate_up, dh = normal(5, 126, scale=4.0).double(), normal(5, 63, seed=1).double()
    h, found = op.glu_backward(dh, gate_up, activation)
    assert h.dtype == found.dtype == torch.float64
    assert relative_error(h, product(gate_up, activation)) < 1e-15
    assert relative_error(found, gradient(gate_up, dh, activation)) < 1e-14


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_product_is_what_hugging_face_projects_down(op, activation):
    mlp = (
        LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=96, hidden_act="silu"))
        if activation == "silu"
        else Gemma3MLP(Gemma3TextConfig(hidden_size=32, intermediate_size=96))
    ).to(DEVICE)
    x, seen = normal(7, 32, scale=5.0), []
    mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mlp(x)
    gate_up = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=1)
    torch.testing.assert_close(op.glu(gate_up, activation), seen[0], rtol=2e-6, atol=1e-6)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="no such activation: relu; there are silu, gelu_tanh, gelu"):
        door.glu(normal(3, 8), "relu")
    with pytest.raises(ValueError, match="no such activation: relu"):
        door.glu_backward(normal(3, 4), normal(3, 8), "relu")


def test_no_rows_at_all(op):
    assert op.glu(normal(0, 126), "silu").shape == (0, 63)


def test_offsets_beyond_two_to_the_31(op):
    stride, f = 1 << 30, 64
    buffer = torch.empty(2 * stride + 2 * f, dtype=torch.bfloat16, device=DEVICE)
    gate_up = buffer.as_strided((3, 2 * f), (stride, 1)).copy_(normal(3, 2 * f))
    dh = normal(3, f, dtype=torch.bfloat16, seed=1)
    near = gate_up.contiguous()
    assert torch.equal(op.glu(gate_up, "silu"), op.glu(near, "silu"))
    expected = op.glu_backward(dh, near, "silu")[1]
    assert torch.equal(op.glu_backward(dh, gate_up, "silu", out=gate_up)[1], expected)
