"""Open and close one run: lock, tracker, context; report, manifest and verdict at the end."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import SecretStr

from core.artifacts import file_digest, write_json
from core.config import Frozen
from core.data.config import ExecutionConfig
from gates.thresholds import GatesConfig
from gates.verdict import GATE_NAMES, GateClosed
from tasks.context import RunContext, StopHere, running
from tasks.events import PHASES, Watcher
from tasks.report.gather import Ending, Status, write_report
from tasks.tracking import FLOW_RUN, Tracker
from tasks.workspace import Workspace

JUDGED_AFTER = ("split", "baseline", "evaluate", "quantize", "deploy")
"""The phase each gate follows, in the order of GATE_NAMES."""


class Place(Frozen):
    """Where a run works and records; none of it changes the result."""

    workspace: Path
    """Folder of everything the run writes."""
    base: Path
    """Folder that relative paths in the config start from."""
    rerun_from: str | None = None
    """Run this phase and the later ones even if nothing changed."""
    until: str | None = None
    """Stop after this phase and its gate."""


class Stores(NamedTuple):
    """Where a run is recorded, and what opens doors. Kept out of the flow's parameters: an address may hold a password."""

    tracking_uri: str
    """MLflow server or database."""
    artifacts: Path | None
    """Where a local MLflow store keeps files; None leaves it to the server."""
    test_uses: Path
    """Ledger of every use of a test set, shared by all workspaces of this home."""
    judge_key: SecretStr | None = None
    """Opens the endpoint of the model that grades answers."""


_stores: ContextVar[Stores] = ContextVar("stores")


@contextmanager
def recorded_in(stores: Stores) -> Iterator[None]:
    """Say where the runs inside a block are recorded."""
    token = _stores.set(stores)
    try:
        yield
    finally:
        _stores.reset(token)


class Purpose(Frozen):
    """What the session needs to know of the run's settings."""

    name: str
    experiment: str
    gates: GatesConfig
    threads: int
    max_file_mb: int
    execution: ExecutionConfig


@contextmanager
def session(purpose: Purpose, place: Place, settings: Frozen, watcher: Watcher) -> Iterator[RunContext]:
    """Run a block as one tracked run in a locked workspace.

    Whatever happens inside, the report, the manifest and the tracked status tell it
    afterwards; the exception then travels on.
    """
    workspace, stores = Workspace(place.workspace), _stores.get()
    with workspace.locked():
        forget_verdicts(workspace, place.until)
        mark_killed(workspace.status)
        tracker = Tracker(
            stores.tracking_uri, purpose.experiment, stores.artifacts, max_file_mb=purpose.max_file_mb
        )
        crash_in_prefect(tracker.interrupted)
        tracker.gates_view(GATE_NAMES)
        tracker.start(purpose.name, settings)
        tracker.tag(FLOW_RUN, flow_run.get_id() or "")
        context = RunContext(
            name=purpose.name,
            workspace=workspace,
            tracker=tracker,
            watcher=watcher,
            base=place.base,
            gates=purpose.gates,
            rerun_from=place.rerun_from,
            until=place.until,
            threads=purpose.threads,
            execution=purpose.execution,
            test_uses=stores.test_uses,
            judge_key=stores.judge_key,
        )
        with running(context), _told(context, settings):
            yield context


def forget_verdicts(workspace: Workspace, until: str | None) -> None:
    """Remove the gate files that this run will judge anew."""
    last = PHASES.index(until) if until else len(PHASES)
    for name, phase in zip(GATE_NAMES, JUDGED_AFTER, strict=True):
        if PHASES.index(phase) <= last:
            workspace.gate(name).unlink(missing_ok=True)


def mark_killed(status: Path) -> None:
    """Correct a status file whose training was killed and could not say so itself."""
    try:
        content = json.loads(status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if content.get("running"):
        write_json(status, {**content, "running": False, "error": "the process was killed"})


def crash_in_prefect(flow_runs: list[str]) -> None:
    """End flow runs whose process was killed; without heartbeats Prefect would show them running for ever."""
    if not flow_runs:
        return
    with get_client(sync_client=True) as client:
        for flow_run_id in flow_runs:
            # Another home's Prefect may not know it.
            with suppress(ObjectNotFound):
                client.set_flow_run_state(
                    UUID(flow_run_id), Crashed(message="the process was killed"), force=True
                )


@contextmanager
def _told(context: RunContext, settings: Frozen) -> Iterator[None]:
    """Tell how a run ended, in the workspace and in the tracker."""
    began = datetime.now(UTC)
    clock = time.monotonic()
    status: Status = "passed"
    error: str | None = None
    try:
        yield
    except GateClosed as closed:
        status, error = "blocked", closed.verdict.summary
        raise
    except StopHere:
        status = "partial"
        raise
    except BaseException as problem:
        status, error = "failed", str(problem) or type(problem).__name__
        raise
    finally:
        # A close that fails as well (the disk is full, a server is gone) must not hide why the run ended.
        with suppress(Exception) if error is not None else nullcontext():
            close(context, settings, Ending(status=status, error=error, started_at=began.isoformat(timespec="seconds"),
                                        seconds=time.monotonic() - clock))  # fmt: skip


def close(context: RunContext, settings: Frozen, ending: Ending) -> None:
    """Write report and manifest, and finish the tracked run."""
    write_report(context, settings, ending)
    write_manifest(context.workspace)
    tracker = context.tracker
    tracker.file(context.workspace.report)
    for record in context.judged:
        tracker.file(context.workspace.gate(record.gate), "gates")
    tracker.table(gate_rows(context), "gates/checks")
    tracker.describe(describe(context, ending))
    if flow_run.get_id():
        create_markdown_artifact(
            describe(context, ending), key="gates", description=f"MLflow: {tracker.link}"
        )
    if ending.error:
        tracker.tag("error", ending.error[:4000])
    tracker.finish(ending.status, run_title(context, ending))


def run_title(context: RunContext, ending: Ending) -> str:
    """Put the verdict into the run's name, where lists show it."""
    day = ending.started_at[:10]
    if ending.status == "blocked":
        return f"BLOCKED {context.name} {day} at {context.judged[-1].gate}"
    return f"{ending.status.upper()} {context.name} {day}"


def gate_rows(context: RunContext) -> list[dict[str, object]]:
    """Lay every check of every gate out as one table."""
    return [
        {"gate": record.gate, "status": record.status, **{k: str(v) for k, v in check.items()}}
        for record in context.judged
        for check in record.checks
    ]


def describe(context: RunContext, ending: Ending) -> str:
    """Say on the run's page what the gates said, the closed one first."""
    ordered = sorted(context.judged, key=lambda record: record.status == "passed")
    rows = "\n".join(f"| {r.gate} | **{r.status.upper()}** | {r.summary} |" for r in ordered)
    text = f"| gate | status | numbers |\n|---|---|---|\n{rows}\n\n" if rows else ""
    return f"{text}Status: {ending.status}. Workspace: `{context.workspace.root}`"


def write_manifest(workspace: Workspace) -> None:
    """Write the digest of every file a run left in the workspace."""
    files = sorted(p for p in workspace.root.rglob("*") if p.is_file() and _is_listed(workspace, p))
    entries = {
        p.relative_to(workspace.root).as_posix(): {"digest": file_digest(p), "bytes": p.stat().st_size}
        for p in files
    }
    write_json(workspace.manifest, {"files": entries})


def _is_listed(workspace: Workspace, path: Path) -> bool:
    parts = path.relative_to(workspace.root).parts
    return path != workspace.manifest and not any(part.startswith(".") for part in parts)
