"""The live status file other tools poll, and the plain training log."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.artifacts import write_json

INTERVAL = 1.0
"""Seconds between two writes of the status file."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class TrainingStatus:
    """Keeps ``.factory/training-status.json`` true while training runs.

    Used as a context manager around training: an exception that leaves the block is
    recorded in ``error`` before it travels on.
    """

    def __init__(self, path: Path, *, total_steps: int, total_epochs: float) -> None:
        """Remember the totals; nothing is written before the block is entered."""
        self.path, self.start_step = path, 0
        self.began = self.written = 0.0
        self.content: dict[str, Any] = {
            "running": True, "step": 0, "total_steps": total_steps,
            "epoch": 0.0, "total_epochs": total_epochs, "loss": None, "learning_rate": None,
            "eta_seconds": None, "started_at": _now(), "checkpoint_at": None, "error": None,
            "last_updated": None, "completed_at": None,
            "micro_batch": None, "accumulation": None, "shrinks": 0, "reliefs": 0,
        }  # fmt: skip

    def __enter__(self) -> "TrainingStatus":
        """Announce the start."""
        self.began = time.monotonic()
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Record how it ended."""
        self.content["running"] = False
        if error is None:
            self.content.update(completed_at=_now(), eta_seconds=0.0)
        else:
            told = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            self.content["error"] = told or type(error).__name__
        self._write()

    def resumed(self, step: int) -> None:
        """Take the step training continues from, so that the ETA counts only new steps."""
        self.start_step = step
        self.content["step"] = step
        self.began = time.monotonic()
        self._write()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's numbers; the file follows at most once a second.

        What became of micro-batches, because memory ran out or was left over, is noted at once.
        """
        noted = {
            k: int(metrics[k]) for k in ("micro_batch", "accumulation", "shrinks", "reliefs") if k in metrics
        }
        if noted:
            self.content.update(noted)
            self._write()
            return
        done = step - self.start_step
        spent = time.monotonic() - self.began
        left = self.content["total_steps"] - step
        self.content.update(step=step, eta_seconds=round(spent / done * left, 1) if done else None)
        self.content.update({k: metrics[k] for k in ("loss", "learning_rate", "epoch") if k in metrics})
        if time.monotonic() - self.written >= INTERVAL:
            self._write()

    def checkpointed(self) -> None:
        """Note that a resumable state was just saved."""
        self.content["checkpoint_at"] = _now()
        self._write()

    def _write(self) -> None:
        self.content["last_updated"] = _now()
        write_json(self.path, self.content)
        self.written = time.monotonic()


class TrainingLog:
    """Appends one line per logged step to ``logs/training.log``."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a resumed run continues the same file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the step's numbers."""
        numbers = " ".join(f"{key}={value:.6g}" for key, value in metrics.items())
        with self.path.open("a", encoding="utf-8") as out:
            out.write(f"{_now()} step={step} {numbers}\n")
