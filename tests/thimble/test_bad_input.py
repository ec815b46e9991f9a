"""What a person gets wrong: one clear message, exit code 2, nothing half-written."""

import json
from pathlib import Path

import pytest

from tests.thimble.conftest import Factory

GOOD = {"instruction": "Convert 1 m to cm.", "input": "", "output": "100 cm"}


def row(number: int) -> dict:
    return {"instruction": f"Convert {number} m to cm.", "input": "", "output": f"{number * 100} cm"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(400)))
    return path


def refused(factory: Factory, workspace: Path, *options: str, cold: bool = False) -> str:
    start = factory.command if cold else factory.warm
    ran = start("run", "tests/thimble/tiny.yaml", "--workspace", str(workspace), *options)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert ran.stderr.startswith("error: ")
    assert not (workspace / "data/splits").exists()
    return ran.stderr


def source(path: Path) -> tuple[str, ...]:
    return ("-o", f"sources=[{{path: {path}}}]", "-o", "split={}")


def test_a_wrong_key_names_its_path_and_the_nearest_key(factory: Factory, tmp_path: Path):
    wrong = ("-o", "training.learning_rat=1e-3", "-o", "lora.rr=4")
    text = refused(factory, tmp_path / "ws", *wrong, cold=True)
    assert "training.learning_rat" in text
    assert "training.learning_rate" in text
    assert "lora.rr" in text
    assert not (tmp_path / "ws").exists()


def test_a_machine_gets_one_result_line_for_wrong_input(factory: Factory, tmp_path: Path):
    ran = factory.run(tmp_path / "ws", "-o", "lora.rr=4")
    assert ran.code == 2
    assert ran.result["exit_code"] == 2
    assert "lora.rr" in ran.result["message"]


def test_a_missing_config_names_the_nearest_file(factory: Factory, tmp_path: Path):
    ran = factory.command("run", "configs/quickstar.yaml", "--workspace", str(tmp_path / "ws"))
    assert ran.returncode == 2
    assert "quickstart.yaml" in ran.stderr
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("option", ["--from", "--until"])
def test_a_wrong_phase_lists_the_phases(factory: Factory, tmp_path: Path, option: str):
    assert "ingest, format, split" in refused(factory, tmp_path / "ws", option, "training")


def test_a_missing_source(factory: Factory, tmp_path: Path):
    assert "nowhere.jsonl" in refused(factory, tmp_path / "ws", *source(tmp_path / "nowhere.jsonl"))
    assert not (tmp_path / "ws").exists()


def test_an_empty_source(factory: Factory, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused(factory, tmp_path / "ws", *source(tmp_path / "empty.jsonl"))


def test_a_broken_line_is_named_by_file_and_number(factory: Factory, tmp_path: Path, rows: Path):
    lines = rows.read_text().splitlines()
    lines[41] = '{"instruction": "Convert'
    rows.write_text("\n".join(lines))
    text = refused(factory, tmp_path / "ws", *source(rows), "-o", "format.max_rejected=0")
    assert "rows.jsonl:42: not valid JSON" in text
    listed = json.loads((tmp_path / "ws/data/rejected.jsonl").read_text())
    assert (listed["file"], listed["line"], listed["row"]) == ("rows.jsonl", 42, '{"instruction": "Convert')


def test_a_wrong_encoding(factory: Factory, tmp_path: Path, rows: Path):
    rows.write_bytes(rows.read_bytes() + '{"instruction": "caf\xe9"}\n'.encode("latin-1"))
    text = refused(factory, tmp_path / "ws", *source(rows), "-o", "format.max_rejected=0")
    assert "rows.jsonl:401: not UTF-8" in text


def test_rows_without_an_answer(factory: Factory, tmp_path: Path, rows: Path):
    lines = [json.dumps({**row(i), "output": ""}) for i in range(40)]
    rows.write_text(rows.read_text() + "\n".join(lines))
    text = refused(factory, tmp_path / "ws", *source(rows))
    assert "empty answer" in text
    assert "rows.jsonl:401" in text
    assert "max_rejected" in text
    assert len((tmp_path / "ws/data/rejected.jsonl").read_text().splitlines()) == 40


def test_too_few_rows_to_split(factory: Factory, tmp_path: Path):
    (tmp_path / "few.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert "split" in refused(factory, tmp_path / "ws", *source(tmp_path / "few.jsonl"))


def test_a_split_too_small_to_judge_closes_the_first_gate(factory: Factory, tmp_path: Path):
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    ran = factory.run(tmp_path / "ws", *source(tmp_path / "some.jsonl"))
    assert ran.code == 3
    assert "rows 60" in ran.result["message"]


@pytest.mark.parametrize(
    "name", ["data/tutor_bse/model", "no-such-model", "google/gemma-3-4b-it-nonexistent"]
)
def test_an_unknown_model(factory: Factory, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    # Read when the library is imported.
    monkeypatch.setitem(factory.environment, "HF_HUB_OFFLINE", "1")
    assert name in refused(factory, tmp_path / "ws", "-o", f"model.name={name}", cold=True)


def test_a_model_that_cannot_fit_is_refused_before_anything_loads(
    factory: Factory, tmp_path: Path, monkeypatch
):
    huge = tmp_path / "huge"
    huge.mkdir()
    shape = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384, "intermediate_size":
             53248, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
             "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
    (huge / "config.json").write_text(json.dumps(shape))
    (huge / "tokenizer.json").write_text("{}")
    (huge / "model.safetensors").write_bytes(b"")
    text = refused(factory, tmp_path / "ws", "-o", f"model.name={huge}")
    assert "memory" in text
    assert not (tmp_path / "ws").exists()


def test_a_workspace_in_use_is_not_touched(factory: Factory, tmp_path: Path):
    from filelock import FileLock

    (tmp_path / "ws/.factory").mkdir(parents=True)
    with FileLock(tmp_path / "ws/.factory/lock"):
        assert "another run" in refused(factory, tmp_path / "ws")


def test_gates_and_chat_without_a_run(factory: Factory, tmp_path: Path):
    for command in (("gates", str(tmp_path)), ("chat", str(tmp_path), "--prompt", "Hi")):
        ran = factory.command(*command)
        assert ran.returncode == 2
        assert "factory run" in ran.stderr


def test_validate_reports_and_writes_nothing(factory: Factory, tmp_path: Path):
    assert factory.warm("validate", "tests/thimble/tiny.yaml").returncode == 0
    wrong = factory.warm("validate", "tests/thimble/tiny.yaml", "-o", "evaluation.max_new_tokens=0")
    assert wrong.returncode == 2
    assert "evaluation.max_new_tokens" in wrong.stderr
