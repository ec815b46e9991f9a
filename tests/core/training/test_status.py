"""The live status file."""

import json
from pathlib import Path

import pytest

from core.training.status import TrainingLog, TrainingStatus

FIELDS = {
    "running", "step", "total_steps", "epoch", "total_epochs", "loss", "learning_rate", "eta_seconds",
    "started_at", "checkpoint_at", "error", "last_updated", "completed_at",
    "micro_batch", "accumulation", "shrinks", "reliefs",
}  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_status_follows_training_and_ends_completed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("core.training.status.INTERVAL", 0.0)
    path = tmp_path / ".factory/training-status.json"
    with TrainingStatus(path, total_steps=10, total_epochs=2) as status:
        assert read(path)["running"] is True
        assert set(read(path)) == FIELDS
        status.resumed(4)
        status.log(5, {"loss": 1.5, "learning_rate": 1e-3, "epoch": 1.0, "grad_norm": 9.0})
        now = read(path)
        assert (now["step"], now["loss"], now["epoch"]) == (5, 1.5, 1.0)
        assert now["eta_seconds"] >= 0
        status.checkpointed()
        assert read(path)["checkpoint_at"]
    ended = read(path)
    assert ended["running"] is False
    assert ended["error"] is None
    assert ended["completed_at"]


def test_an_exception_is_recorded_and_travels_on(tmp_path: Path):
    path = tmp_path / "status.json"
    with pytest.raises(RuntimeError, match="boom"), TrainingStatus(path, total_steps=1, total_epochs=1):
        raise RuntimeError("boom")
    assert read(path)["error"] == "boom"
    assert read(path)["running"] is False
    assert read(path)["completed_at"] is None


def test_log_appends_a_line_per_step(tmp_path: Path):
    log = TrainingLog(tmp_path / "logs/training.log")
    log.log(1, {"loss": 2.0})
    TrainingLog(tmp_path / "logs/training.log").log(2, {"loss": 1.0})
    lines = (tmp_path / "logs/training.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["step=1 loss=2", "step=2 loss=1"]


def test_micro_batches_that_shrank_are_noted_at_once_and_the_step_stays(tmp_path: Path):
    path = tmp_path / "status.json"
    with TrainingStatus(path, total_steps=10, total_epochs=1) as status:
        status.log(3, {"loss": 1.0})
        status.log(4, {"micro_batch": 1.0, "accumulation": 8.0, "shrinks": 2.0})
        now = read(path)
    assert (now["step"], now["micro_batch"], now["accumulation"], now["shrinks"]) == (3, 1, 8, 2)
