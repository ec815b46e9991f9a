"""The fused forward function: what it is given, what it leaves to the model's own code, and that both agree."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from core.kernels.attention import Documents
from core.models.fused import backbone as subject
from core.models.fused.backbone import documents_of, fuse, positions_of
from core.models.fused.state import FusedNotice, fused_state
from tests.core.models.fused.tiny import (
    FAMILIES,
    KINDS,
    POLICIES,
    Pair,
    adapt,
    base,
    counted,
    error,
    hidden,
    ids,
    keep,
    learn,
    pair,
    same,
)


@contextmanager
def fused_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Count the layers that run as one function."""
    with counted(monkeypatch, subject, "decode") as calls:
        yield calls


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


# Looking


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_without_gradients_are_transformers(name: str, monkeypatch: pytest.MonkeyPatch):
    model, tokens = pair(name), ids(2, 40)
    with fused_runs(monkeypatch) as calls:
        assert close(hidden(model.ours, input_ids=tokens), hidden(model.theirs, input_ids=tokens))
    assert len(calls) == 3


@pytest.mark.parametrize("label", POLICIES)
def test_the_loss_is_the_same_number_with_gradients_and_without(label: str):
    model, tokens = pair("gemma3"), ids()
    keep(model.state, POLICIES[label])
    with_gradients = learn(model.ours, tokens)[0]
    with torch.no_grad():
        assert torch.equal(model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss, with_gradients)
    with torch.inference_mode():
        found = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    assert float(found) == float(with_gradients)


def test_a_model_without_an_adapter_runs_too(monkeypatch: pytest.MonkeyPatch):
    theirs = base("qwen2").requires_grad_(False)
    ours = copy.deepcopy(theirs)
    fuse(ours)
    with fused_runs(monkeypatch) as calls:
        assert close(hidden(ours, input_ids=ids()), hidden(theirs, input_ids=ids()))
    assert len(calls) == 3


# What the model's own code does


@pytest.mark.parametrize("name", KINDS)
def test_generating_with_a_cache_gives_the_same_tokens(name: str):
    model = pair(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        for prompt in (ids(2, 9), ids(1, 1)):
            found, expected = (
                each.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
                for each in (model.ours, model.theirs)
            )  # fmt: skip
            assert torch.equal(found, expected)
    same(model)


def test_generating_without_a_cache_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch):
    model, prompt = pair("gemma3"), ids(2, 9)
    settings = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 6,
        "do_sample": False,
        "use_cache": False,
    }
    with fused_runs(monkeypatch) as calls:
        found = model.ours.generate(input_ids=prompt, **settings)
    assert len(calls) > 0
    assert torch.equal(found, model.theirs.generate(input_ids=prompt, **settings))


@pytest.mark.parametrize("what", ["hidden_states", "attentions"])
@pytest.mark.parametrize("where", ["call", "config"])
def test_hidden_states_and_attentions_are_there_when_asked_for(what: str, where: str):
    model, tokens = pair("qwen3"), ids()
    found = []
    for each in (model.ours, model.theirs):
        asked = {f"output_{what}": True}
        if where == "config":
            setattr(each.get_base_model().config, f"output_{what}", True)
            asked = {}
        with torch.no_grad():
            found.append(getattr(each.get_base_model()(input_ids=tokens, use_cache=False, **asked), what))
        setattr(each.get_base_model().config, f"output_{what}", False)
    assert len(found[0]) == len(found[1])
    assert all(close(one, other) for one, other in zip(*found, strict=True))
    # Transformers leaves its hooks in the layers; they must not unfuse them for good.
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        same(model)


def test_a_cache_that_is_given_is_read():
    model, tokens = pair("llama3"), ids(1, 12)
    found = []
    for each in (model.ours, model.theirs):
        with torch.no_grad():
            start = each(input_ids=tokens[:, :7], use_cache=True)
            found.append(each(input_ids=tokens[:, 7:], past_key_values=start.past_key_values).logits)
    assert close(*found)
    assert close(found[0], hidden(model.ours, input_ids=tokens)[:, 7:])


def test_a_tuple_is_a_tuple():
    model, tokens = pair("llama"), ids()
    found, expected = (
        each(input_ids=tokens, use_cache=False, return_dict=False) for each in (model.ours, model.theirs)
    )
    assert isinstance(found, tuple)
    assert close(found[0], expected[0])
    inner, other = (
        each.get_base_model().model(input_ids=tokens, use_cache=False, return_dict=False)
        for each in (model.ours, model.theirs)
    )
    assert isinstance(inner, tuple)
    assert close(inner[0], other[0])


