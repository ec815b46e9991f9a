"""What went wrong elsewhere and must not here: accumulation, packing, labels, silent zeros, extremes, a spent memory."""

import math
import warnings
from collections.abc import Sequence

import pytest
import torch
from peft import PeftModel

from core.data.batches import Batch, collate, collate_packed
from core.data.chat import IGNORE_INDEX, Encoded
from core.models.fused.state import FusedNotice
from core.training.head import Head
from core.training.language import LanguageStep, NextToken, autocast, mean_loss, trained_tokens
from core.training.memory import is_out_of_memory, until_it_fits
from tests.core.models.fused.tiny import (
    KINDS,
    POLICIES,
    Gradients,
    Pair,
    counted,
    error,
    gradients,
    hidden,
    keep,
    pair,
    run_out,
)

CPU = torch.device("cpu")
PLAIN = autocast(CPU, None)
LENGTHS = (9, 1, 12, 2, 7)


@pytest.fixture(autouse=True)
def _all_is_fused():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        yield


def documents(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Encoded]:
    """Draw documents; every other one is trained from its first token on, so that a leaking border would show."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate(lengths):
        drawn = torch.randint(3, 97, (length,), generator=generator).tolist()
        prompt = 0 if index % 2 else min(3, length - 1)
        made.append(Encoded(drawn, [IGNORE_INDEX] * prompt + drawn[prompt:]))
    return made


def step(model: PeftModel, batches: Sequence[Batch]) -> tuple[float, Gradients]:
    """Take the gradients of one optimizer step."""
    model.zero_grad()
    device = next(model.parameters()).device
    found = LanguageStep(model, device, PLAIN)(batches)
    return float(found.loss), gradients(model)


def by_hand(model: PeftModel, docs: Sequence[Encoded]) -> float:
    """Return the mean loss over documents that are read one by one, in float64, by Transformers' code."""
    total, tokens = 0.0, 0
    for doc in docs:
        logits = hidden(model, input_ids=torch.tensor([doc.input_ids]))[0].double()
        for place in range(1, len(doc.labels)):
            if doc.labels[place] != IGNORE_INDEX:
                total -= float(torch.log_softmax(logits[place - 1], -1)[doc.labels[place]])
                tokens += 1
    return total / tokens


# Accumulation


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
@pytest.mark.parametrize("label", ["full", "least"])
def test_micro_batches_of_very_unequal_lengths_give_the_gradient_of_one_batch(name: str, label: str):
    docs = documents((40, 2, 3, 25, 1, 7, 2, 30))
    model = pair(name, torch.float32)
    keep(model.state, POLICIES[label])
    loss, whole = step(model.ours, [collate(docs, 0)])
    for size in (2, 1):
        parts_loss, parts = step(model.ours, [collate(docs[n : n + size], 0) for n in range(0, 8, size)])
        assert parts_loss == pytest.approx(loss, rel=1e-5)
        assert error(parts, whole) < 1e-5
    expected_loss, expected = step(model.theirs, [collate(docs, 0)])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert error(whole, expected) < 1e-4


