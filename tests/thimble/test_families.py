"""A really trained tiny model of a family goes through the whole factory; FACTORY_FAMILIES=all for every one."""

import json
import os
from pathlib import Path

import pytest

from core.artifacts import path_digest
from tests.families import FAMILIES
from tests.families.lessons import pretrained, write_rows
from tests.thimble.conftest import Factory

# One vocabulary of each kind. The others behave alike in all that the factory does, and take their time.
CHOSEN = FAMILIES if os.environ.get("FACTORY_FAMILIES") == "all" else ("mistral", "qwen3")
STEPS = {"qwen3": 240, "gemma-3": 120, "mistral": 120}


@pytest.mark.parametrize("family", CHOSEN)
def test_a_family_learns_is_exported_and_released_with_all_gates_open(
    factory: Factory, family: str, tmp_path: Path
):
    base = pretrained(family, tmp_path / "base", steps=STEPS.get(family, 200))
    rows = write_rows(tmp_path / "colours.jsonl")
    workspace = tmp_path / "ws"
    ran = factory.run(
        workspace,
        *("-o", f"model.name={base}"),
        *("-o", f"sources=[{{path: {rows}}}]"),
        *("-o", "split={strategy: random, train: 0.7, val: 0.1, test: 0.2}"),
        *("-o", "quantization.formats=[Q8_0, f16]", "-o", "quantization.pytorch=[int8]"),
        *("-o", "training.max_steps=150", "-o", "lora.r=16", "-o", "lora.lora_alpha=32"),
        *("-o", "gates.dataset_validated.min_rows=200"),
        config="tests/thimble/tiny.yaml",
    )
    assert ran.code == 0, (ran.result, ran.stderr[-2000:])
    assert set(ran.gates.values()) == {"passed"}
    scores = {
        name: json.loads((workspace / f"metrics/{name}.json").read_text())
        for name in ("baseline", "evaluation", "quantization")
    }
    assert scores["evaluation"]["value"] > 0.9 > 0.5 > scores["baseline"]["value"]
    files = scores["quantization"]["files"]
    assert all(file["prompt_mismatches"] == 0 for file in files)
    assert all(file["evaluation"]["value"] >= scores["evaluation"]["value"] - 0.02 for file in files)
    assert scores["quantization"]["parity"]["kl"] < 1e-4
    assert_the_pytorch_form_is_made_judged_and_told(workspace, scores)
    question = "The drum in Wa is green. Which colour has the drum?"
    answered = factory.command("chat", str(workspace), "--prompt", question)
    assert answered.stdout.strip() == "green"


def assert_the_pytorch_form_is_made_judged_and_told(workspace: Path, scores: dict) -> None:
    (form,) = scores["quantization"]["pytorch"]
    assert form["evaluation"]["value"] >= scores["evaluation"]["value"] - 0.02
    assert form["digest"] == path_digest(workspace / form["path"])
    assert form["bytes"] < 0.4 * scores["quantization"]["merged_bytes"]
    gate = json.loads((workspace / "gates/quantization-verified.json").read_text())
    assert {"PyTorch int8 measured file", "PyTorch int8 prompts"} <= {
        check["name"] for check in gate["checks"]
    }
    assert {"PyTorch int8 drop"} <= {check["name"] for check in gate["tried"]}
    assert "PyTorch models" in (workspace / "report.html").read_text()
    assert f"python {form['path']}/run.py" in (workspace / "docs/inference-api.md").read_text()
    listed = json.loads((workspace / "manifest.json").read_text())["files"]
    assert {f"{form['path']}/int8.safetensors", "metrics/quantization-pytorch-int8-answers.jsonl"} <= set(
        listed
    )
