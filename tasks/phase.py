"""Turn a function into a phase: a Prefect task that re-runs only when something changed.

A phase's key covers its settings, the digests of its inputs, and the source it calls.
The record of a finished phase lies in the workspace, written atomically after its outputs,
so a kill at any moment leaves either no record or a true one. Prefect's own result store
is not used: it hashes paths rather than contents, does not see edits in core, and does not
notice when an output was changed or deleted.
"""

import functools
import inspect
import json
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ValidationError

from core.artifacts import PhaseResult, fingerprint, is_unchanged, path_digest, source_digest, write_json
from core.config import Frozen
from core.errors import DISK_FULL, ResourceError
from tasks.context import RunContext, current
from tasks.events import PhaseState
from tasks.workspace import HERE

ROOT = Path(__file__).resolve().parent.parent

Result = PhaseResult[Any, Any]


class PhaseRecord(Frozen):
    """What is remembered of a finished phase."""

    phase: str
    key: str
    result: dict[str, Any]
    outputs: dict[str, str]
    """Digest of everything the phase wrote, by path in the workspace."""
    tracked_as: str
    """MLflow run of the execution that made the outputs."""
    seconds: float
    note: str


class Outcome(typing.NamedTuple):
    """What a phase body returns: the result, its files, and one line for people."""

    result: Result
    outputs: tuple[Path, ...]
    note: str
    stays_here: tuple[Path, ...] = ()
    """Outputs that the tracker gets the digest of and not the bytes, such as raw rows."""


Body = Callable[..., Outcome]


def phase(
    name: str,
    result: type[Result],
    *,
    reads: tuple[str, ...],
    engines: tuple[str, ...] = (),
    optional: Callable[..., tuple[str, ...]] = lambda *inputs: (),
) -> Callable[[Body], Callable[..., Any]]:
    """Make a Prefect task of ``body(context, key, *inputs)``.

    Args:
        name: Phase name, one of ``tasks.events.PHASES``.
        result: The concrete ``PhaseResult`` the body returns.
        reads: Packages and modules whose source belongs to the phase's key.
        engines: Libraries whose version belongs to it.
        optional: Names, from the inputs, libraries that need not be installed and belong to it as well.
    """

    def wrap(body: Body) -> Callable[..., Any]:
        sources = (*reads, body.__module__)

        def run(*inputs: Any) -> Any:
            context = current()
            versions = [*map(version, engines), *map(library_version, optional(*inputs))]
            key = fingerprint(name, source_digest(sources, ROOT), versions, list(inputs))
            known = None if context.must_rerun(name) else recall(context, name, key)
            if known is not None:
                return _reuse(context, name, known, result)
            return _execute(context, name, key, functools.partial(body, context, key, *inputs))

        # Prefect names the parameters it shows from the signature: those of the body, less our own two.
        shown = list(inspect.signature(body).parameters.values())[2:]
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = body.__name__, body.__doc__, body.__module__
        carried = task(name=name, persist_result=False, cache_policy=NO_CACHE)(run)

        def call(*inputs: Any) -> Any:
            current().require_in_range(name)
            value = carried(*inputs)
            # A reused phase ends in the state "Cached", which Prefect hands back whole.
            return value.result() if isinstance(value, State) else value

        return call

    return wrap


def library_version(package: str) -> str:
    """Name a package with its version, also where it is absent: then the phase says what to install."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"


def recall(context: RunContext, name: str, key: str) -> PhaseRecord | None:
    """Return the record of an identical, still intact execution, if there is one."""
    try:
        record = PhaseRecord.model_validate_json(
            context.workspace.phase_record(name).read_text(encoding="utf-8")
        )
    except (OSError, ValidationError):
        return None
    root = context.workspace.root
    intact = record.key == key and all(
        is_unchanged(root / path, digest) for path, digest in record.outputs.items()
    )
    return record if intact else None


def _reuse(context: RunContext, name: str, record: PhaseRecord, kind: type[Result]) -> Any:
    text = json.dumps(record.result, ensure_ascii=False).replace(HERE, _quoted(context))
    result = kind.model_validate_json(text)
    context.evidence.update(record.outputs)
    context.tracker.reused(name, record.tracked_as)
    _tell(context, name, "reused", 0.0, record.note, result.report)
    return Completed(name="Cached", message="nothing changed since the last run", data=result)


def _execute(context: RunContext, name: str, key: str, body: Callable[[], Outcome]) -> Result:
    context.workspace.phase_record(name).unlink(missing_ok=True)
    context.watcher.phase_started(name)
    began = time.monotonic()
    with context.tracker.phase(name) as tracked:
        context.phase_run = tracked
        try:
            with disk_full_explained(context), memory_explained(name):
                outcome = body()
        except BaseException as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            _tell(context, name, "failed", time.monotonic() - began, first, None)
            raise
        root = context.workspace.root
        outputs = {p.resolve().relative_to(root).as_posix(): path_digest(p) for p in outcome.outputs}
        tracked.report(name, outcome.result.report)
        for path, digest in outputs.items():
            tracked.file(root / path, digest, stays_here=root / path in outcome.stays_here)
    seconds = time.monotonic() - began
    _remember(context, name, key, outcome, outputs, tracked.run_id, seconds)
    context.evidence.update(outputs)
    _tell(context, name, "done", seconds, outcome.note, outcome.result.report)
    return outcome.result


def _tell(
    context: RunContext, name: str, state: PhaseState, seconds: float, note: str, report: BaseModel | None
) -> None:
    if report is not None:
        context.reports[name] = report
    context.timings.append((name, state, seconds, note))
    context.watcher.phase_finished(name, state, seconds, note)


def _quoted(context: RunContext) -> str:
    """Return the workspace's path as it stands inside JSON."""
    return json.dumps(str(context.workspace.root), ensure_ascii=False)[1:-1]


@contextmanager
def disk_full_explained(context: RunContext) -> Iterator[None]:
    """Turn a full disk into one message; what was finished before stays, and the run resumes."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ResourceError(
            "the disk is full",
            where=str(context.workspace.root),
            fix="make room and run the same command again, or give --workspace another disk",
        ) from error


@contextmanager
def memory_explained(phase: str) -> Iterator[None]:
    """Turn running out of memory, of the machine or of its GPU, into one message."""
    try:
        yield
    except Exception as error:
        # PyTorch's own class, by name: this floor does not load PyTorch.
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        raise ResourceError(
            "memory ran out",
            where=phase,
            fix="a smaller model, load_in_4bit: true, a smaller evaluation.batch_size or "
            "training.per_device_train_batch_size, or a lower model.max_seq_length; then the same command again",
        ) from error


def _remember(
    context: RunContext,
    name: str,
    key: str,
    outcome: Outcome,
    outputs: dict[str, str],
    run_id: str,
    seconds: float,
) -> None:
    # Paths are kept relative, so a workspace that is moved re-runs nothing.
    result = json.loads(outcome.result.model_dump_json().replace(_quoted(context), HERE))
    record = PhaseRecord(
        phase=name,
        key=key,
        result=result,
        outputs=outputs,
        tracked_as=run_id,
        seconds=round(seconds, 3),
        note=outcome.note,
    )
    write_json(context.workspace.phase_record(name), record)
