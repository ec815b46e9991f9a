"""Run the factory and kill it with SIGKILL in one phase, just before a file would be renamed into place.

python tests/thimble/kill_in.py PHASE NAME run CONFIG ...
"""

import os
import signal
import sys
from pathlib import Path

phase, name, *arguments = sys.argv[1:]
sys.argv = ["factory", *arguments]
sys.path.insert(0, os.getcwd())

from core import artifacts  # noqa: E402
from flows import cli  # noqa: E402

replace = artifacts._replace


def kill(part: Path, target: Path, holder: Path) -> None:
    from tasks import phase as phases

    if target.name == name and phases_at_work(phases) == phase:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, target, holder)


def phases_at_work(phases) -> str | None:
    frame = sys._getframe()
    while frame:
        if frame.f_code is phases._execute.__code__:
            return frame.f_locals["name"]
        frame = frame.f_back
    return None


# Worker processes import this file too, and must not start a run of their own.
if __name__ == "__main__":
    artifacts._replace = kill
    cli.main()
