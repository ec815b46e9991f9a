"""4-bit weights that stay expanded: as many as the plan in force has room for, and never more than there is."""

import copy
import gc
import random
import weakref

import pytest
import torch
from peft.tuners.lora import LoraLayer

from core.models.fused import state as states
from core.models.fused import unpacking
from core.models.fused.backbone import fuse
from core.models.fused.policy import FULL, H200
from core.models.fused.sites import GROUPS
from core.models.fused.state import FusedState, backbone_of
from core.models.fused.unpacking import CALM, Turns, expansion_bytes, held_bytes
from tests.core.models.fused.tiny import Gradients, Spent, adapt, base, counted, error, gradients, ids


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


def all_is_used(state: FusedState) -> bool:
    """Tell whether every matrix that is held is its group's, and every group's is held."""
    for index, site in state.sites().items():
        for name, group in zip(GROUPS, site.groups, strict=True):
            home = state.homes.get((index, name))
            if group.home is not (home.matrix if home else None):
                return False
    return True


def test_what_is_left_over_keeps_weights_of_the_first_layers_expanded():
    layer, whole = sizes(in_4_bits(0))
    for room, first in ((whole + layer - 1, 0), (whole + 2 * layer, 2), (whole + 9 * layer, 3)):
        state = in_4_bits(room)
        assert plan_for(state, 512) == first
        assert expanded(state) == set(range(first))
        assert state.planned is not None and state.planned.extra_ms == 0
        assert all_is_used(state)
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
    assert plan_for(state, 512) == 3
    gone = weakref.ref(state.homes[2, "qkv"].matrix)
    stays = state.homes[0, "qkv"].matrix
    assert plan_for(state, 1024) == 1
    gc.collect()
    assert gone() is None
    assert state.homes[0, "qkv"].matrix is stays


def test_sizes_that_take_turns_expand_nothing_anew(monkeypatch: pytest.MonkeyPatch):
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(2 * whole + layer)
    assert [plan_for(state, tokens) for tokens in (512, 1024)] == [3, 1]
    with counted(monkeypatch, unpacking, "at_home") as made, counted(monkeypatch, states, "pack") as looks:
        for tokens in (512, 1024, 1536) * CALM:
            plan_for(state, tokens)
        # A size that was never seen before has what is expanded counted as its own.
        assert len(expanded(state)) in (0, 1)
        assert made == []
        # Once for the third size.
        assert len(looks) <= 1
    state = in_4_bits(2 * whole + layer)
    found = [plan_for(state, tokens) for tokens in (1024, *[512] * (CALM + 1))]
    assert found == [1] * CALM + [3] * 2


def test_what_stays_expanded_had_room_in_all_of_the_last_passes():
    turns, draw = Turns(), random.Random(3)
    rooms = [draw.randrange(33) for _ in range(5 * CALM)]
    for number, room_for in enumerate(rooms, start=1):
        assert turns.wanted(room_for) == min(rooms[max(0, number - CALM) : number]) <= room_for
    turns.forget()
    assert turns.wanted(32) == 32


def test_expanded_weights_are_not_taken_for_what_others_hold():
    """Without a budget what is free is asked for, which is less by what is expanded."""
    plans = []
    for earlier in ((), (512,)):
        state = in_4_bits(0)
        state._activation_bytes = None
        state.room = lambda state=state: (8 << 20) - held_bytes(state.homes)
        for tokens in (*earlier, 2048):
            state.policies(state.sites(), tokens, 512)
        plans.append([held for key, held in state._plans.items() if key[0] == 2048])
    assert plans[0] == plans[1]


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


def on_this_machine(state: FusedState) -> FusedState:
    """Let a state that plans as on a GPU compute on the CPU."""
    real = state.tables

    def tables(key: str, positions: int):
        kept, state.device = state.device, torch.device("cpu")
        try:
            return real(key, positions)
        finally:
            state.device = kept

    state.tables = tables
    return state


def loss(state: FusedState, tokens: torch.Tensor) -> torch.Tensor:
    return state.backbone(input_ids=tokens, use_cache=False).last_hidden_state.square().sum()


