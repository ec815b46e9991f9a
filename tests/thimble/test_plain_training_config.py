"""A training config of the old schema runs unchanged, on a base that brings no chat template."""

import json
import shutil
from pathlib import Path

import pytest

from tests.thimble.conftest import Factory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutor's base without its template; its end-of-turn token is named </s>, as zephyr writes it."""
    folder = tmp_path_factory.mktemp("plain") / "base"
    shutil.copytree("data/tutor_base/model", folder)
    (folder / "chat_template.jinja").unlink()
    return folder


LIGHT = (
    *(
        "-o",
        "evaluation.max_examples=40",
        "-o",
        "evaluation.max_new_tokens=16",
        "-o",
        "evaluation.resamples=1000",
    ),
    *("-o", "evaluation.baseline.arms=[zero_shot, prompted]", "-o", "evaluation.general.enabled=false"),
    *("-o", "gates.baseline_established.min_examples=30"),
)
"""The same in every run here, so that what is measured anew is so for another reason."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation file of forty rows."""
    path = tmp_path_factory.mktemp("val") / "val.jsonl"
    rows = [{"instruction": f"Convert {n} km to m.", "output": f"{n * 1000} m"} for n in range(200, 240)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config(base: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {
        "model": {"name": str(base), "max_seq_length": 256, "dtype": None, "load_in_4bit": True},
        "lora": {"r": 8, "lora_alpha": 16, "use_gradient_checkpointing": "unsloth", "random_state": 3407},
        "training": {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": None,
                     "num_train_epochs": 1, "learning_rate": 5e-3, "optim": "adamw_8bit", "fp16": None, "bf16": None},
        "dataset": {"path": "data/tutor/units.csv", "validation_path": str(given), "chat_template": "zephyr"},
        "save": {"gguf_quantization": "Q8_0", "push_to_hub": False},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("config") / "training-config.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain") / "ws"


def test_it_trains_for_epochs_in_4_bit_and_serves_the_template_it_was_trained_with(
    factory: Factory, config: Path, workspace: Path
):
    ran = factory.run(workspace, *LIGHT, config=str(config))
    assert ran.code == 0, (ran.result, ran.stderr)
    stats = json.loads((workspace / "metrics/training-stats.json").read_text())
    assert stats["epochs"] == 1.0
    assert (workspace / "models/checkpoints/merged/chat_template.jinja").is_file()
    assert (workspace / "bundle/chat_template.jinja").is_file()
    quantized = json.loads((workspace / "metrics/quantization.json").read_text())["files"][0]
    assert quantized["prompt_mismatches"] == 0
    answered = factory.command("chat", str(workspace), "--prompt", "Convert 7 m to cm.")
    assert answered.stdout.strip() == "700 cm"


def test_another_template_trains_anew(factory: Factory, config: Path, workspace: Path):
    ran = factory.run(
        workspace, *LIGHT, "-o", "dataset.chat_template=mistral", "--until", "baseline", config=str(config)
    )
    assert ran.phases == {"ingest": "reused", "format": "reused", "split": "reused", "baseline": "done"}


def test_a_given_validation_file_becomes_val(workspace: Path, given: Path):
    val = (workspace / "data/splits/val.jsonl").read_text().splitlines()
    assert len(val) == 40
    asked = {json.loads(line)["instruction"] for line in given.read_text().splitlines()}
    assert {json.loads(line)["conversations"][0]["content"] for line in val} == asked
    stats = json.loads((workspace / "metrics/training-stats.json").read_text())
    assert len(stats["eval_losses"]) > 0
