"""Which layers are fused: every kind of plain LoRA is, and what is not says so once and is still right."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn

from core.kernels.lora_linear import Group
from core.kernels.lora_linear.group import at_home
from core.models.fused.backbone import fuse
from core.models.fused.costs import FAMILIES as TYPES
from core.models.fused.sites import Home, Unsupported, addresses, projection_of, read_site
from core.models.fused.state import FusedNotice
from tests.core.models.fused.tiny import (
    ALL,
    FAMILIES,
    KINDS,
    POLICIES,
    Pair,
    adapt,
    base,
    error,
    fused_copy,
    hidden,
    ids,
    keep,
    learn,
    pair,
    same,
    stir,
)


@contextmanager
def notices() -> Iterator[list[str]]:
    """Collect what is said about layers that are not fused."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield told
    told += [str(each.message) for each in said if issubclass(each.category, FusedNotice)]


@contextmanager
def nothing_said() -> Iterator[None]:
    with notices() as told:
        yield
    assert told == []


def fused_layers(model: Pair) -> set[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FusedNotice)
        return set(model.state.sites())


# What is fused

VARIANTS = {
    "rslora": {"use_rslora": True, "r": 6},
    "rank 1": {"r": 1},
    "rank 3": {"r": 3},
    "rank 20": {"r": 20},
    "rank 128": {"r": 128, "lora_alpha": 128},
    "queries only": {"target_modules": ["q_proj"]},
    "values and down": {"target_modules": ["v_proj", "down_proj"]},
    "one layer": {"layers_to_transform": [1]},
    "ranks of their own": {
        "rank_pattern": {"q_proj": 2, "v_proj": 31, "layers.1.mlp.up_proj": 9, "layers.2.self_attn.o_proj": 70},
        "alpha_pattern": {"v_proj": 5, "gate_proj": 40},
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_every_kind_of_plain_lora_is_fused_and_gives_pefts_gradients(name: str, variant: str):
    model = pair(name, **VARIANTS[variant])
    with nothing_said():
        for label in ("full", "least"):
            keep(model.state, POLICIES[label])
            same(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_fused_whole(name: str):
    model = pair(name)
    with nothing_said():
        assert set(model.state.sites()) == {0, 1, 2}


def two_adapters(name: str = "qwen3") -> PeftModel:
    model = adapt(base(name), r=3)
    model.add_adapter(
        "second", LoraConfig(r=5, lora_alpha=7, target_modules=["q_proj", "o_proj", "down_proj"])
    )
    stir(model, seed=8)
    return model


@pytest.mark.parametrize("active", [["default"], ["second"], ["default", "second"], ["second", "default"]])
def test_the_adapters_that_are_active_are_those_that_count(active: list[str]):
    model = two_adapters()
    model.base_model.set_adapter(active)
    with nothing_said():
        same(fused_copy(model))


def test_adapters_may_be_switched_between_forward_and_backward():
    theirs, ours, state = fused_copy(two_adapters("qwen2"))
    keep(state, POLICIES["least"])
    found = []
    for model in (theirs, ours):
        model.base_model.set_adapter(["default", "second"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        tokens, total = ids(), 0
        for name in ("default", "second"):
            model.base_model.set_adapter([name])
            for label, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in label)
            total = total + model(input_ids=tokens, labels=tokens, use_cache=False).loss
        with model.disable_adapter(), torch.no_grad():
            plain = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        (total - plain).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert error(found[1], found[0]) < 3e-5


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_that_is_switched_off_leaves_the_base(name: str):
    model = pair(name)
    with nothing_said(), model.ours.disable_adapter():
        found = hidden(model.ours, input_ids=ids())
    assert torch.allclose(found, hidden(base(name), input_ids=ids()), rtol=1e-5, atol=1e-4)
    same(model)


@pytest.mark.parametrize("safely", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_merged_adapter_counts_once_and_comes_out_again(name: str, safely: bool):
    model = pair(name)
    expected = hidden(model.theirs, input_ids=ids())
    with nothing_said():
        model.ours.merge_adapter(safe_merge=safely)
        assert torch.allclose(hidden(model.ours, input_ids=ids()), expected, rtol=1e-5, atol=1e-4)
        model.ours.unmerge_adapter()
        assert torch.allclose(hidden(model.ours, input_ids=ids()), expected, rtol=1e-5, atol=1e-4)
        same(model)


def test_an_adapter_upon_one_that_was_merged_for_good_sees_the_merged_weights():
    model = pair("llama")
    merged = {}
    for label, each in (("theirs", model.theirs), ("ours", model.ours)):
        plain = each.merge_and_unload(safe_merge=True)
        merged[label] = adapt(plain, seed=12)
    found, expected = (hidden(merged[label], input_ids=ids()) for label in ("ours", "theirs"))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_weights_that_are_replaced_after_fusing_are_the_ones_that_count():
    model = pair("qwen3")
    for each in (model.theirs, model.ours):
        for layer in each.get_base_model().model.layers:
            layer.mlp.down_proj.get_base_layer().weight.data = (
                layer.mlp.down_proj.get_base_layer().weight.data.clone().mul_(1.5)
            )
    same(model)


def test_weights_that_are_loaded_after_fusing_are_the_ones_that_count():
    model = pair("llama")
    other = {key: value * 0.7 if "proj" in key else value for key, value in model.theirs.state_dict().items()}
    for each in (model.theirs, model.ours):
        each.load_state_dict(other)
    same(model)


@pytest.mark.parametrize("is_inference", [False, True])
def test_expanded_4_bit_weights_are_forgotten_when_packed_ones_are_written_in_place(is_inference: bool):
    from bitsandbytes.nn import Linear4bit

    with torch.inference_mode(is_inference):
        linear = Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
        linear.weight.quant_state.dtype = torch.float32
        group = Group([projection_of(linear, False)], torch.float32)
        home = Home(at_home(group.projections, torch.float32), group.shape.ranks, addresses(group))
        assert home.fits(group)
        linear.load_state_dict({"weight": linear.weight.detach().flip(0)}, strict=False)
    again = Group([projection_of(linear, False)], torch.float32)
    # Tensors made in an inference do not count, and cannot be trained upon.
    assert home.fits(again) is is_inference
    assert Home(home.matrix, home.ranks, addresses(again)).fits(again)


def test_a_fresh_adapter_gets_a_gradient_for_b_alone():
    model = pair("qwen3")
    for each in (model.theirs, model.ours):
        for name, parameter in each.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    found, expected = learn(model.ours)[1], learn(model.theirs)[1]
    for name, one in found.items():
        assert (float(one.abs().max()) == 0) == ("lora_A" in name)
        assert float((one - expected[name]).norm()) <= 3e-5 * float(expected[name].norm())


# What is not


def _hook(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].mlp.down_proj.register_forward_hook(lambda *args: None)


def _before(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].self_attn.register_forward_pre_hook(lambda *args: None)


def _behind(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].mlp.register_full_backward_hook(lambda *args: None)


def _outside(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].register_forward_hook(lambda module, args, out: out * 1.5)


def _norm(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].input_layernorm.weight.requires_grad_()


def _weight(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.requires_grad_()


def _int8(model: PeftModel) -> None:
    class Linear8bitLt(nn.Linear):
        """What bitsandbytes calls its layers of 8 bits."""

    old = model.get_base_model().model.layers[1].self_attn.o_proj.base_layer
    new = Linear8bitLt(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)
    new.weight = old.weight
    model.get_base_model().model.layers[1].self_attn.o_proj.base_layer = new


def _dropout_in_attention(model: PeftModel) -> None:
    model.get_base_model().model.layers[1].self_attn.attention_dropout = 1e-12


EDITS: dict[str, Callable[[PeftModel], None]] = {
    "a hook": _hook, "a hook before": _before, "a hook behind": _behind, "a hook on the layer": _outside,
    "a trained norm": _norm, "a trained weight": _weight, "8 bits": _int8, "attention dropout": _dropout_in_attention,
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_layer_that_cannot_be_fused_runs_its_own_code_and_says_so_once(edit: str):
    theirs = adapt(base("gemma3")).train()
    EDITS[edit](theirs)
    ours = copy.deepcopy(theirs)
    with notices() as told:
        state = fuse(ours)
        model = Pair(theirs, ours, state)
        for _ in range(2):
            same(model)
    assert len(told) == 1, told
    assert told[0].startswith("some layers run by the model's own code: ")
    assert fused_layers(model) == {0, 2}


def test_a_hook_that_comes_later_is_heard_and_one_that_goes_is_forgotten():
    model = pair("qwen3")
    heard = []
    with nothing_said():
        same(model)
    layer = model.ours.get_base_model().model.layers[1]
    handle = layer.register_forward_pre_hook(lambda module, args: heard.append(args[0].clone()))
    with notices() as told:
        same(model)
    assert len(told) == 1
    handle.remove()
    assert fused_layers(model) == {0, 1, 2}
    found = []
    layer = model.theirs.get_base_model().model.layers[1]
    layer.register_forward_pre_hook(lambda module, args: found.append(args[0].clone()))
    learn(model.theirs)
    assert torch.allclose(heard[0], found[0], rtol=1e-5, atol=1e-5)


WHOLE = {
    "dora": ({"use_dora": True}, {0, 1, 2}),
    "a trained bias": ({"bias": "lora_only"}, {0, 1, 2}),
    "a bias of the adapter": ({"lora_bias": True}, {0, 1, 2}),
    "a norm beside": ({"modules_to_save": ["input_layernorm"]}, {0, 1, 2}),
    "a projection beside": (
        {"modules_to_save": ["down_proj"], "target_modules": ["q_proj", "v_proj"]},
        {0, 1, 2},
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_other_kinds_of_adapters_run_by_pefts_code_and_say_so_once(kind: str):
    model = adapt(base("qwen2"), **WHOLE[kind][0])
    with notices() as told:
        both = fused_copy(model)
        for _ in range(2):
            same(both)
    assert len(told) == 1, told
    assert fused_layers(both) == set()


def test_an_adapter_with_dropout_trains_by_pefts_code_and_is_looked_at_by_ours():
    model = pair("llama", lora_dropout=0.5)
    model.theirs.train()
    model.ours.train()
    with notices() as told:
        found = []
        for each in (model.theirs, model.ours):
            torch.manual_seed(1)
            found.append(learn(each))
    assert len(told) == 1
    assert "dropout" in told[0]
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert error(found[1][1], found[0][1]) < 1e-6
    model.theirs.eval()
    model.ours.eval()
    with nothing_said():
        same(model)


def test_the_micro_batch_is_chosen_for_layers_as_they_will_be_in_training(monkeypatch: pytest.MonkeyPatch):
    """It is chosen when a loaded model is still in evaluation."""
    state = pair("llama", lora_dropout=0.05).state
    assert not state.layers.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FusedNotice)
        assert set(state.sites()) == set(state.sites(is_training=False)) == {0, 1, 2}
        assert state.sites(is_training=True) == {}
        state.layers.train()
        assert state.sites() == {}
        assert set(state.sites(is_training=False)) == {0, 1, 2}
        state.layers.eval()
        state.device = torch.device("cuda")
        assert state.best_micro_batch(16, 128, 4) == 4
    attention = pair("llama").state
    attention.layers[1].self_attn.attention_dropout = 0.1
    with pytest.warns(FusedNotice, match="dropout in its attention"):
        assert set(attention.sites(is_training=True)) == {0, 2}


def test_an_adapter_of_another_family_runs_by_its_own_code():
    from peft import LoHaConfig, get_peft_model

    theirs = get_peft_model(base("qwen3"), LoHaConfig(r=2, target_modules=["q_proj"]))
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "hada" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with notices() as told:
        same(fused_copy(theirs))
    assert len(told) == 1


def test_a_layer_among_the_fused_ones_that_is_not_is_computed_again_when_layers_are():
    theirs = adapt(base("gemma3")).train()
    _norm(theirs)
    ours = copy.deepcopy(theirs)
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FusedNotice)
        state = fuse(ours)
        layer = ours.get_base_model().model.layers[1]
        layer.register_forward_pre_hook(lambda module, args: runs.append(1))
        same(Pair(theirs, ours, state))
        assert len(runs) == 2
        state.is_checkpointed = False
        same(Pair(theirs, ours, state))
        assert len(runs) == 3


# Reading


def read(model, index: int = 0):
    backbone = model.get_base_model().model
    return read_site(backbone.layers[index], backbone.config, index, torch.float64, {})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"hidden_act": "relu"}, "its activation is relu"), ({"hidden_act": "tanh"}, "its activation is tanh")],
)
def test_an_activation_that_is_not_known_is_refused(settings, reason: str):
    with pytest.raises(Unsupported, match=reason):
        read(adapt(base("llama", **settings)))


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new"])
def test_every_known_activation_is_the_models_own(act: str):
    with nothing_said():
        same(pair("llama", config={"hidden_act": act}))


def test_a_site_is_what_the_layer_is():
    site = read(adapt(base("gemma3"), r=4), 2)
    assert (site.hidden, site.inner, site.window, site.rope) == (32, 48, None, "full_attention")
    assert site.heads == (4, 2, 16)
    assert site.scale == 20**-0.5
    assert (site.before_mlp.offset, site.activation) == (1.0, "gelu_tanh")
    assert len(site.parameters) == 2 * 7
    assert [group.shape.rank for group in site[:4]] == [12, 4, 8, 4]
    assert read(adapt(base("gemma3")), 0).window == 5
    assert read(adapt(base("mistral"))).window == 5
    assert read(adapt(base("mistral", sliding_window=None))).window is None
    assert [read(adapt(base("qwen2-window")), index).window for index in range(3)] == [5, 5, None]


def test_a_linear_layer_of_a_kind_that_is_not_known_is_refused():
    with pytest.raises(Unsupported, match="it holds weights in a Bilinear"):
        projection_of(nn.Bilinear(2, 2, 2), is_training=True)


def test_the_model_types_are_those_that_are_tested():
    assert {settings["model_type"] for settings in FAMILIES.values()} == TYPES
    assert len(ALL) == 7
