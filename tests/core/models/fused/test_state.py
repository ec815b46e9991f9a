"""What fusing leaves as it was, what unloading restores, and what the handle answers."""

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from core.kernels.linear_cross_entropy.reference import tiles
from core.kernels.lora_linear.group import SPARE
from core.models.fused.backbone import fuse
from core.models.fused.costs import TILE_NUMBERS, floor_bytes, head_bytes, tile_bytes
from core.models.fused.policy import FULL
from core.models.fused.state import FusedNotice, FusedState, backbone_of, fused_state, obstacle
from core.models.fused.store import HostMemory
from tests.core.models.fused.tiny import (
    FAMILIES,
    KINDS,
    POLICIES,
    adapt,
    base,
    hidden,
    ids,
    keep,
    learn,
    pair,
    same,
)

DTYPES = [torch.float32, torch.bfloat16]


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# Nothing changes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_state_dict_and_parameters_stay_what_they_were(name: str, dtype: torch.dtype):
    model = adapt(base(name, dtype))
    before = tensors(model)
    wanted = [(name, p.requires_grad, p.shape, p.dtype) for name, p in model.named_parameters()]
    held = {name: id(p) for name, p in model.named_parameters()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    state = fuse(model)
    assert state is not None
    assert len(state.homes) == 4 * 3
    for _ in range(2):
        assert equal(tensors(model), before)
        learn(model)
    assert [(name, p.requires_grad, p.shape, p.dtype) for name, p in model.named_parameters()] == wanted
    assert {name: id(p) for name, p in model.named_parameters()} == held
    assert [(name, type(module)) for name, module in model.named_modules()] == modules


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_unloading_restores_the_forward_function_and_weights_of_ones_own(name: str, dtype: torch.dtype):
    model = adapt(base(name, dtype))
    before, expected = tensors(model), hidden(model, input_ids=ids())
    state = fuse(model)
    learn(model)
    state.unload()
    assert fused_state(model) is None
    assert "forward" not in vars(backbone_of(model))
    assert equal(tensors(model), before)
    assert torch.equal(hidden(model, input_ids=ids()), expected)
    weights = [p for name, p in model.named_parameters() if "proj" in name and "lora" not in name]
    assert all(p.is_contiguous() for p in weights)
    assert len({p.untyped_storage().data_ptr() for p in weights}) == len(weights)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in weights)
    assert (state.homes, state.scratch.nbytes, state.host_bytes) == ({}, 0, 0)
    assert fuse(model) is not None
    learn(model)


def test_settled_weights_are_views_that_cost_no_second_copy():
    model = adapt(base("llama", torch.float32))
    state = fuse(model)
    layer = backbone_of(model).layers[0]
    gate, up = (getattr(layer.mlp, name).base_layer.weight for name in ("gate_proj", "up_proj"))
    home = state.homes[0, "gate_up"].matrix
    assert gate.data_ptr() == home.data_ptr()
    assert up.untyped_storage().data_ptr() == home.untyped_storage().data_ptr()
    assert home.shape == (48 * 2 + SPARE, 32 + SPARE)
    learn(model)
    assert state.scratch.nbytes == 0


def test_a_function_that_already_stood_in_is_put_back():
    model = adapt(base("llama"))
    backbone = backbone_of(model)
    calls, own = [], backbone.forward
    backbone.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    patched = backbone.forward
    state = fuse(model)
    hidden(model, input_ids=ids())
    assert calls == []
    hidden(model, input_ids=ids(), use_cache=True)
    assert calls == [1]
    state.unload()
    assert backbone.forward is patched


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_adapter_is_saved_from_a_fused_model_and_the_whole_from_an_unloaded_one(name: str, tmp_path):
    model = pair(name, torch.float32)
    for label, each in (("theirs", model.theirs), ("ours", model.ours)):
        each.save_pretrained(tmp_path / label)
    assert equal(*(load_file(tmp_path / label / "adapter_model.safetensors") for label in ("theirs", "ours")))
    model.state.unload()
    for label, each in (("theirs", model.theirs), ("ours", model.ours)):
        each.merge_and_unload().save_pretrained(tmp_path / "whole" / label)
    assert equal(
        *(load_file(tmp_path / "whole" / label / "model.safetensors") for label in ("theirs", "ours"))
    )


