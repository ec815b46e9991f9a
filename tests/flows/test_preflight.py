"""What a look before the run finds, on real folders and a real (tiny) model's files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from core.errors import ConfigError, DataError, ModelError, ResourceError, UserError
from core.models.resources import GB, count_parameters, published_shape, shape_from_config
from flows.config_file import load_config
from flows.preflight import Estimate, Finding, PreflightReport, preflight
from flows.preflight.machine import Device, find_integer_obstacle, nearest_folder, read_gpu
from flows.run_config import RunConfig

ROOT = Path(__file__).parents[2]

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
}
# No machine has the memory for 400 layers of width 65536, and no disk the room.
HUGE = {**TINY, "hidden_size": 65536, "num_hidden_layers": 400, "intermediate_size": 262144}

CONFIG = Path("run.yaml")
WORKSPACE = Path("workspace/run")


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}', encoding="utf-8")
    save_file({"weight": np.zeros(2, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a folder with rows and a model, and an empty Hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    write_model(Path("tiny"), TINY)


def look(
    model: str | dict[str, Any] = "tiny", engine: str = "hf", *, falls_back: bool = False, **blocks: Any
) -> PreflightReport:
    given = model if isinstance(model, dict) else {"name": model}
    settings = {
        "model": {"max_seq_length": 512, "framework": engine, "fall_back": falls_back} | given,
        "sources": [{"path": "rows.jsonl"}],
        **blocks,
    }
    return preflight(RunConfig.model_validate(settings), CONFIG, WORKSPACE)


def only(findings: tuple[Finding, ...]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_run_has_no_findings() -> None:
    report = look()
    assert report.findings == ()
    report.raise_errors()
    shape = shape_from_config(TINY)
    assert shape is not None
    assert report.parameters == count_parameters(shape)


def test_the_table_covers_every_phase() -> None:
    rows = {row.phase: row for row in look().estimates}
    assert list(rows) == ["baseline, evaluate", "finetune", "merge", "quantize, serve", "all files"]
    assert all(row.needed_gb > 0 or row.phase == "all files" for row in rows.values())
    assert rows["all files"].place.startswith("disk of ")
    assert rows["finetune"].needed_gb > rows["merge"].needed_gb
    assert rows["finetune"].needed_gb < 1.5  # a megabyte of weights, and the libraries


# Data


@pytest.mark.parametrize("path", ["nowhere.jsonl", "nowhere/*.jsonl", "tiny/config.txt"])
def test_missing_data_stops_validation_too(path: str) -> None:
    report = look(sources=[{"path": path}])
    assert only(report.errors).kind == "data"
    with pytest.raises(DataError, match=r"nowhere|config\.txt"):
        report.for_any_machine().raise_errors()


def test_missing_validation_rows_are_found() -> None:
    report = look(dataset={"path": "rows.jsonl", "validation_path": "val.jsonl"})
    assert "val.jsonl" in only(report.errors).where


def test_a_training_config_is_checked_through_its_dataset() -> None:
    report = look(sources=[], dataset={"path": "gone.jsonl"})
    assert "gone.jsonl" in only(report.errors).where


def test_files_that_are_not_read_are_mentioned() -> None:
    Path("folder").mkdir()
    Path("folder/rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    Path("folder/scan.pdf").touch()
    finding = only(look(sources=[{"path": "folder"}]).findings)
    assert (finding.level, finding.where) == ("warning", "sources.0")
    assert "scan.pdf" in finding.what


def test_data_and_model_may_lie_beside_the_config(tmp_path: Path) -> None:
    write_model(tmp_path / "project" / "base", TINY)
    (tmp_path / "project" / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    settings = {"model": {"name": "base", "max_seq_length": 512}, "sources": [{"path": "mine.jsonl"}]}
    report = preflight(RunConfig.model_validate(settings), tmp_path / "project" / "run.yaml", WORKSPACE)
    assert report.findings == ()


# The model


def spoil_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def spoil_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid x\n", encoding="utf-8"
    )


def spoil_shards(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def spoil_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_pickled, "only pickled weights"),
        (spoil_weights, "no \\*.safetensors"),
        (spoil_tokenizer, "has no tokenizer"),
        (spoil_config, "no readable config.json"),
        (spoil_pointer, "is a Git LFS pointer"),
        (spoil_shards, "lacks 1 weight files: model-2.safetensors"),
        (spoil_index, "cannot be read"),
    ],
)
def test_an_unusable_model_folder_stops_validation_too(spoil: Callable[[Path], None], words: str) -> None:
    spoil(Path("tiny"))
    with pytest.raises(ModelError, match=words):
        look().for_any_machine().raise_errors()


def test_a_model_file_is_no_model_folder() -> None:
    with pytest.raises(ModelError, match="is a file"):
        look("tiny/model.safetensors").raise_errors()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gema-3-4b", "google/gemma-3-4b-it"), ("tinny", "tiny"), ("./models/Qwen3-8b", "Qwen/Qwen3-8B")],
)
def test_a_misspelt_model_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ModelError) as caught:
        look(name).for_any_machine().raise_errors()
    assert "is no folder here and no Hub id" in caught.value.what
    assert meant in caught.value.fix


def test_a_name_inside_an_existing_folder_is_a_missing_folder() -> None:
    write_model(Path("models/base"), TINY)
    with pytest.raises(ModelError, match="is no folder here") as caught:
        look("models/bose").for_any_machine().raise_errors()
    assert caught.value.fix == "models holds base"


def test_a_hub_model_is_announced_as_a_download() -> None:
    report = look("google/gemma-3-1b-it")
    assert [f for f in report.warnings if "will download it" in f.what]
    assert report.parameters == 999_885_952
    download = next(row for row in report.estimates if row.phase == "download")
    assert download.needed_gb == pytest.approx(2 * 999_885_952 / GB, abs=0.01)


def test_an_unknown_hub_model_is_not_estimated() -> None:
    report = look("someone/new-model")
    assert report.estimates == ()
    assert report.parameters is None
    assert [f.level for f in report.findings] == ["warning", "warning"]
    assert "check the spelling" in report.findings[0].fix


def test_offline_a_missing_hub_model_stops_a_run_but_not_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = look("google/gemma-3-1b-it")
    finding = next(f for f in report.errors if f.kind == "software")
    assert "HF_HUB_OFFLINE" in finding.what
    assert "hf download google/gemma-3-1b-it" in finding.fix
    report.for_any_machine().raise_errors()


def cache_model(name: str) -> Path:
    """Lay a model into the Hub cache the way the Hub's client does."""
    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    return write_model(repository / "snapshots" / "abc", TINY)


