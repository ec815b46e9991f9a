"""Optimizers of bitsandbytes that do not wait: the same training in one launch, whichever path takes a step."""

import copy

import pytest
import torch
from bitsandbytes import optim as theirs
from bitsandbytes.optim import GlobalOptimManager

from core.training.config import TrainingConfig
from core.training.optim import build_optimizer, flowing, optimizer_class

SHAPES = [(64, 96), (16, 300), (300, 17), (8, 8)]
"""The last is too small for moments of 8 bits."""


def always(device):
    return True


def never(device):
    return False


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def built(maker, chosen, lr=1e-2):
    groups = [
        {"params": chosen[:2], "weight_decay": 0.1},
        {"params": chosen[2:], "weight_decay": 0.0, "lr": 2 * lr},
    ]
    return maker(groups, lr=lr)


def give(chosen, number):
    generator = torch.Generator().manual_seed(number)
    for each in chosen:
        each.grad = torch.randn(each.shape, generator=generator).to(each.dtype)


def steps(optimizer, chosen, numbers):
    for number in numbers:
        give(chosen, number)
        optimizer.step()


def assert_close(ours, other, limit=1e-4):
    for mine, its in zip(ours, other, strict=True):
        assert (mine - its).norm() <= limit * its.norm()


def is_joined(optimizer, chosen, place=0):
    """Only the update in one launch leaves a parameter alone where its gradient is no number."""
    give(chosen, 99)
    chosen[place].grad.view(-1)[3] = float("nan")
    optimizer.step()
    return bool(chosen[place].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_updated_together_go_where_bitsandbytes_takes_them(dtype):
    ours, other = parameters(dtype), parameters(dtype)
    mine, its = built(flowing(theirs.AdamW8bit, joins=always), ours), built(theirs.AdamW8bit, other)
    for number in range(12):
        for optimizer, chosen in ((mine, ours), (its, other)):
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            steps(optimizer, chosen, [number])
    assert_close(ours, other, 1e-3 if dtype == torch.float32 else 5e-3)
    assert is_joined(mine, ours) and not is_joined(its, other)


def test_the_state_is_bitsandbytes_own():
    ours, other = parameters(), parameters()
    mine, its = built(flowing(theirs.AdamW8bit, joins=always), ours), built(theirs.AdamW8bit, other)
    steps(mine, ours, range(4))
    steps(its, other, range(4))
    for one, two in zip(mine.state_dict()["state"].values(), its.state_dict()["state"].values(), strict=True):
        assert one.keys() == two.keys() and one["step"] == two["step"] == 4
        inner = [state.get("__bnb_optimizer_quant_state__", {}) for state in (one, two)]
        assert inner[0].keys() == inner[1].keys()
        for name in inner[0]:
            assert (
                inner[0][name].dtype == inner[1][name].dtype and inner[0][name].shape == inner[1][name].shape
            )
    assert ours[3].numel() < 4096 and mine.state[ours[3]]["state1"].dtype == torch.float32
    assert torch.equal(ours[3], other[3])


@pytest.mark.parametrize("joins", [(always, never), (never, always), (always, always)])
def test_a_saved_training_is_continued_on_either_path(joins):
    whole, broken = parameters(), parameters()
    straight = built(flowing(theirs.AdamW8bit, joins=joins[0]), whole)
    steps(straight, whole, range(8))
    first = built(flowing(theirs.AdamW8bit, joins=joins[0]), broken)
    steps(first, broken, range(4))
    second = built(flowing(theirs.AdamW8bit, joins=joins[1]), broken)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, broken, range(4, 8))
    # The first step after a restart is bitsandbytes' own.
    assert_close(broken, whole, 1e-3)
    assert {state["step"] for state in second.state.values()} == {8}


def test_a_state_read_into_a_running_optimizer_is_the_one_that_goes_on():
    ours, other = parameters(), parameters()
    mine, its = (built(flowing(theirs.AdamW8bit, joins=always), each) for each in (ours, other))
    steps(mine, ours, range(3))
    saved, places = copy.deepcopy(mine.state_dict()), [each.detach().clone() for each in ours]
    steps(mine, ours, range(10, 13))
    mine.load_state_dict(saved)
    with torch.no_grad():
        for each, place in zip(ours, places, strict=True):
            each.copy_(place)
    steps(mine, ours, range(3, 6))
    steps(its, other, range(6))
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_a_parameter_without_gradient_rests_and_keeps_its_own_count():
    ours, other = parameters(), parameters()
    mine, its = built(flowing(theirs.AdamW8bit, joins=always), ours), built(theirs.AdamW8bit, other)
    for number in range(6):
        for optimizer, chosen in ((mine, ours), (its, other)):
            give(chosen, number)
            if number in (0, 3):
                chosen[1].grad = None
            before = chosen[1].detach().clone()
            optimizer.step()
            assert torch.equal(before, chosen[1]) == (number in (0, 3))
    assert_close(ours, other, 1e-3)
    assert [mine.state[each]["step"] for each in ours] == [6, 4, 6, 6]


def test_a_gradient_that_does_not_lie_in_one_piece_goes_alone():
    ours, other = parameters(), parameters()
    mine, its = built(flowing(theirs.AdamW8bit, joins=always), ours), built(theirs.AdamW8bit, other)
    for number in range(4):
        for optimizer, chosen in ((mine, ours), (its, other)):
            give(chosen, number)
            chosen[0].grad = chosen[0].grad.t().contiguous().t()
            optimizer.step()
    assert torch.equal(ours[0], other[0])
    assert_close(ours, other, 1e-3)


def test_settings_of_a_single_parameter_are_bitsandbytes_business(monkeypatch):
    ours = parameters()
    mine = built(flowing(theirs.AdamW8bit, joins=always), ours)
    steps(mine, ours, range(2))
    monkeypatch.setattr(GlobalOptimManager.get_instance(), "pid2config", {id(ours[0]): {"lr": 0.0}})
    before = ours[0].detach().clone()
    steps(mine, ours, [2])
    assert torch.equal(ours[0], before)


def test_a_closure_may_take_gradients():
    ours = parameters()
    mine = built(flowing(theirs.AdamW8bit, joins=always), ours)
    steps(mine, ours, [0])

    def loss():
        mine.zero_grad(set_to_none=True)
        total = sum(each.square().sum() for each in ours)
        total.backward()
        return total.item()

    first, second = mine.step(loss), mine.step(loss)
    assert second < first


@pytest.mark.parametrize("name", ["Lion8bit", "AdamW32bit"])
def test_other_optimizers_are_left_as_they_are(name):
    ours, other = parameters(), parameters()
    mine, its = built(flowing(getattr(theirs, name), joins=always), ours), built(getattr(theirs, name), other)
    steps(mine, ours, range(4))
    steps(its, other, range(4))
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_without_a_gpu_every_step_is_bitsandbytes_own(name):
    ours, other = parameters(), parameters()
    settings = TrainingConfig(optim=name, learning_rate=1e-2, weight_decay=0.1)
    mine, its = build_optimizer(ours, settings), theirs.AdamW8bit(other, lr=1e-2, weight_decay=0.1)
    steps(mine, ours, range(3))
    steps(its, other, range(3))
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
    assert not is_joined(mine, ours)


def test_paged_moments_on_a_gpu_stay_with_their_own_class():
    assert optimizer_class("paged_adamw_8bit", on_gpu=True) is theirs.PagedAdamW8bit
    assert optimizer_class("adamw_8bit", on_gpu=True).__name__ == "AdamW8bit"
