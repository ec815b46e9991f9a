"""``factory bench finetune``: one training step, ours and the peers', measured alike and shown only where it is right."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.training.benchmark.case import Case, System
from core.training.benchmark.reports import Measured, bar_of
from flows.bench.children import Children
from flows.bench.options import Asked, Options, for_cpu, understood, writable
from flows.bench.peers import obstacles
from flows.bench.report import report_folder, write_report
from flows.bench.results import Comparison, Line, line_of
from flows.settings import read_settings

DONE, FAILED = 0, 1
TOY_NOTE = "no GPU: toy shapes on the CPU, to try the path; these are no measurements"
Tell = Callable[..., None]


class Place(NamedTuple):
    """Where things go."""

    out: Path
    """Reports and traces."""
    bases: Path
    """Models of random weights."""


def bench_finetune(asked: Asked, *, out: Path | None, scratch: Path | None, as_json: bool) -> int:
    """Measure and report.

    Args:
        asked: The options as typed.
        out: Where the report goes; None chooses.
        scratch: Where random bases lie; None takes the cache.
        as_json: One JSON object per line instead of a table.

    Returns:
        0, or 1 if ours has no speed to show.

    Raises:
        UserError: For an option that makes no sense, or a folder that cannot be written to.
    """
    options = understood(asked)
    has_gpu = _sees_gpu()
    options = options if has_gpu else for_cpu(options)
    bases = scratch or read_settings().cache / "bench"
    place = Place(writable("--out", report_folder(out)), writable("--scratch", bases))
    tell = emit if as_json else _screen()
    if not has_gpu:
        tell("note", text=TOY_NOTE)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        children = Children(Path(folder), place.bases.resolve(), options.timeout)
        found = [Comparer(children, options, place.out, tell).compare(model) for model in options.models]
    markdown, data = write_report(place.out, found, notes=() if has_gpu else (TOY_NOTE,))
    if as_json:
        lines = [each.model_dump(mode="json") for each in found]
        emit("result", report=str(markdown), data=str(data), comparisons=lines)
    else:
        tell("done", comparisons=found, report=markdown)
    return ending(found)


def ending(found: Sequence[Comparison]) -> int:
    """Return the exit code: 1 if ours has no speed to show on some base, whatever became of the peers."""
    return DONE if all(each.lines[0].ms for each in found) else FAILED


class Comparer:
    """Runs all systems on one base after another."""

    def __init__(self, children: Children, options: Options, out: Path, tell: Tell) -> None:
        """Remember what is asked for, and who is told."""
        self.children, self.options, self.out, self.tell = children, options, out, tell
        self.has_gpu = options.case.has_gpu
        self.missing = obstacles(options.systems, has_gpu=self.has_gpu)
        for system, why in self.missing.items():
            tell("skipped", system=system, why=why)

    def compare(self, model: str) -> Comparison:
        """Make the base and the reference, then run the systems, in turn and back again for more rounds."""
        self.tell("started", model=model, what="base")
        base = self.children.base(model, tiny=not self.has_gpu)
        case = self.options.case.model_copy(update={"model": str(base)})
        case, problem = self._with_reference(case, model)
        runnable = [system for system in self.options.systems if system not in self.missing]
        found: dict[System, list[Measured]] = {system: [] for system in runnable}
        for number in range(self.options.rounds):
            for system in runnable if number % 2 == 0 else reversed(runnable):
                found[system].append(self._measure(case, system, model, number))
        stock = [each.parity for each in found.get("hf", []) if each.parity]
        bar = bar_of(min(stock, key=lambda each: each.worst_cosine, default=None))
        lines = [self._line(system, found.get(system, []), problem, bar) for system in self.options.systems]
        return Comparison(model=model, case=case, lines=tuple(lines)).checked()

    def _with_reference(self, case: Case, model: str) -> tuple[Case, str | None]:
        self.tell("started", model=model, what="reference")
        file = self.children.scratch / f"reference-{Path(case.model).name}.safetensors"
        asked = case.model_copy(update={"reference": str(file), "system": "hf"})
        made = self.children.measure(asked, reference=True)
        return (case, made.error) if made.error else (case.model_copy(update={"reference": str(file)}), None)

    def _measure(self, case: Case, system: System, model: str, number: int) -> Measured:
        self.tell("started", model=model, what=system)
        more: dict[str, Any] = {"system": system}
        if self.options.profile and system == self.options.systems[0] and number == 0:
            more["trace"] = str(self.out.resolve() / f"trace-{Path(model).name}-{system}.json.gz")
        measured = self.children.measure(case.model_copy(update=more))
        self.tell("measured", model=model, system=system, result=measured)
        return measured

    def _line(self, system: System, rounds: list[Measured], problem: str | None, bar: float) -> Line:
        if system in self.missing:
            return Line(system=system, problem=f"skipped: {self.missing[system]}")
        line = line_of(system, rounds, bar)
        if problem and not rounds[0].error:
            return Line(
                system=system, problem=f"refused: there is no reference: {problem}", measured=line.measured
            )
        return line


def emit(event: str, **fields: Any) -> None:
    """Write one event as a line of JSON."""
    plain = {k: v.model_dump(mode="json") if isinstance(v, Measured) else v for k, v in fields.items()}
    sys.stdout.write(json.dumps({"event": event, **plain}) + "\n")
    sys.stdout.flush()


def _screen() -> Tell:
    from flows.bench.table import Screen

    return Screen().tell


def _sees_gpu() -> bool:
    from core.models.devices import pick_device

    return pick_device().type == "cuda"
