"""A fused model that is cast, moved, or given other weights: it computes with what it has now, and holds nothing old."""

import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core.models.fused import state as states
from core.models.fused.backbone import fuse
from core.models.fused.sites import base_of
from core.models.fused.state import FusedState, backbone_of
from tests.core.models.fused.tiny import Pair, adapt, base, counted, hidden, ids, learn, pair, same


def memory_of(state: FusedState) -> list[weakref.ref]:
    return [weakref.ref(home.matrix.untyped_storage()) for home in state.homes.values()]


def lives_at_home(state: FusedState) -> bool:
    sites = state.sites()
    return len(state.homes) == 12 and all(
        group.home is not None for s in sites.values() for group in s.groups
    )


def has_the_weights_of(model: Pair) -> bool:
    ours, theirs = (each.state_dict() for each in (model.ours, model.theirs))
    return list(ours) == list(theirs) and all(
        torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours
    )


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_model_that_was_cast_computes_in_its_new_dtype(name: str):
    model = pair(name)
    learn(model.ours)
    before = memory_of(model.state)
    for each in (model.ours, model.theirs):
        each.to(torch.float32)
    same(model, 3e-4)
    assert model.state.dtype == hidden(model.ours, input_ids=ids()).dtype == torch.float32
    assert {home.matrix.dtype for home in model.state.homes.values()} == {torch.float32}
    assert lives_at_home(model.state)
    assert model.state.scratch.nbytes == 0
    assert [each() for each in before] == [None] * 12
    assert has_the_weights_of(model)
    model.state.unload()
    assert has_the_weights_of(model)
    assert all(
        p.untyped_storage().nbytes() == p.nbytes for n, p in model.ours.named_parameters() if "proj" in n
    )


def test_half_precision_and_back_is_the_same_model():
    model = pair("llama", torch.float32)
    expected = hidden(model.theirs.half().float(), input_ids=ids())
    model.ours.half()
    assert hidden(model.ours, input_ids=ids()).dtype == torch.float16
    assert torch.allclose(hidden(model.ours.float(), input_ids=ids()), expected, rtol=1e-3, atol=1e-3)
    assert has_the_weights_of(model)


def test_a_model_that_was_cast_is_saved_as_cast_before_it_has_run(tmp_path):
    model = adapt(base("qwen3", torch.float32))
    state = fuse(model)
    model.to(torch.bfloat16).get_base_model().save_pretrained(tmp_path)
    assert {each.dtype for each in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert lives_at_home(state)


def test_a_model_that_was_moved_plans_for_where_it_lies():
    state = pair("llama").state
    state.tables("", 9)
    state.host.limit = 5
    backbone_of(state.backbone).to("meta")
    assert state.best_micro_batch(4, 16, 2) == 2
    assert state.device.type == "meta"
    assert {home.matrix.device.type for home in state.homes.values()} == {"meta"}
    assert (state.angles, state.host.limit) == ({}, None)


def test_a_dtype_that_was_asked_for_stays():
    model = adapt(base("llama", torch.float32))
    state = fuse(model, torch.float64)
    model.to(torch.bfloat16)
    state.sites()
    assert state.dtype == torch.float64


@pytest.mark.parametrize("how", ["one", "all"])
def test_weights_that_were_replaced_are_read_again_and_the_old_ones_given_back(
    how: str, monkeypatch: pytest.MonkeyPatch
):
    model = pair("llama")
    held_meanwhile, real = [], states.settle
    monkeypatch.setattr(
        states, "settle", lambda *given: held_meanwhile.append(len(model.state.homes)) or real(*given)
    )
    learn(model.ours)
    before = memory_of(model.state)
    with torch.no_grad():
        for each in (model.ours, model.theirs):
            if how == "one":
                linear = base_of(backbone_of(each).layers[1].mlp.up_proj)
                linear.weight.data = 2 * linear.weight.data
            else:
                drawn = {k: v + 0.01 * torch.ones_like(v) for k, v in each.state_dict().items()}
                each.load_state_dict(drawn, assign=True)
    if how == "all":
        for each in (model.ours, model.theirs):
            for name, parameter in each.named_parameters():
                parameter.requires_grad_("lora_" in name)
    with torch.inference_mode():
        model.ours(input_ids=ids(), use_cache=False)
    same(model)
    assert lives_at_home(model.state)
    assert held_meanwhile == [0]
    assert [each() for each in before] == [None] * 12
    assert has_the_weights_of(model)


def test_an_adapter_switched_off_and_on_moves_nothing():
    model = pair("llama")
    before = [home.matrix.data_ptr() for home in model.state.homes.values()]
    with model.ours.disable_adapter():
        hidden(model.ours, input_ids=ids())
    assert [home.matrix.data_ptr() for home in model.state.homes.values()] == before
    assert lives_at_home(model.state)


def test_layers_that_share_a_matrix_are_not_moved_in_every_pass(monkeypatch: pytest.MonkeyPatch):
    theirs = adapt(base("llama"))
    layers: nn.ModuleList = backbone_of(theirs).layers
    layers[2].mlp.down_proj = layers[0].mlp.down_proj
    model = Pair(theirs, theirs, fuse(theirs))
    expected = learn(model.ours)[0]
    with counted(monkeypatch, states, "settle") as calls:
        assert learn(model.ours)[0] == expected
    assert not calls
