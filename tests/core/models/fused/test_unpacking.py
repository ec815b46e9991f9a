"""4-bit weights that stay expanded: as many as the plan in force has room for, and never more than there is."""

import gc
import weakref

import pytest
import torch

from core.models.fused.backbone import fuse
from core.models.fused.policy import H200
from core.models.fused.state import FusedState, backbone_of
from core.models.fused.unpacking import expansion_bytes, unpacked_bytes
from tests.core.models.fused.tiny import adapt, base, ids


def in_4_bits(room: int, layers: tuple[int, ...] = (0, 1, 2)) -> FusedState:
    """Fuse a model whose named layers hold 4-bit weights, with so many bytes to keep things in."""
    from bitsandbytes.nn import Linear4bit

    model = base("llama", torch.float32)
    for index in layers:
        block = backbone_of(model).layers[index]
        for parent, name in [(block.self_attn, f"{each}_proj") for each in "qkvo"] + [
            (block.mlp, f"{each}_proj") for each in ("gate", "up", "down")
        ]:
            old = getattr(parent, name)
            new = Linear4bit(old.in_features, old.out_features, bias=False, quant_type="nf4")
            new.load_state_dict({"weight": old.weight.detach()})
            setattr(parent, name, new.to("cpu"))
            new.weight.quant_state.dtype = torch.float32
    state = fuse(adapt(model))
    assert state is not None
    # What it would do on a GPU.
    state.device = torch.device("cuda")
    state.room, state.host_room = lambda: 1 << 30, lambda: 0
    # To compute again takes longer than to expand, also in layers as tiny as these.
    state.rates = H200._replace(products=1e9, attention=1e9)
    state.activation_bytes = room
    return state


def expanded(state: FusedState) -> set[int]:
    return {index for (index, _), home in state.homes.items() if home.packed}


def sizes(state: FusedState) -> tuple[int, int]:
    """Return the bytes of one layer's expanded weights, and of all that three layers keep for 512 tokens."""
    sites = state.sites()
    return expansion_bytes(sites[0]), 3 * 512 * sum(state.shapes(sites)[0].item_bytes)


def plan_for(state: FusedState, tokens: int) -> int:
    """Plan as a pass does; returns what is held for it."""
    policies = state.policies(state.sites(), tokens, 512)
    assert len(policies) == 3
    assert state._held_back() <= max(state.activation_bytes or 0, tokens * 3 * 32 * 4)
    return len(expanded(state))


def test_what_is_left_over_keeps_weights_of_the_first_layers_expanded():
    layer, whole = sizes(in_4_bits(0))
    for room, first in ((whole + layer - 1, 0), (whole + 2 * layer, 2), (whole + 9 * layer, 3)):
        state = in_4_bits(room)
        assert plan_for(state, 512) == first
        assert expanded(state) == set(range(first))
        assert state.planned is not None and state.planned.extra_ms == 0
        assert [unpacked_bytes(site) for site in state.sites().values()] == [0] * first + [layer] * (
            3 - first
        )
        assert {expansion_bytes(site) for site in state.sites().values()} == {layer}


def test_layers_of_16_bits_are_passed_over():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + layer, layers=(0, 2))
    assert expansion_bytes(state.sites()[1]) == 0
    plan_for(state, 512)
    assert expanded(state) == {0}
    state.activation_bytes = whole + 2 * layer
    plan_for(state, 512)
    assert expanded(state) == {0, 2}
    assert len([home for home in state.homes.values() if not home.packed]) == 4


def test_a_larger_micro_batch_takes_back_what_a_smaller_one_left_to_weights():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(2 * whole + layer)
    assert [plan_for(state, tokens) for tokens in (1024, 512)] == [1, 3]
    gone = weakref.ref(state.homes[2, "qkv"].matrix)
    stays = state.homes[0, "qkv"].matrix
    kept = state.planned
    assert plan_for(state, 1024) == 1
    gc.collect()
    assert gone() is None
    assert state.homes[0, "qkv"].matrix is stays
    assert plan_for(state, 512) == 3
    assert state.planned is kept


def test_when_memory_runs_out_activations_and_expanded_weights_give_way_together():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 2 * layer)
    plan_for(state, 512)
    held = state._held_back()
    assert held == whole + 2 * layer
    assert state.give_way()
    assert (expanded(state), state._most) == (set(), int(0.7 * held))
    plan_for(state, 512)
    assert state._held_back() <= 0.7 * held


def test_another_budget_expands_anew():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 3 * layer)
    found = []
    for left in (3, 1, 2):
        state.activation_bytes = whole + left * layer
        found.append(plan_for(state, 512))
    assert found == [3, 1, 2]


def test_expanded_weights_change_no_result_when_plans_take_turns():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(2 * whole + layer)
    backbone = state.backbone
    with torch.no_grad():
        expected = backbone(input_ids=ids()).last_hidden_state
        for tokens in (1024, 512, 1024):
            plan_for(state, tokens)
            assert torch.equal(backbone(input_ids=ids()).last_hidden_state, expected)


def test_the_best_micro_batch_is_the_same_once_weights_are_expanded(monkeypatch: pytest.MonkeyPatch):
    layer, whole = sizes(in_4_bits(0))
    state, told = in_4_bits(whole + 3 * layer), []

    def listen(*args, **more):
        told.append((args[5], more["expansions"]))
        return 1

    monkeypatch.setattr("core.models.fused.state.choose_micro_batch", listen)
    for first in (0, 3):
        state._activation_bytes = None
        state.room = lambda first=first: (1 << 30) - first * layer
        state.best_micro_batch(8, 512, 8)
        state.activation_bytes = whole + 3 * layer
        plan_for(state, 512)
    assert told[0] == told[1]
    assert told[0][1] == (layer,) * 3