def test_neither_tokens_nor_embeddings_is_transformers_error():
    model = pair("llama")
    for inputs in ({}, {"input_ids": ids(), "inputs_embeds": torch.zeros(3, 13, 32, dtype=torch.float64)}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model.ours(use_cache=False, **inputs)


def test_what_is_not_known_is_left_to_the_models_own_code_with_one_notice():
    model, tokens = pair("llama"), ids()
    with pytest.warns(FusedNotice, match="batches with novelty run by the model's own code"):
        found = hidden(model.ours, input_ids=tokens, novelty=torch.ones(1))
    assert close(found, hidden(model.theirs, input_ids=tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        hidden(model.ours, input_ids=tokens, novelty=torch.ones(1))


# Masks


def padded(side: str) -> tuple[Tensor, Tensor, Tensor]:
    tokens, labels, mask = ids(3, 12), ids(3, 12), torch.ones(3, 12, dtype=torch.int64)
    for row, length in enumerate((12, 7, 1)):
        places = slice(length, None) if side == "right" else slice(None, 12 - length)
        tokens[row, places], labels[row, places], mask[row, places] = 0, -100, 0
    return tokens, labels, mask


@pytest.mark.parametrize("name", KINDS)
def test_padding_on_the_right_is_transformers_and_that_of_rows_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    model, (tokens, labels, mask) = pair(name, torch.float32), padded("right")
    with warnings.catch_warnings(), fused_runs(monkeypatch) as calls:
        warnings.simplefilter("error", FusedNotice)
        same(model, 1e-4, tokens=tokens, labels=labels, attention_mask=mask)
        together = hidden(model.ours, input_ids=tokens, attention_mask=mask)
        bare = hidden(model.ours, input_ids=tokens)
    assert len(calls) == 9
    for row, length in enumerate((12, 7, 1)):
        alone = hidden(model.ours, input_ids=tokens[row : row + 1, :length])[0]
        assert close(together[row, :length], alone)
        assert close(bare[row, :length], alone)


@pytest.mark.parametrize("name", KINDS)
def test_padding_on_the_left_is_right_and_said_once(name: str):
    # Transformers' own masks make NaN of rows of padding in float64.
    model, (tokens, labels, mask) = pair(name, torch.float32), padded("left")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FusedNotice)
        for _ in range(2):
            same(model, 1e-4, tokens=tokens, labels=labels, attention_mask=mask)
    told = [str(each.message) for each in said if issubclass(each.category, FusedNotice)]
    assert len(told) == 1
    assert "padded on the left" in told[0]
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    found = hidden(model.ours, input_ids=tokens, attention_mask=mask, position_ids=places)
    assert close(found[1, 5:], hidden(model.ours, input_ids=tokens[1:2, 5:])[0])


@pytest.mark.parametrize("rows", [[[1, 1, 0, 1]], [[0, 1, 1, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]])
def test_masks_with_holes_are_left_to_the_models_own_code(rows: list[list[int]]):
    model, mask = pair("qwen3", torch.float32), torch.tensor(rows)
    tokens = ids(len(rows), 4)
    with pytest.warns(FusedNotice):
        found = hidden(model.ours, input_ids=tokens, attention_mask=mask)
    assert close(found[mask.bool()], hidden(model.theirs, input_ids=tokens, attention_mask=mask)[mask.bool()])


@pytest.mark.parametrize("kind", ["4-D", "dict"])
def test_masks_of_another_shape_are_left_to_the_models_own_code(kind: str):
    model, tokens = pair("gemma3"), ids(1, 6)
    allowed = torch.full((6, 6), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    allowed[..., 3:, :2] = float("-inf")
    mask = allowed if kind == "4-D" else {"full_attention": allowed, "sliding_attention": allowed}
    with pytest.warns(FusedNotice, match="a mask of their own"):
        found = hidden(model.ours, input_ids=tokens, attention_mask=mask)
    assert close(found, hidden(model.theirs, input_ids=tokens, attention_mask=mask))


# Positions


@pytest.mark.parametrize("name", ["llama3", "yarn", "gemma3", "mistral"])
def test_positions_with_an_offset_are_transformers(name: str):
    model, tokens = pair(name), ids(2, 10)
    for places in (torch.arange(10)[None] + 90, torch.stack([torch.arange(10), torch.arange(10) + 40])):
        with warnings.catch_warnings():
            warnings.simplefilter("error", FusedNotice)
            same(model, tokens=tokens, position_ids=places)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "mistral"])
def test_documents_that_do_not_begin_at_zero_are_transformers(name: str):
    model, tokens = pair(name), ids(2, 10)
    places = torch.tensor([[70, 71, 72, 73, 0, 1, 2, 100, 101, 102], [5, 6, 7, 8, 9, 10, 11, 12, 13, 0]])
    same(model, tokens=tokens, position_ids=places)


def test_one_row_of_positions_serves_all_rows():
    model, tokens = pair("qwen2"), ids(3, 8)
    same(model, tokens=tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]]))


