"""Commands that look and change nothing: validate, gates, doctor."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.artifacts import is_unchanged
from core.errors import ConfigError
from flows.config_file import load_config
from flows.preflight import PreflightReport, preflight
from flows.preflight.learning import Learning, learning
from flows.preflight.learning_view import show_learning
from flows.settings import apply
from gates.verdict import GATE_NAMES
from tasks.events import GateRecord


def validate_run(path: Path, overrides: tuple[str, ...], *, as_json: bool, fast: bool = False) -> int:
    """Check settings, data, hardware, and whether it would learn; what only this machine lacks is a warning.

    Args:
        path: The config file.
        overrides: KEY=VALUE texts.
        as_json: Print for machines.
        fast: Leave out learning one batch by heart.
    """
    config = load_config(path, overrides)
    report = preflight(config, path, Path("workspace") / config.name).for_any_machine()
    looked = Learning(None, skipped="the errors above come first")
    if not report.errors:
        # Spinning threads of two libraries would steal the cores from each other.
        apply({"OMP_WAIT_POLICY": "PASSIVE"})
        looked = learning(config, path, fast=fast)
        report = report.model_copy(update={"findings": (*report.findings, *looked.findings)})
    if as_json:
        seen = looked.report.model_dump(mode="json") if looked.report else None
        print(json.dumps({**report.model_dump(mode="json"), "learning": seen}, indent=2))  # noqa: T201
    else:
        show_preflight(config.name, report)
        show_looked(looked)
    report.raise_errors()
    return 0


def show_looked(looked: Learning) -> None:
    """Print what the look at the tokens found, or why there was none."""
    console = Console(highlight=False)
    if looked.report is not None:
        show_learning(console, looked.report)
    elif looked.skipped:
        console.print(f"[dim]will it learn? not looked at: {escape(looked.skipped)}[/dim]")


def show_preflight(name: str, report: PreflightReport) -> None:
    """Print what a run would need and what it would stumble over."""
    console = Console(highlight=False)
    size = f", {report.parameters / 1e6:,.1f} M parameters" if report.parameters else ""
    console.print(f"[bold]{name}[/bold]  on {report.device}{size}")
    if report.estimates:
        console.print(estimate_table(report))
    for finding in report.warnings:
        fix = f"\n  {finding.fix}" if finding.fix else ""
        console.print(f"[yellow]warning[/yellow] {finding.where}: {finding.what}{fix}")
    for finding in report.notes:
        fix = f": {finding.fix}" if finding.fix else ""
        console.print(f"[dim]note[/dim] {finding.what}{fix}", highlight=False)
    if not report.errors:
        console.print("[green]valid[/green]" + (" (with warnings)" if report.warnings else ""))


def estimate_table(report: PreflightReport) -> Table:
    """Draw the need of every phase beside what there is."""
    table = Table(header_style="bold")
    for column in ("phase", "of", "needs", "available"):
        table.add_column(column, justify="right" if column in ("needs", "available") else "left")
    for row in report.estimates:
        style = None if row.is_enough else "yellow"
        table.add_row(
            row.phase, row.place, f"{row.needed_gb:.2f} GB", f"{row.available_gb:.1f} GB", style=style
        )
    return table


class FoundGate(NamedTuple):
    """A gate's record, and which of its evidence has changed since."""

    record: GateRecord
    changed: list[str]

    @property
    def is_open(self) -> bool:
        """Passed or waived, on evidence that is still there."""
        return self.record.status != "blocked" and not self.changed


def show_gates(workspace: Path, *, full: bool, as_json: bool) -> int:
    """Print the gates of a workspace; evidence that changed since makes a gate stale.

    Returns:
        0 if all five are passed or waived on evidence that is still there, else 3.
    """
    found = [judged for name in GATE_NAMES if (judged := read_gate(workspace, name))]
    if not found:
        raise ConfigError(
            "no gate has been judged here",
            where=str(workspace),
            fix="run the factory first: factory run CONFIG",
        )
    missing = [str(name) for name in GATE_NAMES if name not in {gate.record.gate for gate in found}]
    if as_json:
        rows = [{**gate.record.model_dump(mode="json"), "changed_evidence": gate.changed} for gate in found]
        print(json.dumps({"gates": rows, "not_judged": missing}, indent=2))  # noqa: T201
    else:
        print_gates(found, missing, full=full)
    return 0 if not missing and all(gate.is_open for gate in found) else 3


def print_gates(found: list[FoundGate], missing: list[str], *, full: bool) -> None:
    """Print the table, waivers, and what has not been judged."""
    from flows.display import gate_table

    console = Console(highlight=False)
    stale = {gate.record.gate for gate in found if gate.changed}
    console.print(gate_table([gate.record for gate in found], full=full, stale=stale))
    for record, changed in found:
        if record.waiver:
            text = f"{record.gate} waived by {record.waiver['by']} at {record.waiver['at']}: "
            console.print(text + record.waiver["reason"], markup=False)
        if record.status == "blocked":
            console.print(f"[red]blocked[/red] {escape(record.summary)}")
            for hint in record.hints:
                console.print(f"[yellow]hint[/yellow] {escape(hint)}")
        if changed:
            console.print(
                f"[red]stale[/red] {record.gate}: changed since it was judged: {', '.join(changed)}"
            )
    if missing:
        console.print(f"not judged: {', '.join(missing)}")


def read_gate(workspace: Path, name: str) -> FoundGate | None:
    """Read one gate's file and hold its evidence against the digests in it."""
    path = workspace / "gates" / f"{name}.json"
    try:
        record = GateRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"not a gate file ({error})", where=str(path), fix="run the factory again"
        ) from error
    changed = [file for file, digest in record.evidence.items() if not is_unchanged(workspace / file, digest)]
    return FoundGate(record, changed)


def show_doctor(*, fast: bool, as_json: bool) -> int:
    """Print what this machine has and what is missing."""
    from flows.doctor import examine
    from flows.settings import read_settings

    findings = examine(read_settings(), fast=fast)
    if as_json:
        json.dump([finding.model_dump(mode="json") for finding in findings], sys.stdout, indent=2)
        print()  # noqa: T201
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark = "[green]ok[/green]     " if finding.ok else "[red]missing[/red]"
            fix = f"\n          {finding.fix}" if finding.fix and not finding.ok else ""
            console.print(f"{mark} {finding.name}: {finding.detail}{fix}")
    return 0 if all(finding.ok for finding in findings) else 2
