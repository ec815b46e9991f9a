"""The comparison on the screen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.training.benchmark.reports import Profile
from flows.bench.report import HEAD, PROFILE_HEAD, cells, profile_cells, title_of
from flows.bench.results import Comparison

WIDE = 150
LEFT_OUT = ("p10–p90", "wall", "labelled tok/s", "reserved", "pinned", "loss error")
"""Columns that only the report shows where the screen is narrower."""


class Screen:
    """Tells a person what goes on."""

    def __init__(self) -> None:
        """Write to standard output."""
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            # In a file or a pipe there is room for every column.
            self.console.width = max(self.console.width, WIDE)

    def tell(self, event: str, **fields: Any) -> None:
        """Show one event."""
        if event == "started":
            self.console.print(f"[dim]{escape(Path(fields['model']).name)}: {fields['what']} ...[/dim]")
        elif event == "skipped":
            self.console.print(f"{fields['system']}: skipped: {escape(fields['why'])}")
        elif event == "note":
            self.console.print(f"[yellow]{escape(fields['text'])}[/yellow]")
        elif event == "done":
            self._show(fields["comparisons"], fields["report"])

    def _show(self, found: Sequence[Comparison], report: Path) -> None:
        for comparison in found:
            self.console.print(drawn(comparison, self.console.width))
            for line in comparison.lines:
                if line.problem:
                    self.console.print(
                        f"{line.system}: {line.problem}", style="red", markup=False, soft_wrap=True
                    )
                if line.remark:
                    self.console.print(f"{line.system}: {line.remark}", markup=False, soft_wrap=True)
                for note in line.measured.notes if line.measured else ():
                    self.console.print(f"{line.system}: {note}", markup=False, soft_wrap=True)
                if line.measured and line.measured.profile:
                    self.console.print(drawn_profile(line.measured.profile))
        self.console.print(f"report: {report}", markup=False, soft_wrap=True)


def drawn(comparison: Comparison, width: int) -> Table:
    """Draw the systems of one base; a narrow screen shows the columns that matter most."""
    table = Table(title=title_of(comparison), title_justify="left", header_style="bold")
    wanted = [i for i, name in enumerate(HEAD) if width >= WIDE or name not in LEFT_OUT]
    for i in wanted:
        table.add_column(HEAD[i], justify="left" if i == 0 else "right", no_wrap=True)
    for line in comparison.lines:
        style = "green" if line is comparison.lines[0] and line.ms else "red" if line.problem else None
        row = cells(comparison, line)
        table.add_row(*(escape(row[i]) for i in wanted), style=style)
    return table


def drawn_profile(profile: Profile) -> Table:
    """Draw where the time of a step goes."""
    title = f"Profile: {profile.step_ms:.1f} ms a step; floors at {profile.gemm_tflops:.0f} TFLOP/s"
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(PROFILE_HEAD):
        table.add_column(name, justify="left" if number == 0 else "right")
    for each in profile.classes:
        table.add_row(*(escape(cell) for cell in profile_cells(each, profile)))
    return table