def test_a_cached_hub_model_is_checked_like_a_folder() -> None:
    folder = cache_model("someone/model")
    assert look("someone/model").findings == ()
    spoil_tokenizer(folder)
    with pytest.raises(ModelError, match="has no tokenizer"):
        look("someone/model").raise_errors()


def test_a_half_downloaded_hub_model_is_downloaded_again() -> None:
    spoil_weights(cache_model("someone/model"))
    report = look("someone/model")
    assert "will download it" in only(report.findings).what
    assert report.parameters is not None


def test_a_window_beyond_the_models_own_is_mentioned() -> None:
    report = look(model="tiny")
    assert report.findings == ()
    settings = {"name": "tiny", "max_seq_length": 2048, "load_in_4bit": True}
    run = RunConfig.model_validate({"model": settings, "sources": [{"path": "rows.jsonl"}]})
    finding = only(preflight(run, CONFIG, WORKSPACE).findings)
    assert (finding.level, finding.where) == ("warning", "model.max_seq_length")
    assert "1024" in finding.fix


# Hardware and software


def test_too_little_hardware_stops_a_run_but_not_validation() -> None:
    write_model(Path("huge"), HUGE)
    report = look("huge", training={"per_device_train_batch_size": 8}, lora={"r": 64})
    with pytest.raises(ResourceError) as caught:
        report.raise_errors()
    assert "finetune needs about" in caught.value.what
    assert "GB are free" in caught.value.what
    assert "no settings make it fit" in caught.value.what
    validated = report.for_any_machine()
    validated.raise_errors()
    assert len(validated.warnings) == len(report.errors) == len(report.estimates)
    assert {f.kind for f in report.errors} == {"hardware"}


