"""Processes that make models and measure, one at a time, each with a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

from core.artifacts import write_json
from core.errors import EngineFailed
from core.models.random_base.shapes import SHAPES, is_made
from core.training.benchmark.case import Case
from core.training.benchmark.reports import Measured
from flows.settings import measuring_environment

TAIL = 6
"""Lines of a process's output that an error repeats."""


class Children:
    """Starts processes; what they print goes to files in one folder."""

    def __init__(self, scratch: Path, bases: Path, timeout: int) -> None:
        """Work in ``scratch``; keep bases that were made in ``bases``."""
        self.scratch, self.bases, self.timeout = scratch, bases, timeout
        self.count = 0

    def base(self, name: str, *, tiny: bool) -> Path:
        """Return the folder of a model; a named shape is drawn at random on first use, and when its recipe changed.

        Raises:
            EngineFailed: If that did not work.
        """
        if name not in SHAPES:
            return Path(name)
        folder = self.bases / (f"{name}-tiny" if tiny else name)
        if not is_made(folder, name, tiny=tiny):
            command = ["core.models.random_base", name, str(folder), *(["--tiny"] if tiny else [])]
            try:
                code, log = self._run(command)
            except subprocess.TimeoutExpired as late:
                raise EngineFailed(f"the base {name} was not made after {self.timeout} seconds") from late
            if code:
                raise EngineFailed(f"the base {name} could not be made: {last_lines(log)}")
        return folder

    def measure(self, case: Case, *, reference: bool = False) -> Measured:
        """Measure one case; whatever goes wrong in its process is in what is returned."""
        asked, result = self.scratch / "case.json", self.scratch / "result.json"
        result.unlink(missing_ok=True)
        write_json(asked, case.model_dump(mode="json"))
        command = [
            "core.training.benchmark",
            str(asked),
            str(result),
            *(["--reference"] if reference else []),
        ]
        try:
            code, log = self._run(command)
        except subprocess.TimeoutExpired:
            return Measured(system=case.system, error=f"not done after {self.timeout} seconds")
        if result.is_file():
            return Measured.model_validate_json(result.read_text(encoding="utf-8"))
        return Measured(system=case.system, error=f"its process ended with code {code}: {last_lines(log)}")

    def _run(self, module: list[str]) -> tuple[int, Path]:
        self.count += 1
        log = self.scratch / f"{self.count:02d}.log"
        with log.open("wb") as printed:
            done = subprocess.run(
                [sys.executable, "-m", *module], cwd=self.scratch, env=measuring_environment(self.scratch),
                stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT, timeout=self.timeout, check=False,
            )  # fmt: skip
        return done.returncode, log


def last_lines(log: Path) -> str:
    """Return the end of what a process printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-TAIL:]) or "it printed nothing"
