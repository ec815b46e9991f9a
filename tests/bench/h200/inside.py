"""Run the ``factory`` command line and note, from inside its process, how much memory its finetune phase takes.

    python -m tests.bench.h200.inside NOTE.json WORKSPACE run CONFIG --workspace WORKSPACE ...

Everything that computes is the program's own; a thread beside it reads the live status file and the allocator's
counters. The note is written at every change, so that a killed process leaves it too.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 0.02
SETTLED = 3
"""Steps after which the peak of the steady state is measured."""


class Sampler(threading.Thread):
    """Watches the status file and the memory counters.

    Stages: ``before`` training (measuring the base), ``start`` (loading, attaching, first steps), ``steady``, and
    ``after`` (merging). The counters' peak restarts with each; the largest value seen in a stage is kept.
    """

    def __init__(self, note: Path, status: Path) -> None:
        super().__init__(daemon=True)
        self.note, self.status = note, status
        self.stage, self.resumed_at, self.last = "before", 0, ""
        # A killed run's file still says that it runs; the session corrects it before anything trains.
        self.is_stale = _says_running(status)
        self.seen: dict[str, Any] = {"pid": os.getpid()}

    def run(self) -> None:
        """Sample until the process ends."""
        written = 0.0
        while True:
            self.sample()
            if time.monotonic() - written > 0.5:
                self.write()
                written = time.monotonic()
            time.sleep(INTERVAL)

    def sample(self) -> None:
        """Take one look."""
        self.seen[self.stage] = _largest(self.seen.get(self.stage), _peaks())
        try:
            text = self.status.read_text(encoding="utf-8")
            content = json.loads(text) if text != self.last else None
        except (OSError, ValueError):
            return
        if content is None:
            return
        self.last = text
        self.is_stale = self.is_stale and content["running"]
        if self.is_stale or (self.stage == "before" and not content["running"]):
            return
        stage = self._stage(bool(content["running"]), int(content["step"]))
        if stage != self.stage:
            self.seen[f"{stage}_at"] = time.time()
            self.stage = stage
            _reset()
            self.write()

    def _stage(self, running: bool, step: int) -> str:
        if self.stage == "before":
            return "start"
        if self.stage == "start" and step >= SETTLED:
            # A resumed run announces the step it continues from before it takes one.
            if not self.resumed_at:
                self.resumed_at = step
            if step > self.resumed_at:
                return "steady"
        return self.stage if running else "after"

    def write(self) -> None:
        """Write down what was seen."""
        part = self.note.with_suffix(".part")
        part.write_text(json.dumps(self.seen, indent=1), encoding="utf-8")
        part.replace(self.note)


def _says_running(status: Path) -> bool:
    try:
        return bool(json.loads(status.read_text(encoding="utf-8"))["running"])
    except (OSError, ValueError, KeyError):
        return False


def _largest(one: dict[str, int] | None, other: dict[str, int]) -> dict[str, int]:
    return {key: max(value, (one or {}).get(key, 0)) for key, value in other.items()}


def _peaks() -> dict[str, int]:
    """Return the allocator's peaks; without a GPU the resident size."""
    if cuda := _cuda():
        return {
            "allocated": cuda.max_memory_allocated(),
            "reserved": cuda.max_memory_reserved(),
            "now": cuda.memory_allocated(),
        }
    size = psutil.Process().memory_info().rss
    return {"allocated": size, "reserved": size, "now": size}


def _reset() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _cuda() -> Any:
    """Return torch.cuda if this process uses it; the import may be under way in the other thread."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    ready = cuda is not None and hasattr(cuda, "max_memory_allocated") and hasattr(cuda, "is_initialized")
    return cuda if ready and cuda.is_initialized() else None


def main() -> int:
    """Sample while the command line runs."""
    note, workspace, *arguments = sys.argv[1:]
    sampler = Sampler(Path(note), Path(workspace) / ".factory/training-status.json")
    sys.argv = ["factory", *arguments]
    from flows.cli import app, guarded

    sampler.start()
    code = guarded(app)
    sampler.write()
    return code


# Worker processes import this file too, and must not start a run of their own.
if __name__ == "__main__":
    sys.exit(main())
