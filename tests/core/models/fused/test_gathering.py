"""Gradients that wait in the layers for the last micro-batch of a step are those that autograd would have added up."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.batches import Batch, collate
from core.data.chat import IGNORE_INDEX
from core.models.fused.first_step import FirstStep
from core.models.fused.gathering import Gathering
from core.training import language
from core.training.language import LanguageStep, autocast
from tests.core.models.fused.test_hazards import documents
from tests.core.models.fused.tiny import KINDS, Gradients, Spent, counted, gradients, pair

CPU = torch.device("cpu")


def batches(count: int = 4) -> list[Batch]:
    docs = documents((9, 3, 12, 5, 7, 8, 6, 4)[: 2 * count])
    return [collate(docs[place : place + 2], 1) for place in range(0, 2 * count, 2)]


def unlearned() -> Batch:
    batch = collate(documents((5,)), 1)
    return batch._replace(labels=torch.full_like(batch.labels, IGNORE_INDEX))


def stepped(model: nn.Module, held: list[Batch]) -> Gradients:
    """Take a step's gradients."""
    LanguageStep(model, CPU, autocast(CPU, None))(held)
    return gradients(model)


def by_autograd(model: nn.Module, held: list[Batch], patch: pytest.MonkeyPatch) -> Gradients:
    """Take them with autograd adding the micro-batches up; they are gone from the model afterwards."""
    with patch.context() as inner:
        inner.setattr(language, "gathered", lambda *_: nullcontext(lambda: None))
        found = stepped(model, held)
    model.zero_grad()
    return found


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Count the additions of whole layers."""
    with counted(monkeypatch, torch, "_foreach_add_") as calls:
        yield calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_the_sums_are_autograds_to_the_bit_and_take_one_addition_a_layer(name, dtype, adds, monkeypatch):
    model = pair(name, dtype).ours
    expected = by_autograd(model, batches(), monkeypatch)
    assert not adds
    found = stepped(model, batches())
    assert len(adds) == 3 * 3
    assert list(found) == list(expected)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_a_step_adds_to_the_gradients_that_are_there(monkeypatch):
    model = pair("qwen3", torch.float32).ours
    once = stepped(model, batches())
    twice = stepped(model, batches())
    for name, one in once.items():
        torch.testing.assert_close(twice[name], 2 * one)


def test_one_micro_batch_alone_is_autograds():
    model = pair("llama3", torch.float32).ours
    seen: list[Gathering | None] = []
    model.register_forward_hook(lambda *_: seen.append(model.base_model.model.model._fused_state.gathering))
    LanguageStep(model, CPU, autocast(CPU, None))([batches()[0], unlearned()])
    assert seen == [None] and gradients(model)


def test_the_last_micro_batch_with_labels_hands_the_sums_on(monkeypatch):
    model = pair("llama3", torch.float32).ours
    expected = by_autograd(model, batches(3), monkeypatch)
    first, *others = batches(3)
    found = stepped(model, [first, unlearned(), *others, unlearned()])
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_a_frozen_adapter_gets_no_gradient():
    model = pair("llama3", torch.float32).ours
    frozen = next(name for name, each in model.named_parameters() if each.requires_grad)
    model.get_parameter(frozen).requires_grad_(False)
    found = stepped(model, batches())
    assert frozen not in found and len(found) == 2 * 7 * 3 - 1


def test_an_error_in_between_leaves_nothing_behind(monkeypatch):
    model = pair("llama3", torch.float32)
    expected = stepped(model.ours, batches())
    model.ours.zero_grad()
    spent = Spent(language.NextToken.__call__, 3)
    with monkeypatch.context() as patch:
        patch.setattr(language.NextToken, "__call__", lambda *args: spent(*args))
        with pytest.raises(torch.OutOfMemoryError):
            LanguageStep(model.ours, CPU, autocast(CPU, None))(batches())
    assert model.state.gathering is None and not gradients(model.ours)
    found = stepped(model.ours, batches())
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_a_layer_that_ceases_to_be_fused_in_between_loses_nothing(monkeypatch):
    """Its last micro-batch runs by its own code, whose gradients autograd adds to what the layer had kept."""
    model = pair("llama3", torch.float32)
    expected = stepped(model.theirs, batches())
    layer: Any = model.state.layers[1]
    sites = model.state.sites

    def disturbed(**more: Any) -> Any:
        if model.state.gathering is not None and model.state.gathering._left == 1:
            # With dropout a layer runs by its own code; this one drops nothing.
            layer.self_attn.q_proj.lora_dropout["default"] = nn.Dropout(1e-12)
        return sites(**more)

    monkeypatch.setattr(model.state, "sites", disturbed)
    with pytest.warns(UserWarning, match="own code"):
        found = stepped(model.ours, batches())
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-7)


def tensors(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.full((2, 3), float(value)) for value in values)


def leaves(*values: float) -> tuple[Tensor, ...]:
    return tuple(each.requires_grad_() for each in tensors(*values))


def test_other_adapters_than_a_micro_batch_ago_do_not_get_each_others_gradients():
    gathering, one, other = Gathering(2), leaves(0, 0), leaves(0, 0)
    gathering.begin()
    assert gathering.take(5, one, tensors(1, 2)) == (None, None) and gathering.has_some
    gathering.begin()
    found = gathering.take(5, other, tensors(30, 40))
    assert all(torch.equal(a, b) for a, b in zip(found, tensors(30, 40), strict=True))
    assert all(torch.equal(a.grad, b) for a, b in zip(one, tensors(1, 2), strict=True))
    assert other[0].grad is None and not gathering.has_some


def test_what_is_left_over_is_settled_once():
    gathering, held = Gathering(3), leaves(0, 0)
    held[0].grad, held[1].requires_grad = tensors(5)[0], False
    for _ in range(2):
        gathering.begin()
        gathering.take(0, held, tensors(1, 1))
    for _ in range(2):
        gathering.settle()
    assert torch.equal(held[0].grad, tensors(7)[0]) and held[1].grad is None


def test_gradients_that_wait_count_as_there_for_what_the_first_step_takes():
    step, held = FirstStep(), leaves(0)
    step.look(held)
    before = step.to_come(10)
    gathering = Gathering(2)
    gathering.take(0, held, tensors(1))
    step.look(held, gathering)
    assert step.to_come(10) == before - 40 and not step.is_done
    step.look(held)
    assert step.is_done and step.to_come(10) == 0


def test_a_first_step_of_several_micro_batches_is_seen_to_be_over():
    """A planner that looks between them, and once more before the next step, whose gradients are gone again."""
    model = pair("llama3", torch.float32)
    state, sites = model.state, model.state.sites()
    state.room, state.host_room = lambda: 1 << 30, lambda: 0
    state.gathering = gathering = Gathering(2)
    found = []
    for waits in (False, True, False):
        if waits:
            gathering.take(0, sites[0].parameters, [each.detach() for each in sites[0].parameters])
        else:
            gathering._kept.clear()
        state.device = torch.device("cuda")
        state.policies(sites, 64, 64)
        state.device = CPU
        found.append((state.first_step.has_gradients, state.first_step.is_done))
    assert found == [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize("layers", [[0], [1], [0, 2]], ids=str)
def test_layers_without_adapters_have_nothing_to_keep(layers, monkeypatch):
    model = pair("llama3", torch.float32, layers_to_transform=layers).ours
    expected = by_autograd(model, batches(), monkeypatch)
    found = stepped(model, batches())
    assert len(found) == 2 * 7 * len(layers)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())