@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_tied_and_untied_embeddings_survive_training_saving_and_loading(name: str, tmp_path):
    model = pair(name, torch.float32)
    inner = model.ours.get_base_model()
    is_tied = inner.lm_head.weight is inner.model.embed_tokens.weight
    assert is_tied == (name == "gemma3")
    inner.model.embed_tokens.weight.requires_grad_()
    trained = [p for p in model.ours.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        learn(model.ours)
        optimizer.step()
    expected = hidden(model.ours, input_ids=ids())
    model.ours.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model.state.unload()
    model.ours.unload()
    inner.save_pretrained(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == is_tied
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.allclose(hidden(loaded, input_ids=ids()), expected, rtol=1e-4, atol=1e-3)


# Turning


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", [9, 200])
def test_angles_are_the_models_own(name: str, positions: int):
    """A window beyond the trained positions changes nothing either."""
    model = adapt(base(name, torch.float32, max_position_embeddings=100))
    state, backbone = fuse(model), backbone_of(model)
    places, like = torch.arange(positions)[None], torch.empty(0)
    for key in {site.rope for site in state.sites().values()}:
        cos, sin = state.tables(key, positions)
        expected = backbone.rotary_emb(like, places, key) if key else backbone.rotary_emb(like, places)
        assert torch.equal(cos, expected[0][0])
        assert torch.equal(sin, expected[1][0])
        assert cos.dtype == torch.float32


def test_angles_do_not_lose_precision_with_the_models():
    model = adapt(base("llama3", torch.bfloat16))
    found = fuse(model).tables("", 200)
    exact = fuse(adapt(base("llama3", torch.float32))).tables("", 200)
    assert torch.equal(found.cos, exact.cos)


def test_a_thousand_lengths_need_few_tables():
    state = pair("gemma3").state
    for length in range(1, 60):
        state.tables("full_attention", length)
    assert len(state.angles) <= 9


@pytest.mark.parametrize("kind", ["dynamic"])
def test_angles_that_follow_the_length_follow_it(kind: str):
    turned = {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}}
    model = pair("llama", config={**turned, "max_position_embeddings": 16})
    for length in (12, 40, 12, 60):
        same(model, tokens=ids(1, length))


# Questions


def test_without_a_gpu_there_is_nothing_to_plan():
    state = pair("llama").state
    assert state.policies(state.sites(), 64, 64) == dict.fromkeys(range(3), FULL)
    assert state.planned is None
    assert state.give_way() is False
    assert state.best_micro_batch(16, 128, 4) == 4


def on_a_gpu(state: FusedState, room: int) -> FusedState:
    """Ask a state what it would do on a GPU with so much room."""
    state.device = torch.device("cuda")
    state.room, state.host_room = lambda: room, lambda: 0
    return state


def test_a_small_model_is_not_refused_the_room_of_a_large_vocabulary():
    state = on_a_gpu(pair("llama", torch.bfloat16).state, 256 << 20)
    assert state.best_micro_batch(8, 128, 8) == 8


def test_a_plan_leaves_the_head_its_tile_of_logits():
    state = on_a_gpu(pair("llama", torch.bfloat16, {"vocab_size": 50_000}).state, 1 << 30)
    shape = state.shapes(sites := state.sites())[0]
    assert head_bytes(shape, 512, 50_000) > floor_bytes(shape, 512)
    left = state._room(sites, 512) + state._to_come(sites)
    assert left == (1 << 30) - head_bytes(shape, 512, 50_000)


def test_what_the_first_step_takes_is_set_aside_until_it_is_done():
    model = pair("llama")
    state, sites = model.state, model.state.sites()
    trained = sum(p.numel() for p in model.ours.parameters() if p.requires_grad)
    counted = []
    for has_gradients in (False, True, True, False, True):
        learn(model.ours) if has_gradients else model.ours.zero_grad()
        state.first_step.look(sites[0].parameters)
        counted.append(state._to_come(sites) // trained)
    # Gradients and the optimizer's two states; its states alone; nothing.
    assert counted == [12, 8, 8, 0, 0]


@pytest.mark.parametrize("vocabulary", [97, 1000, 128_256, 262_144, 1 << 29])
@pytest.mark.parametrize("tokens", [1, 700, 4096])
def test_a_tile_of_logits_is_counted_as_the_head_cuts_it(vocabulary: int, tokens: int):
    rows = max(stop - start for start, stop in tiles(tokens, vocabulary, TILE_NUMBERS))
    # Rows begin on 128 bytes.
    assert tile_bytes(tokens, vocabulary, 2) == 2 * rows * (vocabulary + -vocabulary % 64)


def test_the_planner_is_told_the_shape_there_is():
    state = pair("gemma3", torch.bfloat16).state
    first, _, last = state.shapes(state.sites())
    assert first == (32, 64, 32, 4, 16, 48, True, 2, 5)
    assert last.window is None


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_handle_is_found_above_and_below_the_adapter(name: str):
    model = pair(name)
    inner = model.ours.get_base_model()
    assert fused_state(model.ours) is fused_state(inner) is fused_state(inner.model) is model.state
    assert fused_state(model.theirs) is None
    assert backbone_of(model.ours) is inner.model


@pytest.mark.parametrize(
    ("kind", "words"),
    [("gpt2", "models of type gpt2 have no fused layers"), ("gemma2", "gemma2"), (None, "of type None")],
)
def test_another_family_is_left_alone_and_it_is_said_why(kind: str | None, words: str):
    if kind is None:
        model = nn.Linear(2, 2)
    else:
        small = (
            {"n_embd": 8, "n_layer": 1, "n_head": 2}
            if kind == "gpt2"
            else {"hidden_size": 8, "num_hidden_layers": 1}
        )
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=9, **small))
    assert words in str(obstacle(model))
    assert fuse(model) is None
    assert fused_state(model) is None


def test_attention_that_looks_ahead_is_left_alone():
    model = base("gemma3", use_bidirectional_attention=True)
    assert obstacle(model) == "its attention looks ahead"
    assert fuse(model) is None


def test_a_notice_is_said_once_each():
    state = pair("llama").state
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for notice in ("one", "two", "one"):
            state.tell(notice)
    assert [(str(each.message), each.category) for each in said] == [
        ("one", FusedNotice),
        ("two", FusedNotice),
    ]


def test_pinned_memory_is_not_shared_with_a_copy():
    import copy

    state = pair("llama").state
    state.host = HostMemory(lambda buffer: True)
    state.host.give(state.host.take(16))
    other = copy.deepcopy(state)
    assert isinstance(other, FusedState)
    assert (other.host.nbytes, other.host.free) == (0, {})


def test_what_layers_keep_can_be_changed_between_steps():
    model = pair("qwen3")
    for policy in POLICIES.values():
        keep(model.state, policy)
        same(model)
