"""A fused model saved whole by Transformers, and read again; its weights stay where products read them."""

import copy
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from core.models.fused import sites
from core.models.fused.backbone import fuse
from core.models.fused.state import backbone_of, fused_state
from tests.core.models.fused.tiny import adapt, base, hidden, ids, learn, pair, same

NAMES = ["llama3", "qwen2", "gemma3"]


def read_again(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="auto").eval()


def are_at_home(state) -> bool:
    """Whether every weight of every home is a view of it."""
    return all(
        sites.base_of(state.layers[index].get_submodule(name)).weight.untyped_storage().data_ptr()
        == home.matrix.untyped_storage().data_ptr()
        for (index, group), home in state.homes.items()
        for name in sites.GROUPS[group]
    )


def files(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_merged_model_that_is_still_fused_is_saved_as_one_that_never_was(name: str, dtype, tmp_path: Path):
    model = pair(name, dtype)
    theirs, ours = (each.merge_and_unload() for each in (model.theirs, model.ours))
    for label, each in (("theirs", theirs), ("ours", ours)):
        each.save_pretrained(tmp_path / label)
    assert fused_state(ours) is model.state
    expected, found = files(tmp_path / "theirs"), files(tmp_path / "ours")
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (tmp_path / "ours/model.safetensors").stat().st_size == (
        tmp_path / "theirs/model.safetensors"
    ).stat().st_size
    again = read_again(tmp_path / "ours")
    assert torch.equal(hidden(again, input_ids=ids()), hidden(theirs, input_ids=ids()))


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_base_is_saved_and_read_and_its_weights_stay_views(name: str, tmp_path: Path):
    model = pair(name, torch.float32)
    before = {key: value.clone() for key, value in model.ours.state_dict().items()}
    held, keys = {n: id(p) for n, p in model.ours.named_parameters()}, list(model.state.homes)
    with model.ours.disable_adapter():
        expected = hidden(model.ours, input_ids=ids())
    scratch = model.state.scratch.nbytes
    whole = model.ours.get_base_model()
    whole.save_pretrained(tmp_path / "with adapters")
    assert sum("lora_" in key for key in files(tmp_path / "with adapters")) == 2 * 7 * 3
    assert list(model.state.homes) == keys and len(keys) == 12
    assert are_at_home(model.state)
    assert {n: id(p) for n, p in model.ours.named_parameters()} == held
    after = model.ours.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    same(model)
    assert model.state.scratch.nbytes == scratch
    plain = model.ours.unload()
    plain.save_pretrained(tmp_path / "base")
    found = hidden(read_again(tmp_path / "base"), input_ids=ids())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert are_at_home(model.state)


def test_the_backbone_alone_and_a_model_without_adapters_are_saved_too(tmp_path: Path):
    model = base("qwen2", torch.float32).requires_grad_(False)
    state = fuse(model)
    assert state.homes
    model.model.save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(
        hidden(read_again(tmp_path / "whole"), input_ids=ids()),
        hidden(base("qwen2", torch.float32), input_ids=ids()),
    )
    read = AutoModel.from_pretrained(tmp_path / "backbone").state_dict()
    assert all(torch.equal(read[key], value) for key, value in model.model.state_dict().items())


def test_weights_are_views_again_when_saving_fails(tmp_path: Path):
    model = pair("llama", torch.float32)
    with pytest.raises(TypeError):
        model.ours.get_base_model().save_pretrained()
    assert are_at_home(model.state) and len(model.state.homes) == 12


def test_a_model_saved_in_an_inference_still_trains(tmp_path: Path):
    model = pair("qwen3", torch.float32)
    with torch.inference_mode():
        model.ours.get_base_model().save_pretrained(tmp_path)
    same(model)


def test_a_copy_saves_itself(tmp_path: Path):
    model = pair("llama", torch.float32)
    other = copy.deepcopy(model.ours)
    with torch.no_grad():
        backbone_of(other).layers[0].mlp.up_proj.base_layer.weight.mul_(2)
    plain = other.unload()
    plain.save_pretrained(tmp_path / "other")
    fused_state(plain).unload()
    assert "save_pretrained" not in vars(plain)
    assert "save_pretrained" in vars(model.ours.get_base_model())
    model.ours.unload().save_pretrained(tmp_path / "ours")
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(files(tmp_path / "other")[key], 2 * files(tmp_path / "ours")[key])


def test_unloading_takes_the_stand_in_away_and_one_of_the_models_own_is_left():
    plain = base("llama", torch.float32)
    state = fuse(plain)
    assert "save_pretrained" in vars(plain)
    state.unload()
    assert "save_pretrained" not in vars(plain) | vars(plain.model)
    plain.save_pretrained = own = lambda folder: folder
    fuse(adapt(plain)).unload()
    assert plain.save_pretrained is own


def test_extended_matrices_go_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """Else the whole base is there twice."""
    state, alive, real = pair("llama", torch.float32).state, [], sites.base_of
    matrices = [weakref.ref(home.matrix) for home in state.homes.values()]

    def counting(module: nn.Module) -> nn.Module:
        alive.append(sum(each() is not None for each in matrices))
        return real(module)

    monkeypatch.setattr(sites, "base_of", counting)
    left = sites.move_out(state.layers, state.homes)
    assert alive == [12 - 4 * index - n for index in range(3) for n in (0, 0, 0, 1, 2, 2, 3)]
    assert state.homes == {}
    assert all(home.matrix.is_meta for home in left.values())


def test_matrices_that_weights_are_moved_out_of_are_free_meanwhile():
    """Else a model that is saved would take its memory twice."""
    model = pair("llama", torch.float32)
    learn(model.ours)
    held = [weakref.ref(home.matrix) for home in model.state.homes.values()]
    assert held and all(each() is not None for each in held)
    with model.state.moved_out():
        assert all(each() is None for each in held)
    held = [weakref.ref(home.matrix) for home in model.state.homes.values()]
    learn(model.ours)
    model.state.unload()
    assert all(each() is None for each in held)
