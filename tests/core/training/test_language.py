"""The step function against Hugging Face's own loss, and its invariances."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from core.data.batches import Batch, collate
from core.data.chat import IGNORE_INDEX, Encoded
from core.models.loading import load_folder
from core.training import language
from core.training.language import LanguageStep, NextToken, autocast, mean_loss, trained_tokens
from core.training.rows import SftInputs
from core.training.sft import validation_loss
from tests.core.models.fused.tiny import pair
from tests.families import build

CPU = torch.device("cpu")


def examples(count: int, seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = 5 + index % 7
        ids = torch.randint(6, 400, (length,), generator=generator).tolist()
        prompt = 2 + index % 3
        made.append(Encoded(ids, [IGNORE_INDEX] * prompt + ids[prompt:]))
    return made


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def step_of(model, items: list[Encoded], micro: int) -> tuple[float, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    batches = [collate(items[i : i + micro], 1) for i in range(0, len(items), micro)]
    loss = LanguageStep(model, CPU, autocast(CPU, None))(batches)
    return float(loss.loss), gradient(model).clone()


def test_loss_equals_hugging_faces_own(model):
    batch = collate(examples(6), 1)
    theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    ours = NextToken(model, CPU)(batch) / trained_tokens(batch)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)


def test_loss_is_the_sum_over_assistant_tokens_written_out(model):
    item = examples(1)[0]
    batch = collate([item], 1)
    logits = model(input_ids=batch.input_ids).logits[0]
    total = sum(
        float(cross_entropy(logits[t - 1].detach(), torch.tensor(item.labels[t])))
        for t in range(1, len(item.labels))
        if item.labels[t] != IGNORE_INDEX
    )
    assert float(NextToken(model, CPU)(batch).detach()) == pytest.approx(total, rel=1e-5)


NEARLY = {
    "one row": ("llama", torch.float32, (201,), 1, True),
    "too few": ("llama", torch.float32, (201,), 3, False),
    "padded rows": ("llama", torch.float32, (201, 200), 1, True),
    "bounded logits": ("gemma3", torch.float32, (201, 201), 1, True),
    "16 bits": ("qwen3", torch.bfloat16, (201, 200), 1, True),
}
"""Family, dtype, tokens of each row, how many of each carry no label (one is nobody's next), and if all are taken."""


@pytest.mark.parametrize("name", NEARLY)
def test_where_nearly_all_is_labelled_the_head_takes_all_and_the_loss_and_gradient_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    family, dtype, lengths, unlabelled, takes_all = NEARLY[name]
    settings = {"final_logit_softcapping": 3.0} if name == "bounded logits" else None
    model, generator = pair(family, dtype, settings).ours, torch.Generator().manual_seed(2)
    rows = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]
    batch = collate([Encoded(row, [IGNORE_INDEX] * unlabelled + row[unlabelled:]) for row in rows], 0)
    seen, found = [], []
    real = language.rows_at
    monkeypatch.setattr(
        language, "rows_at", lambda rows, places: seen.append(places is None) or real(rows, places)
    )
    for share in (0.99, 2.0):
        monkeypatch.setattr(language, "NEARLY_ALL", share)
        model.zero_grad()
        loss = NextToken(model, CPU)(batch)
        loss.backward()
        found.append((float(loss.detach()), gradient(model).float()))
    assert seen == [takes_all, False]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-7 if dtype == torch.float32 else 1e-3)


def test_a_head_that_is_trained_sees_labelled_positions_alone(monkeypatch: pytest.MonkeyPatch):
    model = pair("llama", torch.float32).ours
    model.get_output_embeddings().weight.requires_grad_(True)
    batch = collate([Encoded([5] * 201, [IGNORE_INDEX] + [5] * 200)], 0)
    assert not NextToken(model, CPU).may_take_all
    places, _ = NextToken(model, CPU)._targets(batch)
    assert places is not None and len(places) == 200


@pytest.mark.parametrize("micro", [1, 3, 4, 16])
def test_accumulation_gives_the_gradient_of_one_large_batch(model, micro: int):
    items = examples(16)
    loss, whole = step_of(model, items, 16)
    again, parts = step_of(model, items, micro)
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-7)


