"""Commands that look and change nothing: validate, gates, doctor."""

import json
import sys
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from core.artifacts import path_digest
from core.errors import ConfigError
from flows.config_file import load_config
from flows.preflight import PreflightReport, preflight
from gates.verdict import GATE_NAMES
from tasks.events import GateRecord


def validate_run(path: Path, overrides: tuple[str, ...], *, as_json: bool) -> int:
    """Check settings, data and hardware; what only this machine lacks is a warning."""
    config = load_config(path, overrides)
    report = preflight(config, path, Path("workspace") / config.name).for_any_machine()
    if as_json:
        print(report.model_dump_json(indent=2))  # noqa: T201
    else:
        show_preflight(config.name, report)
    report.raise_errors()
    return 0


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
    if not report.errors:
        console.print("[green]valid[/green]" + (" (with warnings)" if report.warnings else ""))


def estimate_table(report: PreflightReport) -> Table:
    """Draw the need of every phase beside what there is."""
    table = Table(header_style="bold")
    for column in ("phase", "of", "needs", "available"):
        table.add_column(column, justify="right" if column in ("needs", "available") else "left")
    for row in report.estimates:
        style = None if row.is_enough else "yellow"
        table.add_row(row.phase, row.place, f"{row.needed_gb:.2f} GB", f"{row.available_gb:.1f} GB", style=style)
    return table


def show_gates(workspace: Path, *, full: bool, as_json: bool) -> int:
    """Print the gates of a workspace; evidence that changed since makes a gate stale.

    Returns:
        0 if all five are passed or waived on evidence that is still there, else 3.
    """
    records = [judged for name in GATE_NAMES if (judged := read_gate(workspace, name))]
    if not records:
        raise ConfigError(
            "no gate has been judged here", where=str(workspace), fix="run the factory first: factory run CONFIG"
        )
    missing = [name for name in GATE_NAMES if name not in {record.gate for record in records}]
    if as_json:
        rows = [record.model_dump(mode="json") for record in records]
        json.dump({"gates": rows, "not_judged": missing}, sys.stdout, indent=2)
        print()  # noqa: T201
    else:
        print_gates(records, missing, full=full)
    is_open = not missing and all(record.status in ("passed", "waived") for record in records)
    return 0 if is_open else 3


def print_gates(records: list[GateRecord], missing: list[str], *, full: bool) -> None:
    """Print the table, waivers, and what has not been judged."""
    from flows.display import gate_table

    console = Console(highlight=False)
    console.print(gate_table(records, full=full))
    for record in records:
        if record.waiver:
            console.print(f"{record.gate} waived by {record.waiver['by']} at {record.waiver['at']}: "
                          f"{record.waiver['reason']}")  # fmt: skip
        if record.status in ("blocked", "stale"):
            console.print(f"[red]{record.status}[/red] {record.summary}")
    if missing:
        console.print(f"not judged: {', '.join(missing)}")


def read_gate(workspace: Path, name: str) -> GateRecord | None:
    """Read one gate's file and check that its evidence is unchanged."""
    path = workspace / "gates" / f"{name}.json"
    try:
        record = GateRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigError(f"not a gate file ({error})", where=str(path), fix="run the factory again") from error
    changed = [file for file, digest in record.evidence.items() if not _is_same(workspace / file, digest)]
    if not changed:
        return record
    summary = f"{name}: its evidence changed after it was judged: {', '.join(changed)}"
    return record.model_copy(update={"status": "stale", "passed": False, "summary": summary})


def _is_same(path: Path, digest: str) -> bool:
    return path.exists() and path_digest(path) == digest


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
