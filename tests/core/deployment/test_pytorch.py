"""The folder of an 8-bit PyTorch model: whole, or not there; its script answers without the project."""

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from core.deployment.pytorch import export_pytorch
from core.errors import ModelError
from core.evaluation.generation import TorchResponder
from core.quantization import byte_model
from core.quantization.dynamic import load_dynamic
from tasks.chat_tokens import chat_tokenizer
from tests.core.deployment.gguf import tiny

QUESTION = "What is 3 + 4?"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("made") / "merged", "Qwen2", tiny.byte_level())


@pytest.fixture(scope="module")
def exported(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "pytorch" / "int8"
    export_pytorch(merged, target)
    return target


def test_the_folder_holds_all_that_the_model_needs_and_nothing_pickled(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "int8.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "run.py", "README.md",
    }  # fmt: skip
    page = (exported / "README.md").read_text(encoding="utf-8")
    size = (exported / "int8.safetensors").stat().st_size
    for told in (f"{size / 1e6:.1f} MB", "for CPUs", "run.py", "rebuild", "load_dynamic"):
        assert told in page
    assert "no chat template" not in page


def test_the_script_needs_neither_the_project_nor_a_package_it_does_not_name(exported: Path) -> None:
    text = (exported / "run.py").read_text(encoding="utf-8")
    assert text == Path(byte_model.__file__).read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    roots = {alias.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    roots |= {str(n.module).split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    named = text.split("pip install ")[1].splitlines()[0].split()
    assert roots - set(sys.stdlib_module_names) == set(named) == {"torch", "transformers", "safetensors"}


def test_the_script_says_what_the_loaded_model_says(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run.py", QUESTION, "--system", "Be brief.", "--max-new-tokens", "6"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(exported / "run.py"), run_name="__main__")
    said = capsys.readouterr().out
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    responder = TorchResponder(load_dynamic(exported), chat_tokenizer(exported, "chatml"), 1)
    (answer,) = responder.answer([asked], 6, lambda done, total: None)
    assert answer.n_generated > 1
    assert said.strip() == answer.text


def test_a_broken_model_is_refused_and_leaves_nothing(merged: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in merged.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack"):
        export_pytorch(broken, tmp_path / "out")
    (broken / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError):
        export_pytorch(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    return disk_of("96k")


def test_a_full_disk_is_named_and_left_empty(small_disk: Path, merged: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        export_pytorch(merged, small_disk / "int8")
    assert caught.value.errno == 28
    assert not list(small_disk.iterdir())