# Documents in one row


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_five_packed_documents_is_the_one_worked_out_by_hand(name: str):
    model, docs = pair(name, torch.float32), documents()
    packed = collate_packed([docs], 0)
    # 31 tokens, five documents; 2 and 2 and 2 of the first, third and fifth have no loss.
    assert trained_tokens(packed) == (9 - 3) + 0 + (12 - 3) + 1 + (7 - 3)
    assert step(model.ours, [packed])[0] == pytest.approx(by_hand(model.theirs, docs), rel=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_no_first_token_of_a_document_is_a_target(name: str):
    model, docs = pair(name, torch.float32), documents()
    other = [Encoded(doc.input_ids, [5, *doc.labels[1:]]) for doc in docs]
    for fused in (True, False):
        losses = []
        for rows in (docs, other):
            loss = NextToken(model.ours, CPU)
            loss.is_fused = fused
            losses.append(loss(collate_packed([rows], 0)).item())
        assert losses[0] == losses[1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("label", ["full", "least"])
def test_packed_gradients_are_those_of_the_documents_alone(name: str, label: str):
    docs = documents((9, 1, 12, 2, 7, 1, 14))
    model = pair(name)
    keep(model.state, POLICIES[label])
    loss, packed = step(model.ours, [collate_packed([docs[:4], docs[4:]], 0)])
    alone_loss, alone = step(model.ours, [collate([doc], 0) for doc in docs])
    assert loss == pytest.approx(alone_loss, rel=1e-6)
    assert error(packed, alone) < 1e-6
    theirs = step(model.theirs, [collate([doc], 0) for doc in docs])[1]
    assert error(packed, theirs) < 3e-5


@pytest.mark.parametrize("name", KINDS)
def test_another_first_document_leaves_the_second_bit_identical(name: str):
    model = pair(name, torch.float32)
    second = documents((8,), seed=4)[0]
    found, logits = [], []
    for seed in (1, 2):
        first = documents((6,), seed=seed)[0]
        untaught = Encoded(first.input_ids, [IGNORE_INDEX] * 6)
        packed = collate_packed([[untaught, second]], 0)
        found.append(step(model.ours, [packed])[1])
        logits.append(hidden(model.ours, input_ids=packed.input_ids, position_ids=packed.position_ids))
    assert not torch.equal(logits[0][:, :6], logits[1][:, :6])
    assert torch.equal(logits[0][:, 6:], logits[1][:, 6:])
    # A document without a loss adds zeros to every sum, whatever it says.
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_ends_where_a_document_begins(name: str):
    model = pair(name)
    docs = documents((3, 4, 2, 11, 1, 1, 6))
    packed = collate_packed([docs], 0)
    together = hidden(model.ours, input_ids=packed.input_ids, position_ids=packed.position_ids)[0]
    place = 0
    for doc in docs:
        alone = hidden(model.theirs, input_ids=torch.tensor([doc.input_ids]))[0]
        assert torch.allclose(together[place : place + len(alone)], alone, rtol=1e-5, atol=1e-4)
        place += len(alone)


def test_documents_of_one_token_alone_have_no_loss_and_are_finite():
    model = pair("qwen3", torch.float32)
    packed = collate_packed([documents((1, 1, 1, 1))], 0)
    assert trained_tokens(packed) == 0
    assert bool(
        hidden(model.ours, input_ids=packed.input_ids, position_ids=packed.position_ids).isfinite().all()
    )


# Nothing to learn


def unlabelled(doc: Encoded) -> Encoded:
    return Encoded(doc.input_ids, [IGNORE_INDEX] * len(doc.labels))


def test_a_row_without_labels_changes_nothing():
    model, docs = pair("llama", torch.float32), documents((9, 8))
    _, alone = step(model.ours, [collate(docs[:1], 0)])
    _, beside = step(model.ours, [collate([docs[0], unlabelled(docs[1])], 0)])
    assert error(beside, alone) < 1e-5
    _, apart = step(model.ours, [collate([docs[0]], 0), collate([unlabelled(docs[1])], 0)])
    assert error(apart, alone) == 0


def test_a_step_without_any_label_is_zero_and_not_nought_by_nought():
    model, docs = pair("llama", torch.float32), documents((9, 8))
    loss, found = step(model.ours, [collate([unlabelled(doc)], 0) for doc in docs])
    assert (loss, found) == (0.0, {})


@pytest.mark.parametrize("label", POLICIES)
def test_a_batch_without_labels_has_zero_gradients(label: str):
    model, docs = pair("gemma3", torch.float32), documents((9, 8))
    keep(model.state, POLICIES[label])
    model.ours.zero_grad()
    loss = NextToken(model.ours, CPU)(collate([unlabelled(doc) for doc in docs], 0))
    assert loss.item() == 0.0
    loss.backward()
    assert all(float(one.abs().max()) == 0 for one in gradients(model.ours).values())


# The loss itself


@pytest.mark.parametrize("name", KINDS)
def test_every_adapter_tensor_gets_the_gradient_of_the_plain_loss(name: str):
    """The fused output layer makes its gradient on the way forward, which has been lost on the way back elsewhere."""
    model, docs = pair(name, torch.float32), documents()
    batch = collate_packed([docs], 0)
    found = step(model.ours, [batch])[1]
    plain = step(model.theirs, [batch])[1]
    assert len(found) == 2 * 7 * 3
    assert all(float(one.norm()) > 0 for one in found.values())
    assert error(found, plain) < 2e-4


def test_the_loss_that_is_trained_by_is_the_fused_one(monkeypatch: pytest.MonkeyPatch):
    model, batch = pair("llama", torch.float32), collate(documents(), 0)
    with counted(monkeypatch, Head, "fused_loss") as calls:
        step(model.ours, [batch])
        assert len(calls) == 1
        step(model.theirs, [batch])
        assert len(calls) == 1


@pytest.mark.parametrize("label", ["full", "least"])
def test_three_times_the_loss_has_three_times_the_gradient(label: str):
    model, batch = pair("qwen3", torch.float32), collate(documents(), 0)
    keep(model.state, POLICIES[label])
    once = step(model.ours, [batch])[1]
    model.ours.zero_grad()
    (3 * NextToken(model.ours, CPU)(batch) / trained_tokens(batch)).backward()
    assert error(gradients(model.ours), {name: 3 * one for name, one in once.items()}) < 1e-5


def test_looking_gives_the_loss_of_training_and_keeps_no_graph():
    model, batch = pair("gemma3", torch.float32), collate(documents(), 0)
    trained = step(model.ours, [batch])[0]
    assert mean_loss(model.ours, [batch], CPU, PLAIN) == pytest.approx(trained, rel=1e-6)
    with torch.no_grad():
        assert not NextToken(model.ours, CPU)(batch).requires_grad
    assert step(model.ours, [batch])[0] == trained


def sharpen(model: Pair, factor: float, shift: float) -> None:
    """Make logits large, and give all of a token's the same large part."""
    for each in (model.theirs, model.ours):
        head = each.get_base_model().lm_head.weight
        with torch.no_grad():
            head.mul_(factor)
            norm = each.get_base_model().model.norm.weight
            norm[0] = norm.abs().max() + 3
            head[:, 0] = shift


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 1e4), (150.0, 0.0), (150.0, 1e4)])
def test_extreme_logits_are_no_worse_than_transformers(factor: float, shift: float):
    batch = collate(documents(), 0)
    exact, model = pair("llama"), pair("llama", torch.float32)
    for each in (exact, model):
        sharpen(each, factor, shift)
    spread = hidden(exact.theirs, input_ids=batch.input_ids)
    assert float(spread.abs().max()) > (1e3 if shift else 50)
    loss, found = step(model.ours, [batch])
    plain_loss, plain = step(model.theirs, [batch])
    true_loss, true = step(exact.ours, [batch])
    assert math.isfinite(loss)
    assert abs(loss - true_loss) <= 1.5 * abs(plain_loss - true_loss) + 1e-4 * true_loss
    assert all(bool(one.isfinite().all()) for one in found.values())
    assert error(found, true) <= 2 * error(plain, true) + 1e-4