def in_turns(state: FusedState) -> tuple[list[Gradients], list[int]]:
    """Train with two sizes in turn, an evaluation between; then with both before one backward pass."""
    short, long, found, layers = ids(1, 40, 1), ids(13, 40, 2), [], []
    for turn in ((short,), (long,), (short,), (short, long), (long, short)):
        state.backbone.zero_grad()
        total = torch.zeros(())
        for number, tokens in enumerate(turn, start=1):
            total = total + number * loss(state, tokens)
            layers.append(len(expanded(state)))
        with torch.no_grad():
            loss(state, ids(1, 7))
        total.backward()
        found.append(gradients(state.backbone))
    return found, layers


def test_expanded_weights_change_no_gradient_when_sizes_take_turns():
    layer, whole = sizes(in_4_bits(0))
    never = on_this_machine(in_4_bits(0))
    never.policies = lambda sites, tokens, longest: dict.fromkeys(sites, FULL)
    exact, layers = in_turns(never)
    assert set(layers) == {0}
    for room, expected in ((2 * whole + layer, [3, 1]), (2 * whole + 3 * layer, [3, 3]), (whole, [0, 0])):
        state = on_this_machine(in_4_bits(room))
        found, layers = in_turns(state)
        assert layers[:2] == expected
        assert max(map(error, found, exact)) < 1e-5
        assert min(float(one.norm()) for each in found for one in each.values()) > 0
        assert not state.told


def test_memory_that_runs_out_half_way_is_made_up_for_in_the_next_pass(monkeypatch: pytest.MonkeyPatch):
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 3 * layer)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "at_home", Spent(unpacking.at_home, 6))
        with pytest.raises(torch.OutOfMemoryError):
            plan_for(state, 512)
        assert len(state.homes) == 5
        assert all_is_used(state)
    assert plan_for(state, 512) == 3
    assert len(state.homes) == 12


def test_adapters_that_are_switched_off_leave_no_matrix_unused():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 3 * layer)
    plan_for(state, 512)
    first = [each for each in state.layers[0].modules() if isinstance(each, LoraLayer)]
    every = [each for each in state.backbone.modules() if isinstance(each, LoraLayer)]
    for off in (first, every):
        for is_off in (True, False):
            for each in off:
                each._disable_adapters = is_off
            assert plan_for(state, 512) == 3
            assert len(state.homes) == 12
            assert all_is_used(state)
            assert held_bytes(state.homes) == sum(map(expansion_bytes, state.sites().values()))


def test_adapters_that_are_switched_on_have_a_plan_of_their_own(monkeypatch: pytest.MonkeyPatch):
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 2 * layer)
    every = [each for each in state.backbone.modules() if isinstance(each, LoraLayer)]
    for each in every:
        each._disable_adapters = True
    assert plan_for(state, 512) == 3
    gone = weakref.ref(state.homes[0, "qkv"].matrix)
    for each in every:
        each._disable_adapters = False
    # Room for the new matrix is made first.
    real, alive = unpacking.at_home, []
    monkeypatch.setattr(unpacking, "at_home", lambda *given: alive.append(gone()) or real(*given))
    assert plan_for(state, 512) == 2
    assert set(alive) == {None}


def test_weights_that_were_written_are_expanded_anew():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 3 * layer)
    plan_for(state, 512)
    old = state.homes[1, "o"].matrix
    with torch.no_grad():
        state.layers[1].self_attn.o_proj.base_layer.weight.bitwise_not_()
    assert plan_for(state, 512) == 3
    assert len(state.homes) == 12
    assert all_is_used(state)
    assert not torch.equal(state.homes[1, "o"].matrix, old)


def test_without_a_budget_for_them_expanded_weights_are_let_go_of_with_the_next_pass():
    layer, whole = sizes(in_4_bits(0))
    for change in ({"activation_bytes": 0}, {"is_checkpointed": False}):
        state = in_4_bits(whole + 3 * layer)
        assert plan_for(state, 512) == 3
        gone = weakref.ref(state.homes[2, "qkv"].matrix)
        for name, value in change.items():
            setattr(state, name, value)
        state.policies(state.sites(), 512, 512)
        gc.collect()
        assert (state.homes, gone()) == ({}, None)
        state.is_checkpointed, state.activation_bytes = True, whole + 3 * layer
        assert plan_for(state, 512) == 3


def test_a_copy_takes_its_own_turns():
    layer, whole = sizes(in_4_bits(0))
    state = in_4_bits(whole + 3 * layer)
    plan_for(state, 512)
    other = copy.deepcopy(state)
    assert plan_for(other, 512) == 3
    assert all_is_used(other)


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
