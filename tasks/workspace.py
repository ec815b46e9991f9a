"""Where everything of a run lies (the workspace contract)."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.artifacts import sweep_parts
from core.errors import ConfigError

HERE = "{workspace}"
"""Stands for the workspace's folder in the records of phases, so that a workspace may be moved."""


def read_object(file: Path) -> dict[str, Any]:
    """Read what a run left as a JSON object; an empty one where there is none, or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Workspace:
    """Names the places inside one workspace folder."""

    def __init__(self, root: Path) -> None:
        """Take the folder; nothing is created yet."""
        self.root = root.resolve()
        self.private = self.root / ".factory"
        self.corpus = self.root / "data/corpus.parquet"
        self.dataset = self.root / "data/dataset.parquet"
        self.downloads = self.private / "downloads"
        self.tokens = self.private / "tokens"
        self.rejected = self.root / "data/rejected.jsonl"
        self.learning = self.root / "data/will-it-learn.json"
        self.splits = self.root / "data/splits"
        self.metrics = self.root / "metrics"
        self.gates = self.root / "gates"
        self.docs = self.root / "docs"
        self.bundle = self.root / "bundle"
        self.candidate = self.private / "candidate"
        self.status = self.private / "training-status.json"
        self.training_log = self.root / "logs/training.log"
        self.training_stats = self.metrics / "training-stats.json"
        self.curve = self.metrics / "training-curve.jsonl"
        self.report = self.root / "report.html"
        self.manifest = self.root / "manifest.json"

    def phase_record(self, phase: str) -> Path:
        """Return the file that remembers a finished phase."""
        return self.private / "phases" / f"{phase}.json"

    def gate(self, name: str) -> Path:
        """Return a gate's result file."""
        return self.gates / f"{name}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the workspace for one run and clear what killed runs left half-written.

        Raises:
            ConfigError: If another run holds it, or the folder cannot be written.
        """
        try:
            self.private.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write the workspace ({error.strerror})", where=str(self.root)
            ) from error
        # The system drops the lock when its process dies, so a kill leaves nothing to clean.
        lock = FileLock(self.private / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another run (process {self._holder()}) is using this workspace",
                where=str(self.root),
                fix="wait for it to end, stop it, or give --workspace another folder",
            ) from None
        try:
            (self.private / "pid").write_text(str(os.getpid()), encoding="utf-8")
            sweep_parts(self.root)
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        try:
            return (self.private / "pid").read_text(encoding="utf-8")
        except OSError:
            return "unknown"
