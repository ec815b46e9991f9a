"""The Prefect server process: ``python -m flows.server_child FD MODE PARENT SEED``.

It differs from ``prefect server start`` in what a pipeline needs: it inherits its listening
socket, so that no other program can take the port in between; it prepares the database under
a lock, so that two servers may start on one home at once; it stores everything it received
before it stops; and a private server ends when the process that started it ends.
"""

import asyncio
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from flows.server_database import prepare

GRACE = 4.0
"""Seconds that an orphaned server may take to store what it received."""
QUIET = 0.3
"""Seconds without an event in the queues after which everything counts as consumed."""


def main(arguments: list[str]) -> None:
    """Serve until a signal, or until the watched parent is gone.

    Args:
        arguments: Number of the listening socket, ``full`` or ``private``, process id of the
            parent to watch or 0, and where an empty database is kept (may be empty).
    """
    number, mode, parent, seed = arguments
    stops: list[Callable[[], None]] = [lambda: os._exit(0)]
    if int(parent):
        threading.Thread(target=_watch, args=(int(parent), stops), daemon=True).start()
    # Collecting garbage while importing a few hundred thousand long-lived objects costs half a second.
    gc.disable()
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=mode == "private", final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=3)
    server = GracefulServer(config, Path(seed) if seed else None)
    stops.append(server.orphaned)
    server.run(sockets=[socket.socket(fileno=int(number))])


def _watch(parent: int, stops: list[Callable[[], None]]) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    stops[-1]()


class GracefulServer(uvicorn.Server):
    """A server that prepares its database alone and empties its queues before it stops."""

    def __init__(self, config: uvicorn.Config, seed: Path | None) -> None:
        """Keep where the empty database lies; ``None`` leaves the tables as they are."""
        super().__init__(config)
        self._seed = seed

    def orphaned(self) -> None:
        """Stop as after a signal, and for certain after ``GRACE`` seconds."""
        self.should_exit = True
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Prepare the database under a lock, then start as usual."""
        from prefect.settings import PREFECT_HOME

        home = Path(PREFECT_HOME.value())
        with (home / "start.lock").open("w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            if self._seed:
                await prepare(home / "prefect.db", self._seed)
            await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait until every event that arrived is consumed, then stop as usual.

        Task states reach the database only through events, and a consumer that is
        cancelled forgets its queue.
        """
        deadline = time.monotonic() + GRACE / 2
        calm = 0.0
        while calm < QUIET and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            calm = 0.0 if _waiting_events() else calm + 0.05
        await super().shutdown(sockets)


def _waiting_events() -> int:
    from prefect.server.utilities.messaging.memory import Topic

    queues = [queue for topic in Topic._topics.values() for queue in topic._subscriptions]
    return sum(queue._queue.qsize() + queue._retry.qsize() for queue in queues)


if __name__ == "__main__":
    main(sys.argv[1:])