@pytest.mark.parametrize("stem", ["gemma3_4b", "llama31_8b", "qwen3_8b"])
def test_the_shipped_configs_are_valid_on_any_machine(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / f"{stem}.yaml"
    run = load_config(path)
    report = preflight(run, path, WORKSPACE)
    report.for_any_machine().raise_errors()
    shape = published_shape(run.model.name)
    assert shape is not None
    assert report.parameters == count_parameters(shape)


def test_an_engine_that_is_not_installed_stops_a_run_but_not_validation() -> None:
    report = look(engine="unsloth")
    with pytest.raises(ResourceError, match="pip install 'data-factory\\[unsloth\\]'"):
        report.raise_errors()
    report.for_any_machine().raise_errors()


@pytest.mark.parametrize("falls_back", [False, True])
def test_fused_kernels_that_cannot_run_here_are_a_warning(falls_back: bool) -> None:
    report = look(engine="fused", falls_back=falls_back)
    assert report.errors == ()
    found = only(report.warnings)
    assert (found.kind, found.where) == ("software", "model.framework")
    assert "fused trains with the plain definitions of its kernels, and hf is as good" in found.what


def test_a_budget_that_no_engine_asks_for_is_a_warning() -> None:
    budget = {"training": {"activation_budget": 4}}
    found = only(look(**budget).warnings)
    assert (found.kind, found.where) == ("setting", "training.activation_budget")
    assert "no effect with hf" in found.what
    assert [each.where for each in look(engine="fused", **budget).warnings] == ["model.framework"]
    assert look().warnings == ()


# Packing


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 256}
OLD = {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"model_type": "mamba"}, "models of type mamba"),
        ({"rope_parameters": LONG}, "beyond 256 tokens"),
        ({"model_type": "gemma3", "text_config": {**TINY, "rope_parameters": LONG}}, "beyond 256 tokens"),
        (OLD, "beyond 256 tokens"),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused_before_anything_starts(shape: dict, words: str) -> None:
    write_model(Path("other"), {**TINY, **shape})
    assert not [each for each in look("other").errors if each.where == "training.packing"]
    report = look("other", training={"packing": True})
    found = only(tuple(each for each in report.errors if each.where == "training.packing"))
    assert words in found.what and "training.packing: false" in found.fix
    assert found in report.for_any_machine().errors


def test_packing_goes_with_a_dense_model_and_a_window_short_enough() -> None:
    write_model(Path("long"), {**TINY, "rope_parameters": {**LONG, "original_max_position_embeddings": 512}})
    assert look(training={"packing": True}).errors == ()
    assert look("long", training={"packing": True}).errors == ()


def test_packing_does_not_go_with_another_engine_but_with_the_one_it_falls_back_to() -> None:
    packed = {"training": {"packing": True}}
    report = look(engine="unsloth", **packed).for_any_machine()
    assert "unsloth engine" in only(report.errors).what
    assert look(engine="unsloth", falls_back=True, **packed).errors == ()


def test_the_disk_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
    assert nearest_folder(Path("x/y")) == tmp_path
    assert nearest_folder(tmp_path / "rows.jsonl" / "below-a-file") == tmp_path


def fake_tool(answer: str, code: int = 0) -> str:
    tool = Path("nvidia-smi").absolute()
    tool.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n", encoding="utf-8")
    tool.chmod(0o755)
    return str(tool)


def test_a_gpu_is_read_from_the_drivers_tool() -> None:
    device = read_gpu(fake_tool("NVIDIA L4, 23034, 22500\\nNVIDIA T4, 15360, 15000\\n"))
    assert device is not None
    assert device.words == "NVIDIA L4, 22.5 GB"
    assert (device.is_gpu, device.free) == (True, 22500 * 1024**2)


