"""Loading: what is accepted, what is refused, and with which message."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from core.errors import ModelError
from core.models.config import ModelConfig
from core.models.loading import load_folder, load_model, load_tokenizer, pick_dtype


def test_a_local_folder_loads_in_float32_on_a_processor(base_folder: Path):
    model = load_model(ModelConfig(name=str(base_folder), load_in_4bit=False))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_4_bit_is_for_training_only_and_close_to_the_original(base_folder: Path):
    config = ModelConfig(name=str(base_folder))
    trained = load_model(config, trainable=True)
    assert trained.is_loaded_in_4bit
    kinds = {type(m).__name__ for m in trained.modules()}
    assert "Linear4bit" in kinds
    assert not getattr(load_model(config), "is_loaded_in_4bit", False)
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        full, small = load_folder(base_folder)(ids).logits, trained(ids).logits.float()
    assert torch.corrcoef(torch.stack([full.flatten(), small.flatten()]))[0, 1] > 0.97


def test_pickled_weights_are_refused(base_folder: Path, tmp_path: Path):
    folder = tmp_path / "pickled"
    shutil.copytree(base_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        load_model(ModelConfig(name=str(folder), load_in_4bit=False))


def test_a_model_that_needs_its_own_code_is_refused(base_folder: Path, tmp_path: Path):
    folder = tmp_path / "custom"
    shutil.copytree(base_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ModelError, match="remote code"):
        load_model(ModelConfig(name=str(folder), load_in_4bit=False))


def test_a_missing_model_names_itself_and_the_fix(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere.*\n.*Fix:.*config.json"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_on_a_processor(name: str | None, dtype: torch.dtype):
    assert pick_dtype(name, torch.device("cpu")) == dtype
