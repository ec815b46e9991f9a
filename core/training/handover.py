"""Examples, settings and results on their way to a training process and back; nothing is pickled."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import write_json
from core.data.batches import Truncated
from core.data.chat import Encoded
from core.data.token_store import load, save
from core.errors import EngineFailed
from core.training.job import JOB, TRAIN, VAL, HandedOver, Job
from core.training.loop import Plan, Progress
from core.training.rows import SftInputs
from core.training.sft import Tuned

AT_ONCE = 4096
"""Examples in a batch of columns."""


def hand_over(folder: Path, job: Job, inputs: SftInputs) -> None:
    """Write a job and its examples: settings as JSON, token ids as int32 in Arrow columns.

    Args:
        folder: Exists.
        job: What is to be done.
        inputs: A label is the token's id where it is trained, as ``Encoded`` has it.
    """
    save(_parts(inputs.train), folder / TRAIN)
    save(_parts(inputs.val), folder / VAL)
    write_json(folder / JOB, HandedOver(job=job, pad_id=inputs.pad_id, window=inputs.window))


def take_over(folder: Path, handed: HandedOver) -> SftInputs:
    """Read the examples of a job, memory-mapped.

    Raises:
        EngineFailed: If they are not as they were written.
    """
    return SftInputs(_read(folder / TRAIN), _read(folder / VAL), handed.pad_id, handed.window)


def _parts(examples: Sequence[Encoded]) -> Iterator[Truncated]:
    for first in range(0, len(examples), AT_ONCE):
        yield Truncated(examples[first : first + AT_ONCE], 0, 0)


def _read(file: Path) -> Sequence[Encoded]:
    found = load(file)
    if found is None:
        raise EngineFailed(f"the examples in {file} are not as they were written")
    return found.examples


def progress_of(values: Mapping[str, Any]) -> Progress:
    """Make progress of the values of its fields."""
    losses = tuple(float(loss) for loss in values["losses"])
    evals = tuple((int(step), float(loss)) for step, loss in values["eval_losses"])
    return Progress(**{**values, "losses": losses, "eval_losses": evals})


def values_of(tuned: Tuned) -> dict[str, Any]:
    """Put a result into values that JSON can hold."""
    return {**tuned._asdict(), "progress": tuned.progress._asdict(), "plan": tuned.plan._asdict()}


def tuned_of(values: Mapping[str, Any]) -> Tuned:
    """Make a result of ``values_of``."""
    parts = {"progress": progress_of(values["progress"]), "plan": Plan(**values["plan"])}
    return Tuned(**{**values, **parts})
