"""How often a test set was used: one ledger for all workspaces of a home.

Whoever chooses between runs by their test scores trains on the test set a little, and the interval of
the best score no longer means what it says. Nobody can take that back, but the number of looks can be shown.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from core.config import Frozen
from core.errors import ResourceError

PATIENCE = 30.0
"""Seconds to wait for another writer; each needs milliseconds."""


class TestUse(Frozen):
    """One evaluation of a model on a test set."""

    __test__: ClassVar[bool] = False  # not a test of pytest's

    digest: str
    """Of the test split's file."""
    run: str
    """The factory run, as the tracker names it."""
    phase: str
    arm: str
    """The model that was asked."""
    workspace: str
    """Name of the workspace's folder."""


class TestUses(Frozen):
    """How often one test set was used."""

    __test__: ClassVar[bool] = False

    runs: int
    """Runs that evaluated on it."""
    evaluations: int
    """Models that were asked its questions."""
    first: str | None = None
    """ISO time of the first use."""
    last: str | None = None
    """ISO time of the latest use."""


def record_use(ledger: Path, use: TestUse) -> None:
    """Add one executed evaluation to the ledger; a reused result is no new look at the test set.

    Args:
        ledger: JSON lines, only ever appended to; made if absent.
        use: What was evaluated.

    Raises:
        ResourceError: If the ledger cannot be written.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({**use.model_dump(), "at": at}) + "\n"
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        # Processes on any floor of the machine share the file; the system drops a dead one's lock.
        with FileLock(f"{ledger}.lock", timeout=PATIENCE), ledger.open("ab+") as stream:
            stream.write((_mended(stream) + line).encode())
    except (OSError, Timeout) as error:
        raise ResourceError(
            f"the use of the test set cannot be recorded ({error})",
            where=str(ledger),
            fix="set FACTORY_HOME to a folder that can be written",
        ) from error


def count_uses(ledger: Path, digest: str) -> TestUses:
    """Count the uses of a test set.

    Args:
        ledger: The file that ``record_use`` writes; if absent, nothing was used.
        digest: Of the test split's file.

    Returns:
        Counts over all runs; lines that a killed writer left unfinished count for nothing.
    """
    uses = [entry for entry in _entries(ledger) if entry.get("digest") == digest]
    times = sorted(str(entry["at"]) for entry in uses if "at" in entry)
    return TestUses(
        runs=len({str(entry.get("run")) for entry in uses}),
        evaluations=len(uses),
        first=times[0] if times else None,
        last=times[-1] if times else None,
    )


def _mended(stream: Any) -> str:
    """Return the line end that a killed writer owes."""
    if stream.seek(0, 2) == 0:
        return ""
    stream.seek(-1, 2)
    return "" if stream.read(1) == b"\n" else "\n"


def _entries(ledger: Path) -> Iterator[dict[str, Any]]:
    try:
        content = ledger.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
