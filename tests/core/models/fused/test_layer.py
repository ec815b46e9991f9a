"""A fused decoder layer: Transformers' and PEFT's numbers, whatever it keeps, and no more work than it says."""

import warnings

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from core.kernels.attention import fused as attention
from core.kernels.lora_linear import Group
from core.models.fused import gradients as below
from core.models.fused import mlp_backward, sites
from core.models.fused.policy import Place, Policy
from core.models.fused.state import FusedNotice
from tests.core.models.fused.streams import Ashore
from tests.core.models.fused.tiny import (
    FAMILIES,
    KINDS,
    POLICIES,
    Pair,
    counted,
    error,
    gradients,
    ids,
    keep,
    learn,
    pair,
    same,
)


@pytest.fixture(autouse=True)
def _all_is_fused():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_transformers_and_pefts_whatever_is_kept(name: str):
    model = pair(name)
    expected, theirs = learn(model.theirs)
    found = {}
    for label, policy in POLICIES.items():
        keep(model.state, policy)
        loss, found[label] = learn(model.ours)
        assert torch.allclose(loss.double(), expected.double(), rtol=1e-6, atol=0)
        assert error(found[label], theirs) < 3e-5, label
        assert error(found[label], found["full"]) < 1e-12, label
    assert len(theirs) == 2 * 7 * 3
    assert all(float(one.norm()) > 0 for one in found["full"].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_lower_precision_errs_no_more_than_transformers_does(name: str, dtype: torch.dtype):
    tokens = ids(4, 24)
    model = pair(name, dtype)
    exact_loss, exact = learn(pair_of_same_weights(name, model), tokens)
    hf_loss, theirs = learn(model.theirs, tokens)
    loss, ours = learn(model.ours, tokens)
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    assert abs(float(loss - exact_loss)) <= 1.5 * abs(float(hf_loss - exact_loss)) + floor * float(exact_loss)
    assert whole(ours, exact) <= 1.5 * whole(theirs, exact) + floor


def pair_of_same_weights(name: str, rounded: Pair) -> torch.nn.Module:
    exact = pair(name).theirs
    exact.load_state_dict({key: value.double() for key, value in rounded.theirs.state_dict().items()})
    return exact


def whole(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the relative error of all gradients as one vector: bfloat16 alone makes single ones noisy."""
    one, other = (torch.cat([each[name].double().flatten() for name in exact]) for each in (found, exact))
    return ((one - other).norm() / other.norm()).item()


def test_layers_may_each_keep_something_else():
    model = pair("gemma3")
    expected = learn(model.ours)[1]
    chosen = [POLICIES["least"], POLICIES["full"], POLICIES["attention"]]
    model.state.policies = lambda sites, tokens, longest: dict(zip(sites, chosen, strict=True))
    assert error(learn(model.ours)[1], expected) < 1e-12


# What runs how often


def work_of(model: Pair, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the frozen products of one forward and backward pass, by group, over all layers."""
    keep(model.state, policy)
    tokens = ids(2, 9)
    with (
        counted(monkeypatch, Group, "forward") as full,
        counted(monkeypatch, Group, "product") as into,
        counted(monkeypatch, Group, "added_to") as added,
        counted(monkeypatch, attention.Plain, "forward") as attended,
    ):
        learn(model.ours, tokens)
    shapes = {group.shape: name for site in model.state.sites().values()
              for name, group in zip(("qkv", "o", "gate_up", "down"), site[:4], strict=True)}  # fmt: skip
    done = dict.fromkeys(shapes.values(), 0)
    for call in [*full, *into, *added]:
        done[shapes[call[0].shape]] += 1
    return {**done, "attention": len(attended)}


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
@pytest.mark.parametrize("label", POLICIES)
def test_what_is_computed_again_is_what_the_policy_says_and_nothing_else(
    name: str, label: str, monkeypatch: pytest.MonkeyPatch
):
    model, policy, layers = pair(name), POLICIES[label], 3
    found = work_of(model, policy, monkeypatch)

    def again(item: str) -> bool:
        return getattr(policy, item) is Place.RECOMPUTE

    needs_o = again("residual") and (name != "gemma3" or again("attention_out"))
    if name == "gemma3":
        # The gradient of its norm after attention needs what went in, however the sum is come by.
        needs_o = again("attention_out")
    expected = {
        "qkv": 1 + again("qkv"),
        "attention": 1 + again("attention"),
        "o": 1 + needs_o,
        "gate_up": 1 + again("gate_up"),
        "down": 1,
    }
    assert found == {key: layers * times for key, times in expected.items()}


def test_a_model_that_is_not_checkpointed_keeps_everything(monkeypatch: pytest.MonkeyPatch):
    model = pair("llama")
    model.state.is_checkpointed = False
    assert set(model.state.policies(model.state.sites(), 18, 9).values()) == {POLICIES["full"]}


@pytest.mark.parametrize("has_reader", [False, True])
def test_a_gradient_of_frozen_embeddings_is_computed_for_a_reader_only(
    has_reader: bool, monkeypatch: pytest.MonkeyPatch
):
    model, tokens, seen = pair("llama"), ids(), []
    model.ours.enable_input_require_grads()
    if has_reader:
        table = model.ours.get_input_embeddings()
        table.register_forward_hook(lambda module, given, out: seen.append(out))
    with counted(monkeypatch, Group, "input_gradient") as called:
        _, found = learn(model.ours, tokens)
    qkv = model.state.sites()[0].qkv.shape
    assert sum(call[0].shape == qkv for call in called) == (3 if has_reader else 2)
    assert [out.grad is not None for out in seen] == [True] * len(seen)
    assert error(found, learn(model.theirs, tokens)[1]) < 3e-5


# Graphs that are walked twice


@pytest.mark.parametrize("label", POLICIES)
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_graph_that_is_kept_gives_the_same_gradients_twice(name: str, label: str):
    model = pair(name)
    keep(model.state, POLICIES[label])
    tokens = ids()
    loss = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward(retain_graph=True)
    once = gradients(model.ours)
    loss.backward(retain_graph=True)
    assert error(gradients(model.ours), {key: 2 * one for key, one in once.items()}) < 1e-12
    model.ours.zero_grad()
    loss.backward()
    assert error(gradients(model.ours), once) < 1e-12


@pytest.mark.parametrize("label", POLICIES)
def test_a_graph_that_was_not_kept_is_refused_as_pytorch_does(label: str):
    model = pair("llama")
    keep(model.state, POLICIES[label])
    tokens = ids()
    # Below the loss, so that only the layers can refuse.
    out = model.ours.get_base_model().model(input_ids=tokens, use_cache=False).last_hidden_state
    total = out.sum()
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_gradients_asked_for_one_by_one_are_those_of_one_walk():
    model = pair("qwen3")
    expected = learn(model.ours)[1]
    tokens = ids()
    loss = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    wanted = {name: p for name, p in model.ours.named_parameters() if p.requires_grad}
    found = {
        name: torch.autograd.grad(loss, p, retain_graph=True)[0]
        for name, p in wanted.items()
        if "layers.0" in name
    }
    assert error(found, {name: expected[name] for name in found}) < 1e-12


@pytest.mark.parametrize("label", POLICIES)
def test_inputs_are_the_same_after_the_backward_pass(label: str):
    model = pair("gemma3")
    keep(model.state, POLICIES[label])
    backbone = model.ours.get_base_model().model
    embedded = backbone.embed_tokens(ids()).detach().requires_grad_()
    before = embedded.detach().clone()
    out = backbone(inputs_embeds=embedded, use_cache=False).last_hidden_state
    held = out.detach().clone()
    upstream = torch.randn_like(out)
    given = upstream.clone()
    out.backward(upstream)
    assert torch.equal(embedded.detach(), before)
    assert torch.equal(out.detach(), held)
    assert torch.equal(upstream, given)


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_of_embedded_tokens_is_transformers(name: str):
    model = pair(name)
    found = []
    for each in (model.theirs, model.ours):
        backbone = each.get_base_model().model
        embedded = backbone.embed_tokens(ids()).detach().requires_grad_()
        out = backbone(inputs_embeds=embedded, use_cache=False).last_hidden_state
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        found.append(embedded.grad)
    assert torch.allclose(found[1], found[0], rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))


def test_a_gradient_of_any_layout_is_read_right():
    model = pair("qwen3")
    backbone = model.ours.get_base_model().model
    out = backbone(input_ids=ids(2, 8), use_cache=False).last_hidden_state
    upstream = torch.randn(32, 2, 8, dtype=torch.float64).permute(1, 2, 0)
    out.backward(upstream, retain_graph=True)
    strided = gradients(model.ours)
    model.ours.zero_grad()
    out.backward(upstream.contiguous())
    assert error(strided, gradients(model.ours)) < 1e-12
    model.ours.zero_grad()
    total = backbone(input_ids=ids(2, 8), use_cache=False).last_hidden_state.sum()
    # Its gradient is one number, expanded.
    total.backward()
    assert all(bool(one.isfinite().all()) for one in gradients(model.ours).values())


def test_two_forward_passes_before_one_backward_pass_do_not_disturb_each_other():
    model = pair("qwen3")
    keep(model.state, POLICIES["attention"])
    first, second = ids(2, 9, seed=1), ids(3, 14, seed=2)
    one, other = learn(model.theirs, first)[1], learn(model.theirs, second)[1]
    model.ours.zero_grad()
    losses = [model.ours(input_ids=each, labels=each, use_cache=False).loss for each in (first, second)]
    (losses[0] - 0.5 * losses[1]).backward()
    assert error(gradients(model.ours), {key: one[key] - 0.5 * other[key] for key in one}) < 3e-5


@pytest.mark.parametrize("lora", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_come_in_the_dtype_of_the_adapter(lora: torch.dtype):
    model = pair("llama", torch.bfloat16)
    for name, parameter in model.ours.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(lora)
    _, found = learn(model.ours)
    assert {one.dtype for one in found.values()} == {lora}
    exact = learn(pair_of_same_weights("llama", model))[1]
    assert whole(found, exact) < 0.05


@pytest.mark.parametrize(("label", "kept"), [("full", {0, 1, 2}), ("least", set()), ("gates", set())])
def test_what_attention_left_behind_is_kept_with_its_result_alone(
    label: str, kept: set[int], ashore: type[Ashore]
):
    model, tokens = pair("llama"), ids()
    keep(model.state, POLICIES[label])
    model.state.host.lock = lambda buffer: True
    loss = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    (store,) = (each() for each in ashore.made)
    assert set(store.states) == kept
    assert loss.requires_grad


PLAIN = {
    "all": [(sites, "fits_thin"), (below, "fits_norm_thin")],
    "the gated unit": [(sites, "fits_thin")],
    "the norm": [(below, "fits_norm_thin")],
}
"""Who has no kernel for the adapters' shares and thin products."""


@pytest.mark.parametrize("who", PLAIN)
@pytest.mark.parametrize("family", ["llama3", "gemma3"])
@pytest.mark.parametrize("policy", ["full", "least"])
def test_products_compute_what_no_kernel_computes_in_passing(
    who: str, family: str, policy: str, monkeypatch: pytest.MonkeyPatch
):
    for place, name in PLAIN[who]:
        monkeypatch.setattr(place, name, lambda *given: False)
    model = pair(family)
    keep(model.state, POLICIES[policy])
    with (
        counted(monkeypatch, mlp_backward, "through_up") as walked,
        counted(monkeypatch, below, "rms_norm_gradients") as normed,
    ):
        same(model)
    has_gate, has_norm = (who not in ("all", each) for each in list(PLAIN)[1:])
    assert len(walked) == (0 if has_gate else 3)
    # Without the gated unit's kernel the norm's is not given what it needs.
    assert len(normed) == (3 if has_gate and has_norm else 0)


def test_what_a_pass_wrote_beside_weights_that_stay_is_not_written_again_on_its_way_back(
    monkeypatch: pytest.MonkeyPatch,
):
    model, tokens = pair("llama"), ids()
    for _ in range(2):
        with counted(monkeypatch, Group, "_write") as written:
            _, found = learn(model.ours, tokens)
        assert len(written) == 4 * len(model.state.layers)
    assert error(found, learn(model.theirs, tokens)[1]) < 3e-5


def loss_before_another_pass(model: PeftModel, tokens: Tensor) -> Tensor:
    """Return a loss whose backward pass is still to come, after a pass with other adapters in the same model."""
    found: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    trained = [each for each in model.parameters() if each.requires_grad]
    kept = [each.data.clone() for each in trained]
    for each in trained:
        each.data.mul_(3.0)
    model(input_ids=tokens, use_cache=False)
    for each, old in zip(trained, kept, strict=True):
        each.data.copy_(old)
    return found


def test_what_another_pass_wrote_in_between_is_written_again():
    model, tokens = pair("llama"), ids()
    expected = learn(model.ours, tokens)[1]
    model.ours.zero_grad()
    loss = loss_before_another_pass(model.ours, tokens)
    loss.backward()
    assert error(gradients(model.ours), expected) < 1e-12


def test_what_was_half_written_when_memory_ran_out_is_written_again(monkeypatch: pytest.MonkeyPatch):
    model, tokens = pair("llama"), ids()
    expected = learn(model.ours, tokens)[1]
    model.ours.zero_grad()
    loss = loss_before_another_pass(model.ours, tokens)

    def half(group: Group, matrix: Tensor) -> None:
        steps = group._steps(matrix)
        with torch.no_grad():
            for step in steps[: len(steps) // 2]:
                step()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(Group, "_write", half)
        with pytest.raises(torch.OutOfMemoryError):
            loss.backward(retain_graph=True)
    model.ours.zero_grad()
    loss.backward()
    assert error(gradients(model.ours), expected) < 1e-12
