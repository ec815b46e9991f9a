"""What every phase of one run shares: workspace, tracker, watcher."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, SecretStr

from core.data.config import ExecutionConfig
from core.data.workers import Workers, open_workers
from gates.thresholds import GatesConfig
from tasks.events import PHASES, GateRecord, PhaseState, Watcher
from tasks.tracking import PhaseRun, Tracker
from tasks.workspace import Workspace


class StopHere(Exception):
    """The run reached the phase it was told to stop after."""


@dataclass
class RunContext:
    """One run's surroundings; created by the flow, read by its phases."""

    name: str
    workspace: Workspace
    tracker: Tracker
    watcher: Watcher
    base: Path
    """Folder that relative paths of the config start from."""
    gates: GatesConfig
    rerun_from: str | None = None
    """Phases from this one on run again even if nothing changed."""
    until: str | None = None
    """Last phase to run."""
    threads: int = 1
    """Threads of llama.cpp; spinning threads slow each other down on a shared machine."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    """Where the data phases compute."""
    test_uses: Path | None = None
    """Ledger of every use of a test set; None keeps none."""
    judge_key: SecretStr | None = field(default=None, repr=False)
    """Opens the endpoint of the model that grades answers; only the phase that asks it looks inside."""
    phase_run: PhaseRun | None = None
    """The tracked run of the phase at work."""
    reports: dict[str, BaseModel] = field(default_factory=dict)
    """Report of every finished phase, for the page at the end."""
    timings: list[tuple[str, PhaseState, float, str]] = field(default_factory=list)
    """Phase, state, seconds, note; in order."""
    evidence: dict[str, str] = field(default_factory=dict)
    """Digests of the report files made so far, by path in the workspace."""
    judged: list[GateRecord] = field(default_factory=list)

    def must_rerun(self, phase: str) -> bool:
        """Tell whether --from asks for this phase anew."""
        return self.rerun_from is not None and PHASES.index(phase) >= PHASES.index(self.rerun_from)

    @contextmanager
    def workers(self) -> Iterator[Workers]:
        """Open the processes, of this machine or of a cluster, that a data phase computes in."""
        chosen = self.execution
        with open_workers(chosen.engine, chosen.workers, chosen.address) as workers:
            yield workers

    def advanced(self, phase: str) -> Callable[[int, int, str], None]:
        """Return the function that tells how far a phase is."""
        return functools.partial(self.watcher.advanced, phase)

    def require_in_range(self, phase: str) -> None:
        """Stop before a phase that lies beyond --until.

        Raises:
            StopHere: If it does.
        """
        if self.until is not None and PHASES.index(phase) > PHASES.index(self.until):
            raise StopHere(self.until)


_current: ContextVar[RunContext] = ContextVar("run")


def current() -> RunContext:
    """Return the context of the run in progress."""
    return _current.get()


@contextmanager
def running(context: RunContext) -> Iterator[RunContext]:
    """Make a context current for the duration of a block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
