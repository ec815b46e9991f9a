"""The whole factory with the fused engine, from the rows to the release; and what hf makes of the same rows."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.thimble.conftest import CONFIG, Factory, Ran

LORA = "models/checkpoints/lora"
SHORT = ("-o", "training.max_steps=20", "-o", "evaluation.max_examples=60")


NOT_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="an NVIDIA GPU is here")
VALIDATE = ("validate", CONFIG, "--fast", "-o", "model.framework=fused")


@NOT_HERE
def test_validate_lets_it_pass_and_warns_that_hf_is_as_good_here(factory: Factory):
    done = factory.warm(*VALIDATE, "--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    (warning,) = [each for each in findings if each["level"] == "warning"]
    assert (warning["where"], warning["kind"]) == ("model.framework", "software")
    assert "no NVIDIA GPU here: fused trains with the plain definitions of its kernels" in warning["what"]
    assert not [each for each in findings if each["level"] == "error"]


@NOT_HERE
def test_validate_says_so_in_words(factory: Factory):
    done = factory.warm(*VALIDATE, "-o", "training.activation_budget=2.5")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "warning model.framework: there is no NVIDIA GPU here" in shown
    assert "valid (with warnings)" in shown


class Runs(NamedTuple):
    """Two workspaces that share all that came before training."""

    fused: Path
    ran: Ran
    hf: Path
    """Trained by hf, and no further."""
    again: Ran


@pytest.fixture(scope="module")
def runs(factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("fused")
    fused, hf = root / "fused", root / "hf"
    ran = factory.run(fused, *SHORT, "-o", "model.framework=fused")
    assert ran.code == 0, (ran.result, ran.stderr[-2000:])
    shutil.copytree(fused, hf)
    return Runs(fused, ran, hf, factory.run(hf, *SHORT, "--until", "finetune"))


def losses(workspace: Path) -> list[float]:
    lines = (workspace / "metrics/training-curve.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_it_is_trained_merged_quantized_and_released_with_all_gates_open(runs: Runs):
    assert set(runs.ran.gates.values()) == {"passed"}
    assert set(runs.ran.phases.values()) == {"done"}
    stats = json.loads((runs.fused / "metrics/training-stats.json").read_text())
    assert stats["framework"] == "fused"
    assert stats["final_loss"] < 0.5 * stats["first_loss"]
    assert stats["merge_error"] < 1e-3


def test_another_engine_trains_anew_and_has_the_same_losses_and_the_same_adapter(runs: Runs):
    assert runs.again.code == 0, runs.again.stderr
    assert {state for phase, state in runs.again.phases.items() if phase != "finetune"} == {"reused"}
    assert runs.again.phases["finetune"] == "done"
    found, wanted = losses(runs.fused), losses(runs.hf)
    assert len(found) == 20
    # Where hardly anything is left to learn, a loss is the difference of numbers a hundred times larger.
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found[:10] == pytest.approx(wanted[:10], rel=1e-5)
    one, other = (load_file(place / LORA / "adapter_model.safetensors") for place in (runs.fused, runs.hf))
    assert one.keys() == other.keys()
    assert all(float((one[name] - other[name]).norm()) < 1e-4 * float(other[name].norm()) for name in one)
    settings = [(place / LORA / "adapter_config.json").read_text() for place in (runs.fused, runs.hf)]
    assert settings[0] == settings[1]
