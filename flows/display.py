"""What a person, or a machine, sees while a run goes on."""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gates.verdict import Verdict
from tasks.events import GateRecord, PhaseState, Watcher

MARKS = {"waiting": "·", "running": "▸", "done": "✓", "reused": "=", "failed": "✗"}
COLOURS = {"waiting": "dim", "running": "cyan", "done": "green", "reused": "blue", "failed": "red"}
PATIENCE = 0.5
"""Seconds between two lines of progress for machines."""
GATE_COLOURS = {"passed": "green", "blocked": "red", "waived": "yellow"}


class Silent:
    """Watches nothing; for flows that Prefect starts."""

    def phase_started(self, phase: str) -> None:
        """Ignore it."""

    def phase_finished(self, phase: str, state: PhaseState, seconds: float, note: str) -> None:
        """Ignore it."""

    def advanced(self, phase: str, done: int, total: int, note: str) -> None:
        """Ignore it."""

    def noted(self, phase: str, note: str) -> None:
        """Ignore it."""

    def measured(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore it."""

    def judged(self, record: GateRecord, verdict: Verdict) -> None:
        """Ignore it."""


_watcher: ContextVar[Watcher] = ContextVar("watcher")


def current_watcher() -> Watcher:
    """Return who watches the run in progress."""
    return _watcher.get(Silent())


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let someone watch the runs inside a block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class JsonLines(Silent):
    """One JSON object per event on a stream; the last one is the result."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self.stream = stream
        self.told = time.monotonic()

    def emit(self, event: str, **fields: object) -> None:
        """Write one event."""
        self.stream.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}) + "\n")
        self.stream.flush()

    def phase_started(self, phase: str) -> None:
        """Report a start."""
        self.emit("phase", phase=phase, state="running")

    def phase_finished(self, phase: str, state: PhaseState, seconds: float, note: str) -> None:
        """Report an end."""
        self.emit("phase", phase=phase, state=state, seconds=round(seconds, 3), note=note)

    def advanced(self, phase: str, done: int, total: int, note: str) -> None:
        """Report progress, twice a second at most."""
        now = time.monotonic()
        if now - self.told >= PATIENCE:
            self.told = now
            self.emit("progress", phase=phase, done=done, total=total, what=note)

    def measured(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Report a training step."""
        self.emit("metrics", phase=phase, step=step, **metrics)

    def judged(self, record: GateRecord, verdict: Verdict) -> None:
        """Report a verdict."""
        self.emit("gate", **record.model_dump(mode="json"))


class _Row:
    """One phase on the screen."""

    def __init__(self) -> None:
        self.state, self.note, self.seconds = "waiting", "", 0.0
        self.done, self.total, self.began = 0, 0, 0.0
        self.stage, self.stage_began, self.remark = "", 0.0, ""

    def clock(self) -> float:
        return time.monotonic() - self.began if self.state == "running" else self.seconds


class Screen(Silent):
    """A live list of phases with progress, loss and time left; gates appear as they are judged."""

    def __init__(self, console: Console, phases: tuple[str, ...]) -> None:
        """Show these phases in this order."""
        self.console = console
        self.rows = {phase: _Row() for phase in phases}
        self.gates: dict[str, GateRecord] = {}
        self.after: dict[str, str] = {}
        self.last = phases[0]

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the list on screen while a block runs; plain lines where there is no terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self.render, console=self.console, refresh_per_second=8, transient=False):
            yield

    def render(self) -> RenderableType:
        """Draw the list."""
        grid = Table.grid(padding=(0, 1))
        for phase, row in self.rows.items():
            colour = COLOURS[row.state]
            bar: RenderableType = Text("")
            if row.state == "running" and row.done:
                # Where nobody knows the end, the bar only moves.
                bar = ProgressBar(total=row.total or None, completed=row.done, width=24, pulse=not row.total)
            clock = f"{row.clock():.1f} s" if row.state in ("running", "done", "failed") else ""
            grid.add_row(Text(MARKS[row.state], style=colour), Text(phase, style=colour), Text(clock, style="dim"), bar,
                         Text(self._note(row), overflow="ellipsis", no_wrap=True))  # fmt: skip
            for record in [g for name, g in self.gates.items() if self.after[name] == phase]:
                text = Text(f"gate {record.gate}  {record.status.upper()}", style=GATE_COLOURS[record.status])
                grid.add_row("", Text("└"), "", "", text)
        return Group(grid)

    def _note(self, row: _Row) -> str:
        if row.state != "running" or not row.stage:
            return " · ".join(text for text in (row.note, row.remark) if text)
        if not row.total:
            return f"{row.done:,} {row.stage}"
        spent = time.monotonic() - row.stage_began
        eta = spent / row.done * (row.total - row.done) if row.done else 0.0
        left = f" · {eta:.0f} s left" if row.done else ""
        return f"{row.done:,}/{row.total:,} {row.stage}{left}"

    def phase_started(self, phase: str) -> None:
        """Mark a phase as running."""
        row = self.rows[phase]
        row.state, row.began, self.last = "running", time.monotonic(), phase
        self._plain(f"{phase} ...")

    def phase_finished(self, phase: str, state: PhaseState, seconds: float, note: str) -> None:
        """Mark a phase as ended."""
        row = self.rows[phase]
        row.state, row.seconds, row.note, self.last = state, seconds, note, phase
        self._plain(f"{phase} {state} ({seconds:.1f} s) {note}")

    def advanced(self, phase: str, done: int, total: int, note: str) -> None:
        """Move a phase's bar."""
        row = self.rows[phase]
        if total != row.total or done < row.done:
            row.stage_began = time.monotonic()
        row.done, row.total, row.stage = done, total, note

    def noted(self, phase: str, note: str) -> None:
        """Add a remark to a phase's line."""
        row = self.rows[phase]
        row.remark = note
        self._plain(f"{phase}: {note}")

    def judged(self, record: GateRecord, verdict: Verdict) -> None:
        """Show a verdict under the phase it follows."""
        self.gates[record.gate], self.after[record.gate] = record, self.last
        self._plain(f"gate {record.gate}: {record.status}")

    def _plain(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def gate_table(records: list[GateRecord], *, full: bool = False, stale: Collection[str] = ()) -> Table:
    """Draw gates with the numbers they were judged on.

    Args:
        records: Judged gates, in order.
        full: Show every check; otherwise only limits of the config and checks that failed.
        stale: Names of gates whose evidence has changed since.
    """
    table = Table(title="Gates", title_justify="left", header_style="bold")
    for name in ("gate", "status", "check", "observed", "", "threshold"):
        table.add_column(
            name, no_wrap=name != "check", justify="right" if name in ("observed", "threshold") else "left"
        )
    for record in records:
        chosen = [c for c in record.checks if full or c.get("is_limit") or not c["passed"]]
        status = "stale" if record.gate in stale else record.status
        first = (record.gate, Text(status.upper(), style=GATE_COLOURS.get(status, "red")))
        for number, check in enumerate(chosen):
            style = None if check["passed"] else "red"
            table.add_row(*(first if number == 0 else ("", "")), str(check["name"]), shown(check["observed"]),
                          str(check["comparison"]), shown(check["threshold"]), style=style)  # fmt: skip
        for check in [c for c in record.tried if full or not c["passed"]]:
            # A rung that was tried and left: on record, but no reason to stop.
            table.add_row("", Text("tried", style="dim"), str(check["name"]), shown(check["observed"]),
                          str(check["comparison"]), shown(check["threshold"]), style="dim")  # fmt: skip
        rest = len(record.checks) - len(chosen)
        if rest:
            lead = first if not chosen else ("", "")
            table.add_row(*lead, Text(f"and {rest} checks of the evidence, all passed", style="dim"))
        table.add_section()
    return table


def shown(value: object) -> str:
    """Shorten a value of a check for the table."""
    if isinstance(value, float):
        # Adding zero turns -0.0 into 0.
        return f"{value + 0:.4g}"
    text = str(value)
    return text[:15] + "…" if text.startswith("sha256:") else text