def test_padding_changes_nothing(model):
    short, long = examples(1)[0], examples(7)[6]
    alone = float(NextToken(model.eval(), CPU)(collate([short], 1)))
    padded = collate([short, long], 1)
    first = Batch(padded.input_ids[:1], padded.labels[:1], padded.attention_mask[:1])
    assert float(NextToken(model, CPU)(first)) == pytest.approx(alone, rel=1e-5)


def test_mean_loss_is_per_token_not_per_batch_and_restores_the_mode(model):
    items = examples(9)
    model.train()
    whole = mean_loss(model, [collate(items, 1)], CPU, autocast(CPU, None))
    parts = mean_loss(model, [collate(items[:2], 1), collate(items[2:], 1)], CPU, autocast(CPU, None))
    assert parts == pytest.approx(whole, rel=1e-6)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_random_weights_score_near_the_uniform_entropy(model):
    batch = collate(examples(30), 1)
    assert float(NextToken(model, CPU)(batch).detach()) / trained_tokens(batch) == pytest.approx(
        math.log(400), rel=0.05
    )


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulation_with_a_loss_scale_gives_the_gradient_of_one_large_batch(model, micro: int):
    items = examples(16)
    _, whole = step_of(model, items, 16)
    model.zero_grad(set_to_none=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    batches = [collate(items[i : i + micro], 1) for i in range(0, len(items), micro)]
    loss = LanguageStep(model, CPU, autocast(CPU, None), scaler)(batches)
    assert torch.allclose(gradient(model), whole * 2.0**8, rtol=1e-4, atol=2.0**8 * 1e-7)
    # What is reported is the loss itself, not the scaled one.
    assert float(loss.loss) == pytest.approx(step_of(model, items, 16)[0], rel=1e-6)


def test_rows_without_a_trained_token_change_nothing(model):
    items = examples(5)
    untrained = [
        Encoded(item.input_ids, [IGNORE_INDEX] * len(item.input_ids)) for item in examples(2, seed=1)
    ]
    loss, plain = step_of(model, items, 5)
    again, mixed = step_of(model, [*items, untrained[0]], 6)
    apart, parts = step_of(model, [*items, *untrained], 1)
    assert again == pytest.approx(loss, rel=1e-6)
    assert apart == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(mixed, plain, rtol=1e-4, atol=1e-7)
    assert torch.allclose(parts, plain, rtol=1e-4, atol=1e-7)


def test_a_step_without_any_trained_token_is_zero_and_leaves_no_gradient(model):
    item = examples(1)[0]
    model.zero_grad(set_to_none=True)
    step = LanguageStep(model, CPU, autocast(CPU, None))
    seen = step([collate([Encoded(item.input_ids, [IGNORE_INDEX] * len(item.input_ids))], 1)])
    assert (float(seen.loss), seen.tokens, seen.read) == (0.0, 0, len(item.input_ids))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("part", ["whole", "inside"])
def test_a_step_trains_a_model_that_was_only_asked_before(model, part):
    """PEFT says of a model that it trains while the base inside does not."""
    step = LanguageStep(model, CPU, autocast(CPU, None))
    model.eval().training = part == "inside"
    step([collate(examples(1), 1)])
    assert all(each.training for each in model.modules())


def test_a_step_counts_trained_tokens_and_tokens_read_without_padding(model):
    items = examples(4)
    seen = LanguageStep(model, CPU, autocast(CPU, None))([collate(items[:3], 1), collate(items[3:], 1)])
    assert seen.tokens == sum(sum(label != IGNORE_INDEX for label in item.labels[1:]) for item in items)
    assert seen.read == sum(len(item.input_ids) for item in items)


def test_the_validation_loss_of_a_model_weighs_tokens_and_not_rows(tmp_path: Path):
    model = load_folder(build("qwen3", tmp_path))
    rows = [
        Encoded([5, 6, 7, 8], [-100, 6, 7, 8]),
        Encoded([9, 10], [-100, 10]),
        Encoded([4, 3, 2], [-100, -100, 2]),
    ]
    total = 0.0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= sum(float(scores[n, t].detach()) for n, t in enumerate(row.labels[1:]) if t != -100)
    assert validation_loss(model, SftInputs((), rows, 0), 2) == pytest.approx(total / 5, rel=1e-5)
    assert validation_loss(model, SftInputs((), (), 0), 2) is None
