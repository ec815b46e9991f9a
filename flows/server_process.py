"""Server processes on this machine: ports, health, identity, start and stop."""

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from core.config import Frozen
from core.errors import ResourceError

Progress = Callable[[str], None]
"""Told one line about what is going on."""

LOOPBACK = "127.0.0.1"
PORTS_TRIED = 50
START_TIMEOUT = 180.0


class Identity(Frozen):
    """One process, also after its number has been given to another."""

    pid: int
    """Process id, which is also its process group."""
    started: float
    """When the process began, in seconds since 1970."""

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """Describe a living process."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        """Tell whether this very process runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def listen(port: int) -> socket.socket | None:
    """Return a listening loopback socket, or ``None`` if the port is taken; 0 picks a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen(128)
    except OSError:
        listener.close()
        return None
    return listener


def listen_near(port: int, progress: Progress, *, name: str = "server") -> socket.socket:
    """Return a listening socket on ``port`` or the next free one, and say so if it is another.

    Raises:
        ResourceError: If none of the next ports is free.
    """
    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else [0]:
        if listener := listen(candidate):
            if candidate != port:
                progress(f"{name}: port {port} is taken, using {candidate}")
            return listener
    raise ResourceError(f"no free port from {port} on", fix="stop a program that listens there")


def url_of(listener: socket.socket) -> str:
    """Return the HTTP address of a listening socket."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}"


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_healthy(url: str, timeout: float = 1.0) -> bool:
    """Tell whether a GET answers with status 200 in time; proxies are bypassed."""
    try:
        with _direct.open(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def spawn(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, with its output appended to ``log``.

    Its own session keeps it out of reach of a Ctrl-C that is meant for this program.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            pass_fds=tuple(pass_fds), start_new_session=True, cwd=log.parent,
        )  # fmt: skip


def wait_healthy(
    url: str, process: "subprocess.Popen[bytes]", log: Path, *, timeout: float = START_TIMEOUT
) -> None:
    """Block until ``url`` answers.

    Raises:
        ResourceError: If the process ends or does not answer in time; with the log's last lines.
    """
    deadline = time.monotonic() + timeout
    while not is_healthy(url, timeout=2.0):
        if process.poll() is not None:
            raise _start_failed(f"the server ended with code {process.returncode}", log)
        if time.monotonic() > deadline:
            raise _start_failed(f"the server did not answer within {timeout:.0f} seconds", log)
        time.sleep(0.05)


def _start_failed(what: str, log: Path) -> ResourceError:
    with log.open("rb") as stream:
        stream.seek(max(0, _size(stream) - 4000))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return ResourceError("\n    ".join([what, *lines[-8:]]), where=str(log), fix="run `factory doctor`")


def _size(stream: IO[bytes]) -> int:
    return stream.seek(0, os.SEEK_END)


def stop(identity: Identity, *, grace: float = 15.0) -> bool:
    """End a process and its group: politely, and after ``grace`` seconds for certain.

    Returns:
        Whether it was running.
    """
    if not identity.is_alive():
        return False
    _signal_group(identity.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while identity.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    # Also after a polite end: a worker of the group may have outlived its leader.
    _signal_group(identity.pid, signal.SIGKILL)
    return True


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
