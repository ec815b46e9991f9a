"""What crosses between a run and its training process: the job, and the errors it may end with. Loads no engine."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config import Frozen
from core.errors import (
    DISK_FULL,
    ArtifactChanged,
    ConfigError,
    DataError,
    EngineFailed,
    FactoryError,
    ModelError,
    ResourceError,
    TrainingFailed,
    UserError,
)
from core.models.config import LoraConfig, ModelConfig
from core.training.config import TrainingConfig

JOB, TRAIN, VAL = "job.json", "train.arrow", "val.arrow"
"""Files of the folder through which a job is handed over."""

_KINDS: dict[str, type[FactoryError]] = {
    kind.__name__: kind
    for kind in (
        *(UserError, ConfigError, DataError, ModelError, ResourceError),
        *(FactoryError, ArtifactChanged, TrainingFailed, EngineFailed),
    )
}
_MEMORY, _DISK = "memory", "disk"


class Job(Frozen):
    """An adapter to be trained. All paths are absolute, for the process has a folder of its own."""

    model: ModelConfig
    """``name`` is the base's folder."""
    lora: LoraConfig
    training: TrainingConfig
    checkpoints: Path
    """Folder of resumable states."""
    adapter: Path
    """Where the finished adapter goes."""
    fingerprint: str
    """Identity of settings, data and code."""


class HandedOver(Frozen):
    """A job as it lies in the folder, beside its examples."""

    job: Job
    pad_id: int
    window: int | None = None
    """As in ``SftInputs``."""


def told(error: BaseException, *, out_of_memory: bool) -> dict[str, Any]:
    """Put an error into plain values.

    Args:
        error: What ended training.
        out_of_memory: Memory ran out, whatever the error's class.
    """
    for kind in type(error).__mro__:
        if kind.__name__ not in _KINDS or _KINDS[kind.__name__] is not kind:
            continue
        if isinstance(error, UserError):
            return {"kind": kind.__name__, "what": error.what, "where": error.where, "fix": error.fix}
        return {"kind": kind.__name__, "what": str(error)}
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if out_of_memory:
        return {"kind": _MEMORY, "what": text}
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return {"kind": _DISK, "errno": error.errno, "where": str(error.filename or "")}
    return {"kind": "", "what": text}


def rebuilt(said: Mapping[str, Any]) -> BaseException | None:
    """Make the error again that ``told`` was given; None if it was none that a caller knows.

    What only the caller can explain, a full disk or memory that ran out outside training proper, comes back
    as the ``OSError`` or ``MemoryError`` that it was.
    """
    kind = str(said["kind"])
    if kind == _MEMORY:
        return MemoryError(said["what"])
    if kind == _DISK:
        number = int(said["errno"])
        return OSError(number, os.strerror(number), said["where"] or None)
    known = _KINDS.get(kind)
    if known is None:
        return None
    if issubclass(known, UserError):
        return known(said["what"], where=said["where"], fix=said["fix"])
    return known(said["what"])


def line(event: str, **fields: Any) -> bytes:
    """Write an event as one line of JSON; floats come back exactly, NaN and infinities too."""
    return json.dumps({"event": event, **fields}).encode() + b"\n"