@pytest.mark.parametrize(("answer", "code"), [("", 0), ("no devices\\n", 9), ("GB10, [N/A], [N/A]\\n", 0)])
def test_a_tool_without_a_gpu_is_no_gpu(answer: str, code: int) -> None:
    assert read_gpu(fake_tool(answer, code)) is None


# The report


def finding(kind: Any, what: str, level: Any = "error") -> Finding:
    return Finding(level=level, kind=kind, where="key", what=what, fix="do it")


def report_of(*findings: Finding) -> PreflightReport:
    return PreflightReport(findings=findings, estimates=(), device="CPU", parameters=None)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("setting", ConfigError),
        ("data", DataError),
        ("model", ModelError),
        ("hardware", ResourceError),
        ("software", ResourceError),
    ],
)
def test_each_kind_has_its_error(kind: str, error: type[UserError]) -> None:
    with pytest.raises(error, match="key: broken\n  Fix: do it"):
        report_of(finding(kind, "broken")).raise_errors()


def test_all_errors_are_in_one_message() -> None:
    report = report_of(
        finding("data", "one"), finding("setting", "two", "warning"), finding("model", "three")
    )
    with pytest.raises(DataError) as caught:
        report.raise_errors()
    assert str(caught.value).splitlines() == [
        "2 problems before the run",
        "  key: one",
        "    Fix: do it",
        "  key: three",
        "    Fix: do it",
    ]


def test_enough_is_up_to_the_last_byte() -> None:
    assert Estimate(phase="x", place="memory", needed_gb=2.0, available_gb=2.0).is_enough
    assert not Estimate(phase="x", place="memory", needed_gb=2.01, available_gb=2.0).is_enough


def test_looking_imports_no_framework() -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from flows.preflight import preflight\nfrom flows.run_config import RunConfig\n"
        "blocks = {'model': {'name': 'google/gemma-3-1b-it'}, 'sources': [{'path': 'rows.jsonl'}]}\n"
        "run = RunConfig.model_validate(blocks)\n"
        "preflight(run, Path('run.yaml'), Path('workspace'))\n"
        "print({'torch', 'transformers', 'prefect', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "set()"


# 8-bit PyTorch models

INT8 = {"quantization": {"pytorch": ["int8"]}}


def test_eight_bit_pytorch_models_need_a_processor_that_pytorch_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in ("x86_64", "AMD64", "aarch64", "arm64"):
        assert find_integer_obstacle(kind) is None
    assert look(**INT8).findings == ()
    monkeypatch.setattr("platform.machine", lambda: "ppc64le")
    report = look(**INT8)
    finding = only(report.errors)
    assert (finding.where, finding.fix) == ("quantization.pytorch", "quantization.pytorch: []")
    assert "ppc64le" in finding.what
    with pytest.raises(ResourceError, match="ppc64le"):
        report.raise_errors()
    assert look().findings == ()


def test_beside_a_gpu_it_is_said_that_the_processor_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("a card", True, 80 * GB, 80 * GB)
    monkeypatch.setattr("flows.preflight.find_device", lambda: gpu)
    notes = [each for each in look(**INT8).findings if each.where == "quantization.pytorch"]
    assert only(tuple(notes)).level == "note"
    assert "not on its GPU" in notes[0].what
    assert not [each for each in look().findings if each.where == "quantization.pytorch"]


def test_training_with_rounding_says_what_it_costs() -> None:
    def told(made: dict[str, Any], **lora: object) -> list[str]:
        model = {"name": "tiny", "max_seq_length": 512, "load_in_4bit": False}
        report = look(model=model, quantization=made, lora=lora)
        return [each.what for each in report.notes if each.where == "quantization.aware"]

    aware = {"formats": ["Q4_0"], "aware": "Q4_0"}
    assert "Q4_0 three times" in told(aware)[0]
    assert "Q4_0 twice" in told(aware, use_gradient_checkpointing=False)[0]
    assert told({"formats": ["Q4_0"]}) == []
