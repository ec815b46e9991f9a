"""Run a command and see what it and everything it starts take: wall time, processor time, peak memory."""

import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

INTERVAL = 0.1
PSS_EVERY = 10
"""Samples between looks at shared memory, which make the kernel walk every page."""


class Usage(NamedTuple):
    """What a command took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all processes together; of a process that ends, at most ``INTERVAL`` is missed."""
    rss: int
    """Bytes: the largest sum of resident memory over the process tree; shared pages count once per process."""
    pss: int
    """Bytes: the same with shared pages divided among those who share them."""
    output: str
    """What it printed."""


def measure(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end.

    Raises:
        RuntimeError: If it fails; the end of its stderr is in the message.
    """
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(env or {})}
        )
        watch = Watch(child.pid)
        output, _ = child.communicate()
    wall = time.perf_counter() - started
    watch.stop()
    if child.returncode:
        tail = log.read_text(encoding="utf-8")[-3000:]
        raise RuntimeError(f"{' '.join(command)} failed with {child.returncode}:\n{tail}")
    return Usage(wall, watch.cpu, watch.rss, watch.pss, output)


class Watch:
    """Samples a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        self.rss = self.pss = self._samples = 0
        self._seconds: dict[tuple[int, float], float] = {}
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def cpu(self) -> float:
        """Seconds of processor time seen so far."""
        return sum(self._seconds.values())

    def now(self) -> float:
        """Look at once; return the seconds of processor time so far."""
        self._sample()
        return self.cpu

    def stop(self) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            self._sample()
            self._done.wait(INTERVAL)

    def _sample(self) -> None:
        rss = pss = 0
        shared = self._samples % PSS_EVERY == 0
        self._samples += 1
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                memory = process.memory_full_info() if shared else process.memory_info()
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            rss, pss = rss + memory.rss, pss + (memory.pss if shared else 0)
        self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)


def shown(command: Sequence[str]) -> str:
    """Return a command as one would type it in the repository."""
    here = f"{Path(__file__).parents[2]}/"
    return shlex.join(["python" if word == sys.executable else word.removeprefix(here) for word in command])


def machine() -> str:
    """Return what this machine is, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
