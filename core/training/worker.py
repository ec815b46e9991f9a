"""The training process: ``python -m core.training.worker FOLDER CHANNEL``.

The chosen engine is imported before anything it edits: up to ``prepare_framework`` nothing here loads
Transformers, PEFT or TRL. Events go to the file descriptor CHANNEL, one JSON object a line; standard output and
error are the libraries'. The process ends when its standard input does, which the parent holds open.
"""

import ctypes
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from core.models.frameworks import Choice, FrameworkNotice, prepare_framework
from core.training.job import JOB, HandedOver, line, told

if TYPE_CHECKING:
    from core.training.loop import Progress

SIGNALLED = 128
"""Added to a signal's number, the exit code of a process that it ended in good order."""
_PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """A signal asks to stop; files being written are cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        """Remember which one."""
        self.number = number


class Channel:
    """Tells the parent what happens; also a metric sink."""

    def __init__(self, number: int) -> None:
        """Take the descriptor; processes that libraries start do not get it."""
        os.set_inheritable(number, False)
        self._out = os.fdopen(number, "wb", buffering=0)

    def tell(self, event: str, **fields: Any) -> None:
        """Send an event at once.

        Raises:
            BrokenPipeError: If nobody listens any more.
        """
        rest = memoryview(line(event, **fields))
        while rest:
            rest = rest[self._out.write(rest) :]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        self.tell("metrics", step=step, metrics=dict(metrics))

    def started(self, progress: "Progress") -> None:
        """Send what training continues from."""
        self.tell("started", progress=progress._asdict())

    def saved(self) -> None:
        """Send that a resumable state was written."""
        self.tell("saved")


def main(arguments: list[str]) -> int:
    """Train, and tell how it went.

    Args:
        arguments: Folder of the job, number of the channel's descriptor.

    Returns:
        The exit code; the error itself went through the channel.
    """
    folder, channel = Path(arguments[0]), Channel(int(arguments[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    # Libraries put what they generate into the current folder; this one is thrown away.
    os.chdir(folder)
    try:
        _train(folder, channel)
    except Stopped as stopped:
        return SIGNALLED + stopped.number
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent has to know
        traceback.print_exc()
        channel.tell("error", **told(error, out_of_memory=_ran_out(error)))
        return 1
    finally:
        # Nothing is left to clean up.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    return 0


def _train(folder: Path, channel: Channel) -> None:
    handed = HandedOver.model_validate_json((folder / JOB).read_bytes())
    job, choice = handed.job, _engine(handed, channel)
    from core.training.handover import take_over, values_of
    from core.training.sft import carry_out

    # What was chosen once is not chosen, and told, again.
    chosen = job.model.model_copy(update={"framework": choice.framework})
    tuned = carry_out(
        job.model_copy(update={"model": chosen}),
        take_over(folder, handed),
        sink=channel,
        on_checkpoint=channel.saved,
        on_start=channel.started,
    )
    channel.tell("done", tuned=values_of(tuned))


def _engine(handed: HandedOver, channel: Channel) -> Choice:
    warnings.simplefilter("ignore", FrameworkNotice)
    choice = prepare_framework(handed.job.model)
    if choice.notice:
        channel.tell("notice", text=choice.notice)
    return choice


def _ran_out(error: BaseException) -> bool:
    """Tell whether memory ran out; before an engine is loaded only Python can say so."""
    memory = sys.modules.get("core.training.memory")
    return memory.is_out_of_memory(error) if memory else isinstance(error, MemoryError)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: a second signal would interrupt the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def die_with_parent() -> None:
    """End this process, for certain and at once, when the parent is gone.

    Linux does it by itself; elsewhere the end of standard input is the sign. Afterwards standard input is empty:
    a library that asks a question must not read from the parent's.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    leash = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_follow, args=(leash,), daemon=True).start()


def _follow(leash: int) -> None:
    while os.read(leash, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is told and written: what libraries do while an interpreter shuts down can only fail or hang.
    os._exit(code)
