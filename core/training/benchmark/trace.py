"""Read a Chrome trace of torch.profiler: which kernels ran, what launched them, and when nothing ran."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
OPERATION = "cpu_op"


class Work(NamedTuple):
    """One kernel or copy; without a GPU, an operation of the CPU less those inside it."""

    name: str
    operation: str
    """What launched it, such as aten::mm; empty if nothing that the profiler knows."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the operation's tensors."""
    start: float
    """Microseconds."""
    microseconds: float
    bytes: int
    """Of a copy, or a fill."""
    call: int | None = None
    """The same for all that one call of the operation launched; None if that is not known."""

    @property
    def is_fill(self) -> bool:
        """Tell whether it only sets memory, such as the counters of a product that is split."""
        return self.name.startswith("Memset")


class Trace(NamedTuple):
    """All work of a profile."""

    work: tuple[Work, ...]
    span: float
    """Microseconds from the start of the first to the end of the last."""
    idle: float
    """Of them, with nothing running on any stream."""


def read_trace(path: Path) -> Trace:
    """Read a file that ``export_chrome_trace`` wrote, compressed or not."""
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        return parse(json.load(file)["traceEvents"])


def parse(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Take the work out of a trace's events."""
    timed = [event for event in events if event.get("ph") == "X" and "dur" in event]
    operations = [event for event in timed if event.get("cat") == OPERATION]
    launchers = {e["args"]["External id"]: e for e in operations if "External id" in e.get("args", {})}
    work = [_kernel(event, launchers) for event in timed if event.get("cat") in ON_GPU]
    work = work or _alone(operations)
    intervals = sorted((w.start, w.start + w.microseconds) for w in work if w.microseconds > 0)
    if not work or not intervals:
        return Trace(tuple(work), 0.0, 0.0)
    span = max(end for _, end in intervals) - intervals[0][0]
    return Trace(tuple(work), span, span - covered(intervals))


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals that are sorted by their start."""
    total, reached = 0.0, intervals[0][0]
    for start, end in intervals:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _kernel(event: Mapping[str, Any], launchers: Mapping[int, Mapping[str, Any]]) -> Work:
    given = event.get("args", {})
    launcher = launchers.get(given.get("External id", -1), {})
    return Work(
        str(event["name"]), str(launcher.get("name", "")), _shapes(launcher), float(event["ts"]), float(event["dur"]),
        int(given.get("bytes", 0)), given["External id"] if launcher else None,
    )  # fmt: skip


def _alone(operations: Sequence[Mapping[str, Any]]) -> list[Work]:
    """Return operations with the time of those that they call taken off."""
    found: list[Work] = []
    open_: dict[Any, list[tuple[float, int]]] = {}
    for event in sorted(operations, key=lambda e: (float(e["ts"]), -float(e["dur"]))):
        start, length = float(event["ts"]), float(event["dur"])
        callers = open_.setdefault(event.get("tid"), [])
        while callers and callers[-1][0] <= start:
            callers.pop()
        if callers:
            place = callers[-1][1]
            found[place] = found[place]._replace(microseconds=max(0.0, found[place].microseconds - length))
        callers.append((start + length, len(found)))
        found.append(Work(str(event["name"]), str(event["name"]), _shapes(event), start, length, 0))
    return found


def _shapes(event: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    dims = event.get("args", {}).get("Input Dims", [])
    return tuple(tuple(d) for d in dims if isinstance(d, list) and all(isinstance(n, int) for n in d))
