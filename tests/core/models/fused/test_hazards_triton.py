"""The fused layers through their Triton kernels, interpreted where there is no GPU."""

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from core.data.batches import collate, collate_packed
from core.kernels.attention import fused as attention
from core.kernels.lora_linear import Group
from core.models.fused.state import FusedNotice
from tests.core.kernels.interpreter import round_as_hardware_does
from tests.core.models.fused.test_hazards import documents, step
from tests.core.models.fused.tiny import (
    POLICIES,
    Gradients,
    Pair,
    counted,
    error,
    gradients,
    keep,
    learn,
)
from tests.core.models.fused.tiny import ids as drawn
from tests.core.models.fused.tiny import pair as made

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _all_is_fused():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        yield


def run_kernels(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("core.kernels.") and hasattr(module, "runs_fused"):
            monkeypatch.setattr(module, "runs_fused", lambda device: wanted)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by the plain definitions until a test asks for the kernels, on a GPU too."""
    run_kernels(monkeypatch, False)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch, plain: None) -> None:
    """Run the Triton kernels, in their interpreter if there is no GPU."""
    round_as_hardware_does(monkeypatch)
    run_kernels(monkeypatch, True)


def pair(*args: Any, **settings: Any) -> Pair:
    found = made(*args, **settings)
    found.theirs.to(DEVICE)
    found.ours.to(DEVICE)
    return found


def ids(b: int, s: int) -> Tensor:
    return drawn(b, s).to(DEVICE)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma3"])
def test_triton_gives_the_gradients_of_the_plain_definitions(name: str, triton: None):
    model = pair(name, torch.float32)
    keep(model.state, POLICIES["attention"])
    tokens = ids(2, 9)
    loss, found = learn(model.ours, tokens)
    expected_loss, expected = learn(model.theirs, tokens)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert error(found, expected) < 2e-4


@pytest.mark.parametrize("label", ["full", "least"])
def test_triton_keeps_documents_apart_and_loses_no_gradient(label: str, triton: None):
    model, docs = pair("mistral", torch.float32), documents((5, 1, 6))
    keep(model.state, POLICIES[label])
    loss, found = step(model.ours, [collate_packed([docs], 0)])
    expected_loss, expected = step(model.theirs, [collate([doc], 0) for doc in docs])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert all(float(one.norm()) > 0 for one in found.values())
    assert error(found, expected) < 2e-4


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=["32", "16"])
def test_triton_stands_a_graph_that_is_walked_twice(dtype: torch.dtype, limit: float, triton: None):
    # In 16 bits what was kept for the first walk is computed again for the second, and rounded on the way.
    model, tokens = pair("gemma3", dtype), ids(1, 7)
    loss = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward(retain_graph=True)
    once = gradients(model.ours)
    model.ours.zero_grad()
    loss.backward()
    assert error(gradients(model.ours), once) < limit


@pytest.mark.parametrize("rank", [1, 20, 70])
def test_triton_takes_any_rank(rank: int, triton: None):
    model, tokens = pair("qwen2", torch.float32, r=rank), ids(1, 9)
    assert error(learn(model.ours, tokens)[1], learn(model.theirs, tokens)[1]) < 2e-4


HALVES = {
    "llama3": ("llama3", "attention", {}),
    "qwen2": ("qwen2", "least", {}),
    "qwen3": ("qwen3", "attention", {"r": 32}),
    "gemma3": ("gemma3", "least", {}),
    "nothing on o and down": ("llama3", "attention", {"target_modules": ["q_proj", "v_proj", "up_proj"]}),
    "nothing on q and up": (
        "llama3",
        "least",
        {"target_modules": ["k_proj", "o_proj", "gate_proj", "down_proj"]},
    ),
    "more ranks than the norm adds up": ("llama3", "attention", {"r": 40}),
}
"""Only in 16 bits do kernels form products in passing."""


@pytest.mark.parametrize("name", HALVES)
def test_triton_in_bfloat16_errs_no_more_than_the_definitions_or_transformers(
    name: str, request: pytest.FixtureRequest
):
    family, label, settings = HALVES[name]
    model, exact = pair(family, torch.bfloat16, **settings), pair(family, **settings).theirs
    exact.load_state_dict({key: value.double() for key, value in model.theirs.state_dict().items()})
    keep(model.state, POLICIES[label])
    tokens = ids(2, 9)
    true, theirs, plain = (learn(each, tokens)[1] for each in (exact, model.theirs, model.ours))
    request.getfixturevalue("triton")
    model.ours.zero_grad()
    found = learn(model.ours, tokens)[1]
    assert far(whole(found), whole(true)) <= 1.5 * far(whole(theirs), whole(true))
    for key, one in found.items():
        assert far(one, true[key]) <= 1.5 * far(plain[key], true[key]) + 0.005, key


def whole(found: Gradients) -> Tensor:
    return torch.cat([one.double().flatten() for one in found.values()])


def far(found: Tensor, exact: Tensor) -> float:
    """Return the relative error of a gradient."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def test_the_gpu_path_is_the_one_that_these_tests_run(triton: None, monkeypatch: pytest.MonkeyPatch):
    from core.kernels.glu import fused_thin as glu
    from core.kernels.lora_linear import fused as lora
    from core.kernels.rms_norm import fused as norm
    from core.kernels.rms_norm import fused_thin as thin_norm
    from core.kernels.rope import fused as rope

    model, tokens = pair("qwen3", torch.bfloat16), ids(1, 5)
    with (
        counted(monkeypatch, glu, "glu_gradients") as gates,
        counted(monkeypatch, thin_norm, "rms_norm_gradients") as thin_norms,
        counted(monkeypatch, norm, "accumulate_rms_norm") as added,
        counted(monkeypatch, norm, "rms_norm_backward") as norms,
        counted(monkeypatch, rope, "rope_backward") as turns,
        counted(monkeypatch, lora, "spreading") as prepared,
        counted(monkeypatch, Group, "_write") as written,
        counted(monkeypatch, attention.Plain, "backward") as seen,
    ):
        learn(model.ours, tokens)
    assert [len(each) for each in (gates, turns, thin_norms)] == [3] * 3
    # Nobody asks for the gradient of what the first layer is given; behind the last there is one norm more.
    assert len(norms) == 3
    assert len(added) == 6
    # Once in the forward pass; on the way back they stand there.
    assert len(written) == len(prepared) == 4 * 3
    if DEVICE.type == "cpu":  # On a GPU cuDNN computes attention.
        assert len(seen) == 3
