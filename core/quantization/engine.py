"""llama.cpp at work on files, in a child process: when it dies, it takes nobody with it."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import EngineFailed

ROOT = Path(__file__).resolve().parents[2]
LITTLE = 1 << 20
"""Bytes. With less left on a disk, a write that failed did so for want of room."""
_FULL = ("No space left on device", "Disk quota exceeded")
_STREAM = "iostream error"
"""All that llama.cpp says when its output stream fails; the reason is not in it."""

_SHORT = "requested and"
"""From NumPy's message, such as "176640 requested and 76896 written"."""


def run_engine(module: str, arguments: list[str], folder: Path, what: str) -> None:
    """Run a module of this room and wait for it.

    Args:
        module: Its dotted name; it must have a ``__main__`` part.
        arguments: Its command line.
        folder: Where it writes.
        what: What it does, to follow "llama.cpp could not".

    Raises:
        OSError: If the disk is full (``errno.ENOSPC``).
        EngineFailed: If it fails for any other reason.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=False)
    if done.returncode == 0:
        return
    told = done.stderr.decode("utf-8", "replace").strip()
    if _is_full(told, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    tail = "\n".join(told.splitlines()[-8:])
    raise EngineFailed(f"llama.cpp could not {what} (exit code {done.returncode})\n{tail}")


def _is_full(told: str, folder: Path) -> bool:
    if any(text in told for text in _FULL):
        return True
    return _STREAM in told and shutil.disk_usage(folder).free < LITTLE


@contextmanager
def short_writes_explained(folder: Path) -> Iterator[None]:
    """Give NumPy's error about a short write its reason: it carries none, and only a full disk causes it.

    Args:
        folder: Where a block writes.

    Raises:
        OSError: With ``errno.ENOSPC`` instead of none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None or _SHORT not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
