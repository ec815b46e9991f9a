"""Kill -9 in every phase, run the same command again, and end where an untouched run ends."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from core.artifacts import path_digest
from tests.thimble.conftest import Factory, flow_states

KILLS = {
    "ingest": "corpus.parquet",
    "format": "dataset.parquet",
    "split": "splits",
    "baseline": "baseline-zero_shot-answers.jsonl",
    "finetune": "checkpoint-30",
    "evaluate": "evaluation.json",
    "quantize": "quantization-Q8_0-answers.jsonl",
    "deploy": "candidate",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed") / "ws"


@pytest.mark.parametrize("phase", KILLS)
def test_killed_in(factory: Factory, workspace: Path, phase: str):
    ran = factory.kill_in(phase, KILLS[phase], workspace)
    assert ran.code == -signal.SIGKILL, ran.stderr
    order = list(KILLS)
    before = order[: order.index(phase)]
    # What was killed last time was worked on again, everything before it was reused.
    assert all(ran.phases[p] == "reused" for p in before[:-1])
    assert all(ran.phases[p] == "done" for p in before[-1:])
    assert ran.phases[phase] == "running"
    assert not (workspace / f".factory/phases/{phase}.json").exists()
    if phase == "finetune":
        status = json.loads((workspace / ".factory/training-status.json").read_text())
        assert status["running"] is True
    if phase == "evaluate":
        status = json.loads((workspace / ".factory/training-status.json").read_text())
        assert (status["running"], status["error"]) == (False, None)


def test_the_last_run_finishes_and_training_was_resumed(factory: Factory, workspace: Path):
    ran = factory.run(workspace)
    assert ran.code == 0, ran.stderr
    assert ran.phases == {**dict.fromkeys(KILLS, "reused"), "deploy": "done"}
    assert not list(workspace.rglob(".*.part"))
    steps = [int(line.split("step=")[1].split()[0]) for line in
             (workspace / "logs/training.log").read_text().splitlines()]  # fmt: skip
    # The killed training logged up to step 30; the next one continued from the checkpoint at step 20.
    assert steps.index(22, steps.index(30)) == steps.index(30) + 1


def test_a_run_that_was_killed_again_and_again_ends_bit_for_bit_where_an_untouched_one_does(
    factory: Factory, workspace: Path, tmp_path: Path
):
    untouched = tmp_path / "untouched"
    # All eight phases in a process that starts as a user's does: it has nothing imported, and another seed of hashes
    # than those that were killed.
    ran = factory.run(untouched, cold=True)
    assert ran.code == 0, ran.stderr
    assert ran.phases == dict.fromkeys(KILLS, "done")
    for part in ("data/splits", "models/checkpoints/lora", "models/checkpoints/merged", "models/quantized"):
        assert path_digest(untouched / part) == path_digest(workspace / part), part


def test_killed_runs_do_not_stay_running_in_mlflow(factory: Factory, workspace: Path):
    from mlflow import MlflowClient

    client = MlflowClient(factory.mlflow_uri)
    experiment = client.get_experiment_by_name("thimble").experiment_id
    assert client.search_runs([experiment], "attributes.status = 'RUNNING'") == []
    interrupted = client.search_runs([experiment], "tags.status = 'interrupted'")
    assert len(interrupted) == len(KILLS)
    # Nor in Prefect.
    states = [state for state, _ in flow_states(factory)]
    assert "RUNNING" not in states
    assert states.count("CRASHED") == len(KILLS)


def test_a_moved_workspace_and_moved_data_rerun_nothing(factory: Factory, workspace: Path, tmp_path: Path):
    moved = tmp_path / "ünd woanders"
    shutil.move(workspace, moved)
    rows = tmp_path / "other/units.csv"
    rows.parent.mkdir()
    shutil.copy("data/tutor/units.csv", rows)
    ran = factory.run(moved, "-o", f"sources=[{{path: {rows}}}]")
    assert ran.code == 0, ran.stderr
    assert set(ran.phases.values()) == {"reused"}
    answered = factory.command("chat", str(moved), "--prompt", "Convert 7 m to cm.")
    assert answered.stdout.strip() == "700 cm"
