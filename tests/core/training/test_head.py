"""The output head on trained positions alone, in chunks: the same loss and gradient as the whole model's."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from core.data.batches import Batch, collate
from core.data.chat import IGNORE_INDEX, Encoded
from core.models.adapters import attach
from core.models.config import LoraConfig
from core.training.head import find_head, summed_loss
from core.training.language import NextToken, inputs_of, mean_loss, trained_tokens
from tests.core.training.families import CONFIGS, build

CPU = torch.device("cpu")


def batch(lengths=(9, 4, 12), vocabulary=97) -> Batch:
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in lengths:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 2 + ids[2:]))
    return collate(rows, 0)


def seen_by_head(model) -> list[int]:
    """Count the rows of every call of the output head."""
    rows: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: rows.append(args[0].flatten(0, -2).shape[0])
    )
    return rows


@pytest.mark.parametrize("most", [1, 97 * 5, 1 << 26])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_loss_and_gradient_are_hugging_faces_own(name: str, most: int):
    ours, theirs, items = build(name), build(name), batch()
    loss = NextToken(ours, CPU, most=most)
    assert loss.head is not None
    total = loss(items)
    total.backward()
    plain = theirs(input_ids=items.input_ids, attention_mask=items.attention_mask, labels=items.labels).loss
    (plain * trained_tokens(items)).backward()
    assert float(total.detach()) == pytest.approx(float(plain.detach()) * trained_tokens(items), rel=1e-5)
    for (label, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = float(two.grad.abs().max())
        assert torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-5 * max(1.0, scale)), label


def test_only_trained_positions_reach_the_head_and_never_more_than_a_chunk():
    model, items = build("llama"), batch((30, 5, 18))
    loss, rows = NextToken(model, CPU, most=97 * 10), seen_by_head(model)
    loss(items).backward()
    assert trained_tokens(items) == 28 + 3 + 16
    assert max(rows) == 10
    # Once forward, once more where it is differentiated.
    assert sum(rows) == 2 * trained_tokens(items)


def test_what_fits_into_one_chunk_is_computed_once():
    model, items = build("llama"), batch()
    loss, rows = NextToken(model, CPU), seen_by_head(model)
    loss(items).backward()
    assert rows == [trained_tokens(items)]


def test_a_family_with_logits_of_its_own_is_run_whole():
    model, items = build("llama"), batch()
    model.lm_head.register_forward_hook(lambda module, args, logits: logits + args[0].mean())
    known = NextToken(model, CPU)
    assert known.head is not None
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    unknown = NextToken(model, CPU, most=1)
    assert unknown.head is None
    expected = cross_entropy(
        model(**inputs_of(items)).logits[:, :-1].flatten(0, 1), items.labels[:, 1:].flatten(), reduction="sum"
    )
    assert float(unknown(items).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_an_adapter_counts_and_the_mode_is_left_as_it_was():
    model = attach(build("gemma3"), LoraConfig(r=4, use_gradient_checkpointing=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    items = batch()
    model.train()
    loss = NextToken(model, CPU)
    assert loss.head is not None
    assert model.training
    with torch.no_grad():
        model.eval()
        logits = model(**inputs_of(items)).logits[:, :-1].flatten(0, 1)
        expected = cross_entropy(logits, items.labels[:, 1:].flatten(), reduction="sum")
        with model.disable_adapter():
            bare = float(NextToken(model, CPU)(items))
        assert float(loss(items)) == pytest.approx(float(expected), rel=1e-5)
    assert bare != pytest.approx(float(expected), rel=1e-2)


def test_gradient_checkpointing_changes_the_loss_by_nothing():
    def trained(checkpointed: bool):
        model = attach(build("qwen3"), LoraConfig(r=4, use_gradient_checkpointing=checkpointed))
        loss = NextToken(model.train(), CPU)(batch())
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters() if p.requires_grad]

    (plain, grads), (again, recomputed) = trained(False), trained(True)
    assert torch.equal(plain, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, recomputed, strict=True))


def test_every_adapter_tensor_gets_a_gradient_and_a_fourfold_loss_a_fourfold_one():
    model = attach(build("qwen3"), LoraConfig(r=4, use_gradient_checkpointing=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    grads = []
    for factor in (1, 4):
        model.zero_grad()
        (NextToken(model, CPU, most=97)(batch()) * factor).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(float(g.abs().max()) > 0 for g in grads[0])
    assert all(torch.equal(4 * a, b) for a, b in zip(*grads, strict=True))


def test_a_large_common_offset_of_the_logits_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 11, generator=generator), torch.arange(7)
    plain = summed_loss(logits, targets, lambda part: part, 11)
    shifted = summed_loss(logits.double() + 1e4, targets, lambda part: part, 11, 11)
    assert float(plain) == pytest.approx(float(shifted), rel=1e-3)


def test_the_backbone_of_something_else_is_not_taken_apart():
    assert find_head(torch.nn.Linear(3, 3), CPU) is None


def test_padding_on_the_left_is_passed_on_and_counts():
    model = build("llama")
    ids = torch.tensor([[0, 0, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    left = Batch(ids, torch.tensor([[-100, -100, -100, 6, 7]]), mask)
    assert "attention_mask" in inputs_of(left)
    assert "attention_mask" not in inputs_of(
        collate([Encoded([5, 6, 7], [-100, 6, 7]), Encoded([5], [5])], 0)
    )
    alone = NextToken(model, CPU)(collate([Encoded([5, 6, 7], [-100, 6, 7])], 0))
    # Rotary positions are relative: two steps of padding before the text shift nothing.
    assert float(NextToken(model, CPU)(left).detach()) == pytest.approx(float(alone.detach()), rel=1e-4)


def test_evaluation_needs_no_gradient_in_any_chunk():
    model = build("gemma2")
    whole = mean_loss(model, [batch()], CPU, torch.no_grad)
    parts = mean_loss(model, [batch()], CPU, torch.no_grad, NextToken(model, CPU, most=97))
    assert parts == pytest.approx(whole, rel=1e-6)
