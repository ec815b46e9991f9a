"""An adapter knows the weights it was trained on; another base of the same shapes is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.artifacts import path_digest
from core.errors import ModelError
from core.models.adapter_set import AdapterSet
from core.models.base_identity import FILE, check_identity, identify
from core.models.config import ModelConfig
from core.models.loading import load_folder, load_model
from core.models.merging import fold
from tests.core.models.test_merging import IDS, logits, trained


@pytest.fixture(scope="module")
def adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base_folder, tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture
def lookalike(base_folder: Path, tmp_path: Path) -> Path:
    """The same shapes, with one number of one tensor changed."""
    folder = shutil.copytree(base_folder, tmp_path / "lookalike")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_base_is_written_beside_the_adapter_and_is_part_of_its_digest(base_folder: Path, adapter: Path):
    stated = json.loads((adapter / FILE).read_text())
    assert stated["name"] == str(base_folder)
    assert stated["digest"] == identify(load_folder(base_folder)).digest
    before = path_digest(adapter)
    changed = shutil.copytree(adapter, adapter.parent / "changed")
    (changed / FILE).write_text((adapter / FILE).read_text().replace("sha256:", "sha256: "))
    assert path_digest(changed) != before


def test_another_base_of_the_same_shapes_is_refused_with_both_names(
    base_folder: Path, adapter: Path, lookalike: Path
):
    base = load_folder(lookalike)
    for attempt in (lambda: AdapterSet.load(base, {"x": adapter}), lambda: fold(base, adapter, IDS)):
        with pytest.raises(ModelError) as caught:
            attempt()
        assert str(base_folder) in caught.value.what and str(lookalike) in caught.value.what
        assert "trained on" in caught.value.what and caught.value.where == str(adapter)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_an_adapter_that_says_nothing_is_checked_by_its_shapes_alone(
    adapter: Path, lookalike: Path, tmp_path: Path
):
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / FILE).unlink()
    together = AdapterSet.load(load_folder(lookalike), {"x": foreign})
    assert not torch.equal(logits(together.use("x")).clone(), logits(together.use(None)))


def test_moving_the_base_or_editing_what_is_not_its_weights_changes_nothing(
    base_folder: Path, adapter: Path, tmp_path: Path
):
    moved = shutil.copytree(base_folder, tmp_path / "moved")
    (moved / "README.md").write_text("Words.")
    (moved / "model.safetensors").rename(moved / "model-00001-of-00001.safetensors")
    names = load_file(moved / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (moved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}))
    AdapterSet.load(load_folder(moved), {"x": adapter})


def test_a_base_held_in_4_bits_is_the_base_it_was_read_from(
    base_folder: Path, adapter: Path, lookalike: Path
):
    AdapterSet.load(load_model(ModelConfig(name=str(base_folder)), trainable=True), {"x": adapter})
    with pytest.raises(ModelError, match="was trained on"):
        AdapterSet.load(load_model(ModelConfig(name=str(lookalike)), trainable=True), {"x": adapter})


def test_every_file_of_a_base_in_shards_counts(base_folder: Path, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(
        tmp_path / "parts", max_shard_size="40KB"
    )
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 1
    before = identify(load_folder(tmp_path / "parts"))
    for shard in shards:
        weights = load_file(shard)
        first = sorted(weights)[0]
        save_file(weights | {first: weights[first] + 1}, shard, {"format": "pt"})
        assert identify(load_folder(tmp_path / "parts")).digest != before.digest
        save_file(weights, shard, {"format": "pt"})


def test_peft_loads_an_adapter_with_its_base_beside_it(base_folder: Path, adapter: Path, tmp_path: Path):
    bare = shutil.copytree(adapter, tmp_path / "bare")
    (bare / FILE).unlink()
    one, other = (PeftModel.from_pretrained(load_folder(base_folder), f) for f in (adapter, bare))
    assert torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"name": "x", "digest": "y", "more": 1}'])
def test_a_damaged_statement_is_one_message(base_folder: Path, adapter: Path, tmp_path: Path, text: str):
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / FILE).write_text(text)
    with pytest.raises(ModelError, match=r"base\.json cannot be read"):
        AdapterSet.load(load_folder(base_folder), {"x": damaged})


def test_a_model_that_was_never_in_files_has_no_identity_and_refuses_nothing(
    model, adapter: Path, tmp_path: Path
):
    assert identify(model) is None
    check_identity(adapter, model)
    assert not (trained_in_memory(model, tmp_path / "lora") / FILE).exists()


def trained_in_memory(model, folder: Path) -> Path:
    from core.models.adapters import attach
    from core.models.config import LoraConfig
    from core.training.sft import save_adapter

    save_adapter(attach(model, LoraConfig(r=4)), folder)
    return folder


def test_a_model_of_the_hub_is_named_by_its_id_and_commit(base_folder: Path, tmp_path: Path):
    place = tmp_path / "models--owner--some-model" / "snapshots" / ("ab12cd3" + "4" * 33)
    shutil.copytree(base_folder, place)
    assert identify(load_folder(place)).name == "owner/some-model@ab12cd3"
