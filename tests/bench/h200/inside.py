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

INTERVAL = 0.02
SETTLED = 3
"""Steps after which the peak of the steady state is measured."""


class Sampler(threading.Thread):
    """Watches the status file and the memory counters."""

    def __init__(self, note: Path, status: Path) -> None:
        super().__init__(daemon=True)
        self.note, self.status = note, status
        self.seen: dict[str, Any] = {"pid": os.getpid(), "running": False}

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.sample()
            time.sleep(INTERVAL)

    def sample(self) -> None:
        """Take one look; a new stage is written down at once."""
        try:
            content = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if content.get("started_at") is None or content["last_updated"] == self.seen.get("last_updated"):
            return
        self.seen["last_updated"] = content["last_updated"]
        running, step = bool(content["running"]), int(content["step"])
        # An old run's file says running or not as well: only what this process began counts.
        if running and not self.seen["running"]:
            self._begin()
        elif self.seen["running"]:
            self._during(running, step)
        self._write()

    def _begin(self) -> None:
        self.seen |= {"running": True, "before": _peaks(), "began": time.time()}
        _reset()

    def _during(self, running: bool, step: int) -> None:
        if step >= 1 and "first_steps" not in self.seen:
            self.seen["first_steps"] = _peaks()  # loading, attaching and the first step
        if step >= SETTLED and "settled" not in self.seen:
            self.seen["settled"] = True
            self.seen["first_steps"] = _largest(self.seen.get("first_steps"), _peaks())
            _reset()
        if not running:
            key = "steady" if "settled" in self.seen else "first_steps"
            self.seen[key] = _peaks()
            self.seen |= {"running": False, "ended": time.time(), "status_at_end": content_of(self.status)}
            _reset()
        elif "settled" in self.seen:
            self.seen["steady"] = _peaks()

    def finish(self) -> None:
        """Note what came after training: merging."""
        self.seen["after"] = _peaks()
        self._write()

    def _write(self) -> None:
        part = self.note.with_suffix(".part")
        part.write_text(json.dumps(self.seen, indent=1), encoding="utf-8")
        part.replace(self.note)


def content_of(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _largest(one: dict[str, int] | None, other: dict[str, int]) -> dict[str, int]:
    return {key: max(value, (one or {}).get(key, 0)) for key, value in other.items()}


def _peaks() -> dict[str, int]:
    """Return the allocator's peaks; without a GPU the resident size."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "now": torch.cuda.memory_allocated(),
        }
    import psutil

    size = psutil.Process().memory_info().rss
    return {"allocated": size, "reserved": size, "now": size}


def _reset() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def main() -> int:
    """Sample while the command line runs."""
    note, workspace, *arguments = sys.argv[1:]
    sampler = Sampler(Path(note), Path(workspace) / ".factory/training-status.json")
    sys.argv = ["factory", *arguments]
    from flows.cli import app, guarded

    sampler.start()
    code = guarded(app)
    sampler.finish()
    return code


# Worker processes import this file too, and must not start a run of their own.
if __name__ == "__main__":
    sys.exit(main())