def test_a_bounded_logit_is_bounded_in_the_fused_loss_too():
    model = pair("gemma3", torch.float32, config={"final_logit_softcapping": 2.0})
    batch = collate(documents(), 0)
    loss, found = step(model.ours, [batch])
    assert loss == pytest.approx(by_hand(model.theirs, documents()), rel=1e-4)
    assert error(found, step(model.theirs, [batch])[1]) < 2e-4


def test_a_head_and_embeddings_that_are_trained_learn():
    model, batch = pair("gemma3", torch.float32), collate(documents(), 0)
    for each in (model.theirs, model.ours):
        each.get_base_model().model.embed_tokens.weight.requires_grad_()
    found, expected = step(model.ours, [batch])[1], step(model.theirs, [batch])[1]
    assert len(found) == 2 * 7 * 3 + 1
    assert error(found, expected) < 2e-4


def test_an_adapter_on_the_head_learns():
    targets = ["q_proj", "down_proj", "lm_head"]
    model, batch = pair("llama", torch.float32, target_modules=targets), collate(documents(), 0)
    found, expected = step(model.ours, [batch])[1], step(model.theirs, [batch])[1]
    assert sum("lm_head" in name for name in found) == 2
    assert error(found, expected) < 2e-4


# Memory


@pytest.mark.parametrize("where", ["glu_gradients", "rms_norm", "rope_backward", "attend", "glu"])
@pytest.mark.parametrize("after", [1, 5])
def test_memory_that_runs_out_in_a_step_leaves_the_step_as_it_would_have_been(
    where: str, after: int, ashore, monkeypatch: pytest.MonkeyPatch
):
    model = pair("qwen3", torch.float32)
    keep(model.state, POLICIES["host"])
    model.state.host.lock = lambda buffer: True
    batches = [collate(documents(), 0), collate(documents(seed=1), 0)]
    loss, expected = step(model.ours, batches)
    pinned = model.state.host_bytes
    spent = run_out(monkeypatch, where, after)
    found = until_it_fits(lambda: step(model.ours, batches), model.ours.zero_grad)
    assert spent.left < 0 and found[0] == loss
    assert error(found[1], expected) == 0
    assert all(store() is None for store in ashore.made)
    assert model.state.host_bytes == pinned


def test_memory_that_ran_out_is_known_as_such_and_another_failure_is_not():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("backward through the graph a second time"))
