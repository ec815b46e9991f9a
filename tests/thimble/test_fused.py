"""The whole factory with the fused engine: killed while it trains, gone on with, released; and what hf makes of it."""

import json
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from core.artifacts import path_digest
from tests.thimble.conftest import CONFIG, Factory, Ran, parsed

FUSED = ("-o", "model.framework=fused")
LORA = "models/checkpoints/lora"
KILL = ("tests/thimble/kill_in.py", "finetune", "checkpoint-30")


class Runs(NamedTuple):
    """Three workspaces that share all that came before training."""

    whole: Path
    """Killed at step 30, and run again to the end."""
    ran: Ran
    untouched: Path
    """Trained without a break."""
    hf: Path
    """Trained by hf."""


@pytest.fixture(scope="module")
def runs(factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("fused")
    whole, untouched, hf = (root / name for name in ("whole", "untouched", "hf"))
    killed = parsed(factory.command("run", CONFIG, "--workspace", str(whole), "--json", *FUSED, script=KILL))
    assert killed.code == -signal.SIGKILL, killed.stderr
    assert (whole / "outputs/checkpoint-20").is_dir()
    for copy, options in ((untouched, FUSED), (hf, ())):
        shutil.copytree(whole, copy)
        shutil.rmtree(copy / "outputs")
        (copy / "logs/training.log").unlink()
        ran = factory.run(copy, "--until", "finetune", *options)
        assert ran.code == 0, ran.stderr
        assert (ran.phases["baseline"], ran.phases["finetune"]) == ("reused", "done")
    return Runs(whole, factory.run(whole, *FUSED), untouched, hf)


def losses(workspace: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workspace / "metrics/loss-curve.jsonl").read_text().splitlines()]


def test_it_is_trained_merged_quantized_and_released_with_all_gates_open(runs: Runs):
    assert runs.ran.code == 0, (runs.ran.result, runs.ran.stderr[-2000:])
    assert set(runs.ran.gates.values()) == {"passed"}
    done = ("finetune", "evaluate", "quantize", "deploy")
    assert {phase: runs.ran.phases[phase] for phase in done} == dict.fromkeys(done, "done")
    stats = json.loads((runs.whole / "metrics/training-stats.json").read_text())
    assert stats["framework"] == "fused" and stats["final_loss"] < 0.5 * stats["first_loss"]


def test_what_is_released_answers(factory: Factory, runs: Runs):
    answered = factory.command("chat", str(runs.whole), "--prompt", "Convert 7 m to cm.")
    assert answered.stdout.strip() == "700 cm"


def test_killed_training_ends_bit_for_bit_where_an_untouched_one_does(runs: Runs):
    log = (runs.whole / "logs/training.log").read_text().splitlines()
    steps = [int(line.split("step=")[1].split()[0]) for line in log]
    assert steps.index(22, steps.index(30)) == steps.index(30) + 1
    for part in (LORA, "models/checkpoints/merged"):
        assert path_digest(runs.whole / part) == path_digest(runs.untouched / part), part
    assert losses(runs.whole) == losses(runs.untouched)


def test_hf_has_the_same_losses_and_the_same_adapter(runs: Runs):
    found, wanted = losses(runs.untouched), losses(runs.hf)
    assert len(found) == 40
    assert found == pytest.approx(wanted, rel=1e-5)
    one, other = (load_file(place / LORA / "adapter_model.safetensors") for place in (runs.untouched, runs.hf))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-4) for name in one)
    assert [path_digest(place / LORA / "adapter_config.json") for place in (runs.untouched, runs.hf)]
    settings = [(place / LORA / "adapter_config.json").read_text() for place in (runs.untouched, runs.hf)]
    assert settings[0] == settings[1]


def test_the_engine_is_a_reason_to_train_anew_and_to_do_nothing_else_again(factory: Factory, runs: Runs):
    ran = factory.run(runs.untouched, "--until", "finetune", *FUSED, "-o", "training.activation_budget=1")
    # How much may be kept decides no number.
    assert set(ran.phases.values()) == {"reused"}
