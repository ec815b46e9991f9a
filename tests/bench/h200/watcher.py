"""Look at a run from outside, as another program would: its status file, its GPU memory, its records."""

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil


class Watcher(threading.Thread):
    """Reads the live status file and the GPU's process memory while a run goes on."""

    def __init__(self, status: Path, pid: int, kill_at: int | None, *, until_trained: bool = False) -> None:
        super().__init__(daemon=True)
        self.status, self.pid, self.kill_at, self.until_trained = status, pid, kill_at, until_trained
        self.has_trained = self.was_running = False
        self.reads = self.changes = self.broken = self.gpu_mib = 0
        self.steps: set[int] = set()
        self.trail: list[tuple[float, int]] = []
        self.longest_gap, self.killed_at = 0.0, 0
        self.done = threading.Event()
        self._last, self._changed = "", 0.0

    def run(self) -> None:
        """Poll ten times a second."""
        asked = 0.0
        while not self.done.wait(0.1):
            self.look()
            if time.monotonic() - asked > 1:
                asked = time.monotonic()
                self.gpu_mib = max(self.gpu_mib, gpu_memory(self.pid))

    def look(self) -> None:
        """Read the file as another program would."""
        try:
            text = self.status.read_text(encoding="utf-8")
        except OSError:
            return
        self.reads += 1
        try:
            content = json.loads(text)
        except ValueError:
            self.broken += 1
            return
        if text == self._last:
            return
        now = time.monotonic()
        if self._changed and content["running"] and content["step"] > 1:
            self.longest_gap = max(self.longest_gap, now - self._changed)
        self._last, self._changed, self.changes = text, now, self.changes + 1
        self.steps.add(content["step"])
        self.trail.append((now, content["step"]))
        self.was_running = self.was_running or content["running"]
        if self.until_trained and self.was_running and content["completed_at"] and not self.has_trained:
            self.has_trained = True
            time.sleep(1)  # the sampler inside takes its last look
            os.killpg(self.pid, signal.SIGKILL)
        if self.kill_at and content["running"] and content["step"] >= self.kill_at and not self.killed_at:
            self.killed_at = content["step"]
            os.killpg(self.pid, signal.SIGKILL)

    def told(self) -> dict[str, Any]:
        """Sum up what was read."""
        return {
            "reads": self.reads, "changes": self.changes, "broken": self.broken, "steps_seen": len(self.steps),
            "longest_gap_s": round(self.longest_gap, 2), "gpu_process_mib": self.gpu_mib, "killed_at": self.killed_at,
        }  # fmt: skip


def gpu_memory(pid: int) -> int:
    """Return the MiB a process and those it started hold on the GPU, 0 where there is none to ask."""
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout  # fmt: skip
        held = dict(line.split(",") for line in out.splitlines() if "," in line)
        ours = [str(pid), *(str(child.pid) for child in psutil.Process(pid).children(recursive=True))]
        known = [int(held[each]) for each in ours if each in held]
        # In a container nvidia-smi may tell other numbers than the processes have.
        return sum(known) if known else max(map(int, held.values()), default=0)
    except (OSError, subprocess.SubprocessError, ValueError, psutil.NoSuchProcess):
        return 0


def phase_seconds(log: Path) -> dict[str, float]:
    """Read how long each phase took from the run's own JSON lines."""
    found: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{") and '"phase"' in line:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("seconds") is not None:
                found[event["phase"]] = round(event["seconds"], 1)
    return found


def logged_at(database: Path, experiment: str) -> list[float]:
    """Return when each step's loss was recorded in MLflow, in milliseconds, of the newest run."""
    if not database.is_file():
        return []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        rows = db.execute(
            "select m.run_uuid, m.step, m.timestamp from metrics m join runs r on r.run_uuid = m.run_uuid "
            "join experiments e on e.experiment_id = r.experiment_id "
            "where m.key = 'loss' and e.name = ? and m.step > 0 order by m.timestamp",
            (experiment,),
        ).fetchall()
    newest = rows[-1][0] if rows else None
    return [float(stamp) for run, _, stamp in rows if run == newest]


def logged_losses(log: Path) -> list[float]:
    """Read the loss of every step from the plain training log; a step done twice counts once."""
    found: dict[int, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        parts = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if "loss" in parts:
            found[int(parts["step"])] = float(parts["loss"])
    return [found[step] for step in sorted(found)]


def told_at(log: Path) -> list[float]:
    """Return when each step's loss was told in the run's own JSON lines, in milliseconds."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith('{"event": "metrics"') and '"loss"' in line:
            found.append(1000 * float(json.loads(line)["time"]))
    return found
