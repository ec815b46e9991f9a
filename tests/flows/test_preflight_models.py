"""The model as a look before the run sees it: its files, its revision; and the --unsloth flag."""

import itertools
import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from core.errors import ConfigError
from core.models.scratch import train_tokenizer
from flows.cli import app, overrides_of
from flows.config_file import load_config
from flows.preflight.models import find_model
from flows.run_config import RunConfig
from tests.families import FAMILIES, build

SOURCES = [{"path": "rows.jsonl"}]


def run(**model) -> RunConfig:
    return RunConfig.model_validate(
        {"model": {"name": "tiny", "max_seq_length": 256, **model}, "sources": SOURCES}
    )


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')


# The flag


def written(text: str) -> Path:
    Path("run.yaml").write_text(f"model: {{name: tiny, {text}}}\nsources: [{{path: rows.jsonl}}]\n")
    return Path("run.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "max_seq_length: 512",
        "framework: hf",
        "use_unsloth: false",
        "framework: {type: hf}",
        "use_unsloth: true",
    ],
)
@pytest.mark.parametrize("given", [None, ["model.framework=hf"], ["training.max_steps=3"]])
def test_the_flag_wins_over_every_spelling_in_the_file_and_over_overrides(text: str, given):
    assert load_config(written(text), overrides_of(given, unsloth=True)).model.framework == "unsloth"
    without = load_config(written(text), overrides_of(None, unsloth=False)).model.framework
    assert without == ("unsloth" if "true" in text else "hf")


@pytest.mark.parametrize("command", ["run", "validate"])
def test_run_and_validate_take_the_flag(command: str):
    config = written("framework: hf, max_seq_length: 256")
    asked = CliRunner().invoke(app, [command, str(config), "--unsloth", "-o", "model.framewrk=hf"])
    assert isinstance(asked.exception, ConfigError)  # and not a usage error: the flag is known
    assert "--unsloth" in CliRunner().invoke(app, [command, "--help"]).output


# The files


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_found_in_a_sound_model(family: str):
    build(family, Path("tiny"))
    found, findings = find_model(run(), Path("run.yaml"))
    assert found is not None
    assert found.config["model_type"]
    assert findings == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{}", "tokenizer.json without a vocabulary"),
        ("model.safetensors", "short", "model.safetensors, which is truncated"),
        ("config.json", '{"model_type": "warp-drive"}', "is a warp-drive, of which Transformers"),
        ("config.json", '{"model_type": "x", "auto_map": {}}', "needs remote code"),
        (
            "config.json",
            '{"model_type": "llama", "architectures": ["LlamaModel"]}',
            "no causal language model",
        ),
    ],
)
def test_what_loading_would_refuse_is_found_before(file: str, content: str, words: str):
    build("llama-3.2", Path("tiny"))
    Path("tiny", file).write_text(content)
    _, findings = find_model(run(), Path("run.yaml"))
    assert any(words in finding.what for finding in findings), findings
    assert {(f.level, f.kind, f.where) for f in findings} == {("error", "model", "model.name")}
    assert all(f.fix for f in findings)


def test_a_tokenizer_larger_than_the_model_is_found_before():
    build("llama-3.2", Path("tiny"))
    words = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=4)]
    train_tokenizer([" ".join(words)] * 2, 2000).save_pretrained("tiny")
    _, findings = find_model(run(), Path("run.yaml"))
    assert ["do not belong together" in finding.what for finding in findings] == [True]


def test_a_revision_is_looked_up_in_the_cache():
    home = Path("hub/models--someone--model")
    (home / "refs").mkdir(parents=True)
    for ref, commit, window in (("main", "abc", 1000), ("v2", "def", 2000)):
        (home / "refs" / ref).write_text(commit)
        folder = build("llama-3.2", home / "snapshots" / commit)
        config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": window}
        (folder / "config.json").write_text(json.dumps(config))
    for revision, window in ((None, 1000), ("v2", 2000)):
        found, findings = find_model(run(name="someone/model", revision=revision), Path("run.yaml"))
        assert found is not None
        assert (found.config["max_position_embeddings"], findings) == (window, [])
    _, findings = find_model(run(name="someone/model", revision="v3"), Path("run.yaml"))
    assert "not on this machine" in findings[0].what


# What cannot work together


def test_dora_over_8_bits_is_a_contradiction_and_over_4_bits_is_not():
    RunConfig.model_validate({"model": {"name": "tiny"}, "lora": {"use_dora": True}, "sources": SOURCES})
    with pytest.raises(ValueError, match=r"lora\.use_dora: DoRA needs"):
        RunConfig.model_validate(
            {"model": {"name": "tiny", "load_in_8bit": True}, "lora": {"use_dora": True}, "sources": SOURCES}
        )


def test_all_linear_is_a_target_like_any_list():
    switched_off = {"finetune_attention_modules": False, "finetune_mlp_modules": False}
    for targets, fine in (("all-linear", True), (["q_proj"], False)):
        blocks = {
            "model": {"name": "tiny"},
            "lora": {"target_modules": targets, **switched_off},
            "sources": SOURCES,
        }
        if fine:
            assert RunConfig.model_validate(blocks).lora.target_modules == "all-linear"
        else:
            with pytest.raises(ValueError, match="nothing would be trained"):
                RunConfig.model_validate(blocks)
