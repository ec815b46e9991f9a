"""Documents that share a row: none sees another, and nothing about the loss or its gradient changes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, Phi3Config

from core.data.batches import Batch, collate, collate_packed
from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ConfigError
from core.training.config import TrainingConfig
from core.training.language import LanguageStep, NextToken, autocast, inputs_of, trained_tokens
from core.training.packing import packing_obstacle
from core.training.rows import Rows, SftInputs, require_packable
from tests.core.training.families import CONFIGS, SIZES, build

CPU = torch.device("cpu")
LENGTHS = [9, 1, 7, 12, 2, 1, 8]
FAMILIES = sorted(CONFIGS)


def documents(seed: int = 0, lengths=LENGTHS) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate(lengths):
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        # Every other document is trained from its first token on, so that a leaking border would show.
        prompt = 0 if index % 2 else min(3, length - 1)
        made.append(Encoded(ids, [IGNORE_INDEX] * prompt + ids[prompt:]))
    return made


def logits(model, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(batch), use_cache=False).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_document_reads_in_a_row_as_it_does_alone(name: str, attention: str):
    model, docs = build(name, attention), documents()
    rows = [docs[:4], docs[4:]]
    packed = logits(model, collate_packed(rows, 0))
    for row, together in zip(rows, packed, strict=True):
        start = 0
        for doc in row:
            alone = logits(model, collate([doc], 0))[0]
            assert torch.allclose(together[start : start + len(doc.input_ids)], alone, rtol=1e-4, atol=2e-5)
            start += len(doc.input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_first_document_leaves_the_second_one_bit_identical(name: str):
    model, docs = build(name), documents()
    other = documents(seed=1)
    before = logits(model, collate_packed([docs[2:5]], 0))
    after = logits(model, collate_packed([[other[2], *docs[3:5]]], 0))
    border = len(docs[2].input_ids)
    assert not torch.equal(before[:, :border], after[:, :border])
    assert torch.equal(before[:, border:], after[:, border:])


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_those_of_the_documents_one_by_one(name: str):
    docs = documents()
    whole, parts = build(name), build(name)
    loss = NextToken(whole, CPU)
    packed = collate_packed([docs[:4], docs[4:]], 0)
    total = loss(packed)
    total.backward()
    for doc in docs:
        if any(label != IGNORE_INDEX for label in doc.labels[1:]):
            NextToken(parts, CPU)(collate([doc], 0)).backward()
    single = sum(trained_tokens(collate([doc], 0)) for doc in docs)
    assert trained_tokens(packed) == single
    for (label, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        scale = float(two.grad.abs().max())
        assert torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-5 * max(scale, 1.0)), label


def test_the_gradient_of_one_document_does_not_know_the_other():
    model, docs = build("gemma3"), documents()
    grads = []
    for first in (documents(seed=1)[3], documents(seed=2)[3]):
        model.zero_grad()
        untaught = Encoded(first.input_ids, [IGNORE_INDEX] * len(first.input_ids))
        NextToken(model, CPU)(collate_packed([[untaught, docs[0]]], 0)).backward()
        grads.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "layers" in n]))
    assert torch.equal(*grads)


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3])
def test_accumulation_over_packed_rows_gives_the_gradient_of_one_large_batch(rows_at_a_time: int):
    docs = documents(lengths=[3, 14, 2, 9, 9, 1, 20, 5])
    rows = [docs[:2], docs[2:3], docs[3:6], docs[6:]]

    def step(size: int):
        model = build("qwen3")
        batches = [collate_packed(rows[i : i + size], 0) for i in range(0, len(rows), size)]
        loss = LanguageStep(model, CPU, autocast(CPU, None))(batches)
        return float(loss.loss), loss.tokens, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, parts = step(4), step(rows_at_a_time)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1] == sum(sum(label != IGNORE_INDEX for label in doc.labels[1:]) for doc in docs)
    assert torch.allclose(parts[2], whole[2], rtol=1e-3, atol=1e-6)


def test_rows_are_a_function_of_the_examples_and_the_seed():
    docs = documents(lengths=[5, 6, 7, 8, 5, 6, 7, 8, 3, 2, 1, 1])
    inputs = SftInputs(docs, docs[:3], 0, 20)
    packing = TrainingConfig(packing=True, seed=3)
    rows, again = Rows(inputs, packing), Rows(inputs, packing)
    assert rows.packed == again.packed != Rows(inputs, TrainingConfig(packing=True, seed=4)).packed
    assert len(rows) == 3
    assert sorted(n for row in rows.packed for n in row) == list(range(12))
    tokens = sum(int(b.attention_mask.sum()) for b in rows.validation(1))
    assert tokens == sum(len(d.input_ids) for d in docs[:3])
    plain = Rows(inputs, TrainingConfig())
    assert (len(plain), plain.batch([0]).position_ids) == (12, None)


def test_a_model_with_a_state_cannot_be_packed():
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**sizes))
    with pytest.raises(ConfigError, match="models of type mamba are not known") as caught:
        require_packable(mamba, 64)
    assert caught.value.where == "training.packing"


def test_attention_without_a_mask_of_positions_cannot_be_packed():
    model = build("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2 does not keep"):
        require_packable(model, 64)


def test_another_engine_cannot_be_packed():
    model = build("llama")
    model.loaded_by_engine = "unsloth"
    with pytest.raises(ConfigError, match="unsloth engine"):
        require_packable(model, 64)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        *((kind, None) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", None)),
        ("phi3", "type phi3 are not known to keep documents of one row apart under the fused engine"),
        ("gemma3", "under the fused engine"),
        ("mamba", "models of type mamba are not known to keep documents of one row apart"),
    ],
)
def test_the_fused_engine_keeps_the_documents_of_its_families_apart(kind: str | None, words: str | None):
    found = packing_obstacle({"model_type": kind} if kind else {}, "fused", 64)
    assert (found is None) == (words is None)
    if found:
        assert words in found.what
        assert ("model.framework: hf" in found.fix) == (kind != "mamba")
        assert found.where == "training.packing"


def test_scaled_positions_cannot_be_packed_by_the_fused_engine_either():
    settings = {
        "model_type": "qwen2",
        "rope_scaling": {"type": "dynamic"},
        "original_max_position_embeddings": 32,
    }
    assert packing_obstacle(settings, "fused", 32) is None
    assert "beyond 32 tokens" in str(packing_obstacle(settings, "fused", 33))


def test_positions_that_depend_on_the_longest_document_cannot_be_packed():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(**SIZES, original_max_position_embeddings=64, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config)
    require_packable(model, 64)
    with pytest.raises(ConfigError, match="longest document of a batch beyond 64") as caught:
        require_packable(model, 65)
    assert "model.max_seq_length: 64" in caught.value.fix


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dense_families_can_be_packed(name: str):
    require_packable(build(name), 64)
