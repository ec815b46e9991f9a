"""Train in a process of its own: the parent's side.

An engine that edits the libraries it uses keeps its edits to itself there, and is imported before them. What is
told on the way (metrics, checkpoints, notices) reaches the same listeners as training in this process would.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from core.artifacts import scratch_beside
from core.errors import EngineFailed
from core.models.frameworks import FrameworkNotice
from core.sinks import MetricSink
from core.training.handover import hand_over, progress_of, tuned_of
from core.training.job import Job, rebuilt
from core.training.loop import Progress
from core.training.rows import SftInputs
from core.training.sft import Tuned
from core.training.worker import SIGNALLED

ROOT = Path(__file__).resolve().parents[2]
GRACE = 10.0
"""Seconds that the process may take to stop; a step or a kernel under way cannot be interrupted."""
TAIL, TAIL_BYTES = 12, 8000
"""Lines of the log that an error repeats."""


def train_apart(
    job: Job,
    inputs: SftInputs,
    *,
    log: Path,
    sink: MetricSink,
    on_checkpoint: Callable[[], None],
    on_start: Callable[[Progress], None],
) -> Tuned:
    """Load, adapt, train and save in a child process, resuming from the newest checkpoint of the same fingerprint.

    The child ends when this process does, in whatever way. An exception here, Ctrl-C among them, ends it first.

    Args:
        job: What is to be trained, and where it goes.
        inputs: Tokenized training and validation examples.
        log: Gets, at its end, what libraries print.
        sink: Receives the metrics of every step.
        on_checkpoint: Called after each saved state.
        on_start: Called once with the progress training continues from.

    Returns:
        What ``core.training.sft.finetune`` returned there; the adapter lies at ``job.adapter``.

    Raises:
        UserError: What it raised there, and so for ``TrainingFailed``, ``MemoryError`` and a full disk.
        EngineFailed: If it ended in another way; with the last lines of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(job.checkpoints) as folder, log.open("ab") as printed:
        hand_over(folder, job, inputs)
        with _Process(folder, printed) as process:
            for event in process.events():
                match event["event"]:
                    case "metrics":
                        sink.log(event["step"], event["metrics"])
                    case "saved":
                        on_checkpoint()
                    case "started":
                        on_start(progress_of(event["progress"]))
                    case "notice":
                        warnings.warn(event["text"], FrameworkNotice, stacklevel=2)
                    case "done":
                        return tuned_of(event["tuned"])
                    case "error":
                        raise rebuilt(event) or process.failure(event["what"])
            raise process.ending()


class _Process:
    """The child: started on entry, gone after exit."""

    def __init__(self, folder: Path, printed: IO[bytes]) -> None:
        self._folder, self._log, self._from = folder, Path(printed.name), printed.tell()
        self._printed = printed

    def __enter__(self) -> "_Process":
        """Start it."""
        self._events, channel = os.pipe()
        command = [sys.executable, "-X", "faulthandler", "-m", "core.training.worker"]
        try:
            self._process = subprocess.Popen(
                [*command, str(self._folder.resolve()), str(channel)],
                # Never written to: it closes with this process, and the child sees that.
                stdin=subprocess.PIPE,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                pass_fds=(channel,),
                cwd=ROOT,
            )
        except BaseException:
            os.close(self._events)
            raise
        finally:
            os.close(channel)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Make sure that it has ended: wait for it after its last word, stop it politely after an error."""
        try:
            if kind is not None:
                self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._events)
            if self._process.stdin:
                self._process.stdin.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what it tells until it has nothing more to say."""
        rest = b""
        for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines)

    def _pieces(self) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while True:
                # A process forked by a library may hold the channel open: its end alone is no sign.
                has_ended = self._process.poll() is not None
                if selector.select(0 if has_ended else 0.25):
                    if not (piece := os.read(self._events, 1 << 16)):
                        return
                    yield piece
                elif has_ended:
                    return

    def ending(self) -> BaseException:
        """Say how it ended without a word."""
        code = self._process.wait()
        number = -code if code < 0 else code - SIGNALLED
        if number == signal.SIGINT:
            # The terminal's Ctrl-C went to both, and was heard there first.
            return KeyboardInterrupt()
        if number not in list(signal.Signals):
            return self.failure(f"exit code {code}")
        why = {
            signal.SIGKILL: "; the system does that where main memory runs out",
            signal.SIGTERM: "; another program asked it to stop",
        }.get(signal.Signals(number), "")
        return self.failure(f"it was ended by signal {number} ({signal.Signals(number).name}){why}")

    def failure(self, what: str) -> EngineFailed:
        """Describe an unexpected end, with what was printed last."""
        told = f"training in a process of its own failed: {what}"
        lines = _last_lines(self._log, self._from)
        return EngineFailed("\n    ".join([told, *lines, f"all of it: {self._log}"]))


def _last_lines(log: Path, start: int) -> list[str]:
    with log.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, end - TAIL_BYTES))
        return stream.read().decode("utf-8", "replace").strip().splitlines()[-TAIL:]