def test_a_mask_makes_one_document_of_a_row_as_it_does_for_transformers():
    model, tokens = pair("llama"), ids(2, 8)
    places = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]] * 2)
    same(model, tokens=tokens, position_ids=places, attention_mask=torch.ones(2, 8, dtype=torch.int64))


def test_documents_are_found_where_positions_do_not_go_on():
    places = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    found = documents_of(places, (2, 6), {})
    assert found is not None
    assert (found.starts.tolist(), found.starts.dtype, found.longest) == ([0, 3, 5, 6, 12], torch.int32, 6)
    assert documents_of(torch.arange(6)[None], (1, 6), {}) is None
    assert documents_of(torch.arange(6)[None] + 3, (4, 6), {}) is None
    assert documents_of(None, (2, 6), {}) is None


def test_documents_that_are_told_are_believed():
    starts = torch.tensor([0, 4, 12])
    told = {"cu_seq_lens_q": starts, "max_length_q": 8}
    found = documents_of(None, (2, 6), told)
    assert isinstance(found, Documents)
    assert (found.starts.dtype, found.longest) == (torch.int32, 8)
    assert documents_of(None, (2, 6), {"cu_seq_lens_q": starts}).longest == 6


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3"])
def test_documents_that_are_told_are_those_that_are_found(name: str):
    model, tokens = pair(name), ids(2, 8)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [0, 1, 2, 0, 0, 1, 2, 3]])
    starts = torch.tensor([0, 7, 8, 11, 12, 16], dtype=torch.int32)
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 7, "max_length_k": 7}
    expected = learn(model.ours, tokens, position_ids=places)[1]
    assert error(learn(model.ours, tokens, position_ids=places, **told)[1], expected) == 0


def test_positions_are_counted_where_none_are_given():
    assert positions_of(None, (2, 3), torch.device("cpu")).tolist() == [0, 1, 2, 0, 1, 2]
    assert positions_of(torch.tensor([[4, 5]]), (2, 2), torch.device("cpu")).tolist() == [4, 5, 4, 5]


# The parts around the layers


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_hooks_on_the_last_norm_and_the_embedding_are_heard(name: str):
    model = pair(name)
    for each in (model.theirs, model.ours):
        backbone = each.get_base_model().model
        backbone.norm.register_forward_hook(lambda module, args, out: out * 1.25)
        backbone.embed_tokens.register_forward_hook(lambda module, args, out: out * 0.5)
    same(model)


def test_a_last_norm_that_is_trained_gets_its_gradient():
    model = pair("qwen3")
    for each in (model.theirs, model.ours):
        each.get_base_model().model.norm.weight.requires_grad_()
    same(model)


def test_embeddings_that_are_trained_get_their_gradient():
    model = pair("llama")
    for each in (model.theirs, model.ours):
        each.get_base_model().model.embed_tokens.weight.requires_grad_()
        each.get_base_model().lm_head.weight.requires_grad_()
    same(model)


def test_checkpoints_of_transformers_are_no_obstacle():
    model = pair("llama")
    model.ours.enable_input_require_grads()
    model.ours.gradient_checkpointing_enable()
    model.ours.train()
    same(model)


def test_a_copy_of_a_fused_model_is_a_model_of_its_own():
    model = pair("qwen3")
    other = copy.deepcopy(model.ours)
    with torch.no_grad():
        for (name, one), two in zip(other.named_parameters(), model.theirs.parameters(), strict=True):
            if "proj" in name:
                one.mul_(1.1)
                two.mul_(1.1)
    state = fused_state(other)
    assert state is not None
    assert state is not model.state
    same(Pair(model.theirs, other, state))
    state.unload()
    assert close(hidden(other, input_ids=ids()), hidden(model.theirs, input_ids=ids()))
    assert fused_state(model.ours) is model.state


def test_fusing_twice_is_fusing_once():
    model = pair("llama")
    assert fuse(model.ours) is model.state
    same(model)
    model.state.unload()
    assert "forward" not in vars(model.ours.get_base_model().model)


def test_a_model_in_half_precision_answers_in_half_precision():
    model = adapt(base("llama", torch.bfloat16))
    fuse(model)
    out = model.get_base_model().model(input_ids=ids(), use_cache=False).last_hidden_state
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.float16):
        assert (
            model.get_base_model().model(input_ids=ids(), use_cache=False).last_hidden_state.dtype
            == torch.bfloat16
        )


def test_a_single_token_and_a_single_row_are_batches_too():
    model = pair("gemma3")
    for tokens in (ids(1, 1), ids(4, 1), ids(1, 30)):
        assert close(hidden(model.ours, input_ids=tokens), hidden(model.theirs, input_ids=tokens))
    assert isinstance(model.ours.get_base_model().model.layers, nn.ModuleList)
