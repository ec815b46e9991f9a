"""What a pass that failed, a plan that was too large, and a mode that was left leave behind: nothing."""

import gc
import itertools
import weakref

import pytest
import torch

from core.models.fused import layer as layers
from core.models.fused import state as states
from core.models.fused.passes import Pass
from core.models.fused.policy import FULL, LEAST, Plan, plan
from core.models.fused.state import FusedState
from tests.core.models.fused.tiny import POLICIES, keep, pair

IDS = torch.arange(3, 27).reshape(2, 12)


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


@pytest.mark.parametrize("policy", [FULL, LEAST], ids=["full", "least"])
def test_a_pass_that_runs_out_of_memory_half_way_is_forgotten(monkeypatch, policy):
    model = pair("llama", torch.float32)
    model.state.policies = lambda sites, tokens, longest: dict.fromkeys(sites, policy)
    passes: list[weakref.ref[Pass]] = []
    own = layers.forward

    def failing(run: Pass, index: int, x: torch.Tensor, keeps: bool) -> torch.Tensor:
        if index == 0:
            passes.append(weakref.ref(run))
        if index == 2:
            raise torch.OutOfMemoryError("no more")
        return own(run, index, x, keeps)

    monkeypatch.setattr(layers, "forward", failing)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            loss_of(model.ours)
    gc.collect()
    assert len(passes) == 3
    assert [each() for each in passes] == [None] * 3


def test_a_pass_that_nobody_walks_back_is_forgotten():
    model = pair("llama", torch.float32)
    model.state.policies = lambda sites, tokens, longest: dict.fromkeys(sites, LEAST)
    before = sum(isinstance(each, Pass) for each in gc.get_objects())
    for _ in range(3):
        loss_of(model.ours)
    gc.collect()
    assert sum(isinstance(each, Pass) for each in gc.get_objects()) <= before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_after_an_inference_made_the_scratch(dtype: torch.dtype):
    model = pair("llama", dtype)
    model.state.homes = {}
    model.state.scratch.matrices.clear()
    model.state.angles.clear()
    with torch.inference_mode():
        loss_of(model.ours)
    loss_of(model.ours).backward()
    assert all(p.grad is not None for p in model.ours.parameters() if p.requires_grad)


def test_a_pass_that_nobody_walks_back_is_forgotten_with_what_waits_in_main_memory(ashore):
    model = pair("llama", torch.float32)
    keep(model.state, POLICIES["host"])
    model.state.host.lock = lambda buffer: True
    loss_of(model.ours)
    gc.collect()
    assert ashore.made and all(each() is None for each in ashore.made)


def test_an_adapter_that_changes_before_the_backward_pass_is_an_error():
    model = pair("llama", torch.float32)
    found = loss_of(model.ours)
    with torch.no_grad():
        next(p for p in model.ours.parameters() if p.requires_grad).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.backward()


def with_a_plan(kept: int) -> FusedState:
    state = pair("llama", torch.float32).state
    state.planned = Plan((FULL,) * 3, kept, 0, 0.0, 0.0)
    return state


def test_nothing_kept_is_nothing_to_give_up():
    assert with_a_plan(0).give_way() is False


def keep_at_most(state: FusedState) -> int:
    """Plan as far as is allowed."""
    assert state.planned is not None and state._most is not None
    state.planned = state.planned._replace(device_bytes=state._most)
    return state._most


def test_every_relief_leaves_less_than_was_held_until_next_to_nothing_is():
    state, held = with_a_plan(1000), [1000]
    while state.give_way():
        held.append(keep_at_most(state))
    assert all(after == int(0.7 * before) for before, after in itertools.pairwise(held))
    assert held[-1] <= 50 < held[-2]


def test_what_is_given_up_comes_back_with_the_next_micro_batch():
    state = with_a_plan(1000)
    while state.give_way():
        keep_at_most(state)
    assert state._most is None
    state.planned = Plan((FULL,) * 3, 400, 0, 0.0, 0.0)
    assert state.give_way() and state._most == 280


def test_a_plan_that_cannot_hold_less_is_no_relief():
    state = with_a_plan(1000)
    assert state.give_way()
    assert not state.give_way()


def test_room_is_no_more_than_relief_has_left():
    state = with_a_plan(1000)
    sites = state.sites()
    state.activation_bytes = 900
    assert state._room(sites, 512) == 900
    state.give_way()
    assert state._room(sites, 512) == 700
    state.activation_bytes = 500
    assert state._room(sites, 512) == 500


def test_another_budget_is_planned_anew():
    state = pair("llama", torch.float32).state
    state._plans[512, 512] = plan(state.shapes(state.sites())[0], 3, 512, 512, 10**9, 0)
    state.activation_bytes = 0
    assert state._plans == {}


def test_main_memory_that_was_refused_is_not_planned_with(monkeypatch):
    state = pair("llama", torch.float32).state
    monkeypatch.setattr(states, "free_main_memory", lambda: 10**12)
    assert state.host_room() > 10**11
    state.host.limit = 5
    assert state.host_room() == 5


def test_gradients_that_are_thrown_away_to_make_room_are_no_step():
    state = with_a_plan(1000)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.ones(1)
    state.first_step.look([parameter])
    state.give_way()
    parameter.grad = None
    state.first_step.look([parameter])
    assert not state.first_step.is_done
