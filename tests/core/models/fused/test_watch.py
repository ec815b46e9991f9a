"""A layer is read anew whenever anything that its description was read from has changed, and not otherwise."""

import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from core.models.fused.watch import Watch
from tests.core.models.fused.tiny import adapt, base, fused_copy, learn


def layer_of(family: str = "llama") -> tuple[Any, Any]:
    model = adapt(base(family, torch.float32)).train()
    return model, model.get_base_model().model.layers[1]


def set_data(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.clone()


def write(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(2)


def put(module: Any, name: str, value: object) -> None:
    setattr(module, name, value)


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "adapters are switched off": lambda model, layer: model.base_model.disable_adapter_layers(),
    "another adapter is there": lambda model, layer: model.add_adapter(
        "other", LoraConfig(r=2, target_modules=["q_proj"])
    ),
    "another adapter is active": lambda model, layer: put(
        layer.self_attn.q_proj, "_active_adapter", ["none"]
    ),
    "the active adapters are changed in place": lambda model, layer: (
        layer.self_attn.q_proj.merged_adapters.append("x")
    ),
    "an adapter is merged": lambda model, layer: layer.mlp.up_proj.merge(),
    "an adapter is scaled": lambda model, layer: layer.mlp.down_proj.scaling.update(default=3.0),
    "an adapter gets a bias": lambda model, layer: layer.mlp.down_proj.lora_bias.update(default=True),
    "an adapter's matrix is another": lambda model, layer: put(
        layer.mlp.up_proj.lora_A["default"], "weight", nn.Parameter(torch.zeros(4, 32))
    ),
    "dropout": lambda model, layer: put(layer.mlp.up_proj.lora_dropout, "default", nn.Dropout(0.5)),
    "the layer is evaluated": lambda model, layer: layer.eval(),
    "somebody listens": lambda model, layer: layer.mlp.register_forward_hook(lambda *seen: None),
    "somebody listens to gradients": lambda model, layer: layer.mlp.register_full_backward_hook(
        lambda *seen: None
    ),
    "a forward function is replaced": lambda model, layer: put(
        layer.mlp, "forward", types.MethodType(lambda self, x: x, layer.mlp)
    ),
    "a module is replaced": lambda model, layer: put(layer, "mlp", nn.Identity()),
    "a weight is replaced": lambda model, layer: put(
        layer.self_attn.o_proj.base_layer, "weight", nn.Parameter(torch.zeros(32, 32), requires_grad=False)
    ),
    "a weight lies elsewhere": lambda model, layer: set_data(layer.self_attn.o_proj.base_layer.weight),
    "a weight is written": lambda model, layer: write(layer.self_attn.o_proj.base_layer.weight),
    "a weight is trained": lambda model, layer: layer.self_attn.o_proj.base_layer.weight.requires_grad_(True),
    "a norm is trained": lambda model, layer: layer.input_layernorm.weight.requires_grad_(True),
    "a norm has another epsilon": lambda model, layer: put(layer.input_layernorm, "variance_epsilon", 1.0),
    "scores are scaled": lambda model, layer: put(layer.self_attn, "scaling", 1.0),
    "attention has dropout": lambda model, layer: put(layer.self_attn, "attention_dropout", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str):
    model, layer = layer_of()
    watch = Watch(layer)
    assert watch.holds()
    CHANGES[change](model, layer)
    assert not watch.holds()
    assert Watch(layer).holds()


def test_another_window_is_noticed():
    _, layer = layer_of("gemma3")
    watch = Watch(layer)
    layer.self_attn.sliding_window = 3
    assert not watch.holds()


def test_training_changes_nothing():
    model = fused_copy(adapt(base("llama", torch.float32)).train())
    before = model.state.sites()
    learn(model.ours)
    for each in model.ours.parameters():
        if each.requires_grad:
            write(each)
    after = model.state.sites()
    assert all(after[index] is before[index] for index in after)


def test_what_has_changed_is_read_anew():
    model = fused_copy(adapt(base("llama", torch.float32)).train())
    before = model.state.sites()
    model.ours.get_base_model().model.layers[1].mlp.down_proj.scaling["default"] = 3.0
    after = model.state.sites()
    assert after[0] is before[0] and after[1] is not before[1]
    assert after[1].down.projections[0].adapters[0].scale == 3.0


def test_nothing_holds_the_matrices_that_were_given_up():
    model = fused_copy(adapt(base("llama", torch.float32)).train())
    held = weakref.ref(model.state.sites()[0].qkv)
    assert held() is not None
    model.state.give_way()
    gc.collect()
    assert held() is None


def test_a_home_that_is_gone_is_not_read_from():
    model = fused_copy(adapt(base("llama", torch.float32)).train())
    assert model.state.sites()[1].down.home is not None
    del model.state.homes[1, "down"]
    assert model.state.sites()[1].down.home is None
