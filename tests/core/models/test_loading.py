"""Loading: what is accepted, what is refused, and with which message."""

import json
import shutil
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.errors import ModelError, ResourceError
from core.models.config import ModelConfig
from core.models.failures import clear_messages
from core.models.loading import (
    load_folder,
    load_model,
    load_tokenizer,
    local_snapshot,
    pick_dtype,
    read_hf_config,
)


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
    with pytest.raises(ModelError, match=r"nowhere: there is no such folder\n.*Fix:.*config.json"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_on_a_processor(name: str | None, dtype: torch.dtype):
    assert pick_dtype(name, torch.device("cpu")) == dtype


# The Hub


def answer(kind: type[Exception], status: int = 401) -> Exception:
    """Make the error that the Hub's client raises for a response."""
    if kind in (OfflineModeIsEnabled, LocalEntryNotFoundError):
        return kind("first\nsecond")
    request = httpx.Request("GET", "https://huggingface.co/api/models/someone/model")
    return kind("first\nsecond", response=httpx.Response(status, request=request))


HUB = [
    (answer(GatedRepoError), r"gated(.|\n)*huggingface\.co/someone/model, then: hf auth login"),
    (answer(RepositoryNotFoundError), r"no such model, or it is private(.|\n)*hf auth login"),
    (answer(RevisionNotFoundError, 404), r"no such revision(.|\n)*model\.revision"),
    (answer(OfflineModeIsEnabled), r"HF_HUB_OFFLINE forbids(.|\n)*hf download someone/model"),
    (answer(LocalEntryNotFoundError), r"not in the cache, and the Hub cannot be reached"),
    (answer(HfHubHTTPError, 403), "refuses access"),
    (answer(HfHubHTTPError, 500), "did not give the model: first"),
]


@pytest.mark.parametrize(
    ("error", "words"), HUB, ids=[type(e).__name__ + str(i) for i, (e, _) in enumerate(HUB)]
)
def test_what_the_hub_refuses_is_one_message_with_its_fix(monkeypatch, error: Exception, words: str):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(ModelConfig(name="someone/model"), trainable=True)
    assert caught.value.where == "someone/model"
    assert "second" not in str(caught.value)


@pytest.fixture
def cached(base_folder: Path, tmp_path: Path, monkeypatch) -> str:
    """Lay the tiny model into an empty Hub cache, as two revisions, and go offline."""
    for module in (constants, huggingface_hub.file_download, huggingface_hub._snapshot_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "hub/models--someone--model"
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / name).write_text(commit)
        shutil.copytree(base_folder, home / "snapshots" / commit)
    changed = json.loads((home / "snapshots" / ("b" * 40) / "config.json").read_text()) | {
        "rms_norm_eps": 0.25
    }
    (home / "snapshots" / ("b" * 40) / "config.json").write_text(json.dumps(changed))
    return "someone/model"


def test_a_cached_model_loads_offline_at_the_revision_asked_for(cached: str):
    settings = {"name": cached, "load_in_4bit": False}
    assert load_model(ModelConfig(**settings)).config.rms_norm_eps != 0.25
    assert load_model(ModelConfig(**settings, revision="v2"), trainable=True).config.rms_norm_eps == 0.25
    assert load_tokenizer(str(local_snapshot(cached))).chat_template
    with pytest.raises(ModelError, match="not in the cache"):
        load_model(ModelConfig(**settings, revision="v3"))
    with pytest.raises(ModelError, match="not in the cache"):
        load_model(ModelConfig(name="someone/other"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "~/model", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(name: str):
    with pytest.raises(ModelError, match="there is no such folder"):
        local_snapshot(name)


def test_memory_that_runs_out_is_a_matter_of_resources_and_bugs_stay_bugs():
    with pytest.raises(ResourceError, match="not enough GPU memory"), clear_messages("x"):
        raise torch.OutOfMemoryError("out")
    with pytest.raises(ResourceError, match="not enough memory"), clear_messages("x"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="a bug"), clear_messages("x"):
        raise RuntimeError("a bug")
    with pytest.raises(ModelError, match="^x: inner$"), clear_messages("y"):
        raise ModelError("inner", where="x")


def test_a_config_that_is_no_object_is_one_message(tmp_path: Path):
    with pytest.raises(ModelError, match="it is missing"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("3")
    with pytest.raises(ModelError, match="not a JSON object"):
        read_hf_config(tmp_path)
