"""The Prefect and MLflow servers of one home: in the background, or for one run only.

``up`` and ``down`` manage the pair that a person looks at. A run that finds no Prefect server
starts a private one on the same database, so that its history is there whenever ``up`` comes.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pydantic import ValidationError

from core.artifacts import write_json
from core.config import Frozen
from flows.server_database import is_current, seed_of
from flows.server_process import (
    Identity,
    Progress,
    is_healthy,
    listen_near,
    spawn,
    stop,
    url_of,
    wait_healthy,
)
from flows.settings import Settings, server_environment


class Server(Frozen):
    """One server and, if this program started it, its process."""

    url: str
    """Address of its user interface."""
    process: Identity | None = None
    """``None`` for a server that somebody else runs."""


class Servers(Frozen):
    """What is up. A missing server is ``None``."""

    prefect: Server | None = None
    mlflow: Server | None = None

    @property
    def prefect_api_url(self) -> str | None:
        """Value for ``PREFECT_API_URL``."""
        return f"{self.prefect.url}/api" if self.prefect else None


class Launched(NamedTuple):
    """A server process that may not answer yet."""

    server: Server
    process: "subprocess.Popen[bytes]"
    health: str
    log: Path


def silent(line: str) -> None:
    """Tell nobody."""


def running(settings: Settings, *, timeout: float = 1.0) -> Servers | None:
    """Return the recorded servers that live and answer.

    Args:
        settings: Whose home to look at.
        timeout: Seconds each server has to answer.

    Returns:
        ``None`` if neither does. Takes a millisecond when nothing is recorded.
    """
    recorded = _recorded(settings)
    prefect = _if_answering(recorded.prefect, "/api/health", timeout)
    mlflow = _if_answering(recorded.mlflow, "/health", timeout)
    return Servers(prefect=prefect, mlflow=mlflow) if prefect or mlflow else None


def _if_answering(server: Server | None, path: str, timeout: float) -> Server | None:
    if server and server.process and server.process.is_alive() and is_healthy(server.url + path, timeout):
        return server
    return None


def _record(settings: Settings) -> Path:
    return settings.home / "servers.json"


def _recorded(settings: Settings) -> Servers:
    try:
        return Servers.model_validate(json.loads(_record(settings).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, ValidationError):
        return Servers()


def up(
    settings: Settings, *, prefect_port: int = 4200, mlflow_port: int = 5000, progress: Progress = silent
) -> Servers:
    """Make sure that both servers run in the background, on loopback only.

    Servers that already answer are kept, also those the environment names. A port that
    another program holds is passed over.

    Args:
        settings: Whose home they serve.
        prefect_port: Port to try first; 0 picks any.
        mlflow_port: Port to try first; 0 picks any.
        progress: Told what is being waited for.

    Raises:
        ResourceError: If a server does not start; the message ends with its log.
    """
    with _alone(settings):
        found = running(settings, timeout=5.0) or Servers()
        _stop_missing(settings, found)
        prefect = _external(settings.prefect_api_url, "/api") or found.prefect
        mlflow = _external(settings.mlflow_tracking_uri, "") or found.mlflow
        new: list[Launched] = []
        try:
            if not prefect:
                prefect = _launch(new, launch_prefect(settings, prefect_port, progress=progress))
            if not mlflow:
                mlflow = _launch(new, launch_mlflow(settings, mlflow_port, progress=progress))
            for item in new:
                progress(f"waiting for {item.server.url}")
                wait_healthy(item.health, item.process, item.log)
        except BaseException:
            for item in new:
                stop(Identity.of(item.process.pid))
            raise
        servers = Servers(prefect=prefect, mlflow=mlflow)
        _write_record(settings, servers)
    return servers


def _launch(new: list[Launched], item: Launched) -> Server:
    new.append(item)
    return item.server


def _external(url: str | None, ending: str) -> Server | None:
    if url and url.startswith(("http://", "https://")):
        return Server(url=url.rstrip("/").removesuffix(ending))
    return None


def _stop_missing(settings: Settings, found: Servers) -> None:
    """End recorded processes that no longer answer, so that none is left behind unrecorded."""
    recorded = _recorded(settings)
    for old, now in ((recorded.prefect, found.prefect), (recorded.mlflow, found.mlflow)):
        if old and old.process and not now:
            stop(old.process)


def _write_record(settings: Settings, servers: Servers) -> None:
    ours = {name: server if server and server.process else None for name, server in servers}
    write_json(_record(settings), Servers.model_validate(ours))


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def down(settings: Settings, *, progress: Progress = silent) -> list[str]:
    """Stop the servers that ``up`` started.

    Returns:
        Addresses of those that were running.
    """
    stopped = []
    with _alone(settings):
        for _, server in _recorded(settings):
            if server and server.process and server.process.is_alive():
                progress(f"stopping {server.url}")
                stop(server.process)
                stopped.append(server.url)
        _record(settings).unlink(missing_ok=True)
    return stopped


def launch_prefect(
    settings: Settings,
    port: int,
    *,
    private: bool = False,
    services: bool = True,
    progress: Progress = silent,
) -> Launched:
    """Start a Prefect server process.

    Args:
        settings: Whose database it serves.
        port: Port to try first; 0 picks any.
        private: End it with this process.
        services: Serve the interface too, and schedule; a run needs neither.
        progress: Told if the port is taken.
    """
    settings.prefect_home.mkdir(parents=True, exist_ok=True)
    listener = listen_near(port, progress, name="Prefect")
    log = settings.logs / ("prefect-private.log" if private else "prefect.log")
    with listener:
        number, parent = str(listener.fileno()), str(os.getpid() if private else 0)
        mode = "full" if services else "private"
        process = spawn(
            [sys.executable, "-m", "flows.server_child", number, mode, parent, _seed(settings)],
            env=_prefect_server_environment(settings, services=services),
            log=log,
            pass_fds=[listener.fileno()],
        )
        url = url_of(listener)
    server = Server(url=url, process=Identity.of(process.pid))
    return Launched(server, process, f"{url}/api/health", log)


def _seed(settings: Settings) -> str:
    """Return where new tables come from, or nothing if there is nothing to prepare."""
    if settings.prefect_database_url or is_current(settings.prefect_database):
        return ""
    return str(seed_of(settings.cache))


def _prefect_server_environment(settings: Settings, *, services: bool) -> dict[str, str]:
    extra = {}
    if not settings.prefect_database_url:
        extra["PREFECT_API_DATABASE_MIGRATE_ON_START"] = "false"
    if not services:
        extra["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "false"
    return server_environment(settings, extra)


def launch_mlflow(settings: Settings, port: int, *, progress: Progress = silent) -> Launched:
    """Start an MLflow server process on the store that runs write to directly.

    Artifacts lie under the home as plain files, so a run reads and writes them the same
    way with and without this server.

    Args:
        settings: Whose store it serves.
        port: Port to try first; 0 picks any.
        progress: Told if the port is taken.
    """
    with listen_near(port, progress, name="MLflow") as listener:
        url = url_of(listener)
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    log = settings.logs / "mlflow.log"
    process = spawn(
        [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                url.rpartition(":")[2],
            ),
            *("--backend-store-uri", settings.mlflow_uri, "--workers", "1"),
            *("--default-artifact-root", settings.artifacts.as_uri(), "--no-serve-artifacts"),
        ],
        env=server_environment(settings, {}),
        log=log,
    )
    server = Server(url=url, process=Identity.of(process.pid))
    return Launched(server, process, f"{url}/health", log)


class PrefectApi:
    """A Prefect API for one run: shared, or a private server that is still starting."""

    def __init__(self, url: str, private: Launched | None = None) -> None:
        """Keep the address and, for a private server, its process."""
        self.url = url
        self.is_private = private is not None
        self._private = private

    def wait(self, timeout: float = 180.0) -> str:
        """Block until a private server answers; return the address.

        Raises:
            ResourceError: If it does not start.
        """
        if self._private:
            wait_healthy(self._private.health, self._private.process, self._private.log, timeout=timeout)
        return self.url

    def close(self) -> None:
        """Send what this process still holds for a private server, and stop the server."""
        if self._private and self._private.server.process:
            _drain()
            stop(self._private.server.process)
            self._private.process.wait()
        self._private = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drain() -> None:
    """Wait until queued task states and log lines have left this process."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=10)
    APILogWorker.drain_all(timeout=10)


def start_prefect(settings: Settings) -> PrefectApi:
    """Choose the Prefect API of a run, without waiting for it.

    The order is ``PREFECT_API_URL``, the server that ``up`` started, a private one. The
    address is known at once, so the caller can set the environment and import Prefect
    while a private server starts.
    """
    if settings.prefect_api_url:
        return PrefectApi(settings.prefect_api_url)
    found = running(settings)
    if found and found.prefect_api_url:
        return PrefectApi(found.prefect_api_url)
    return start_private(settings)


def start_private(settings: Settings, *, services: bool = False) -> PrefectApi:
    """Start a Prefect server that lives no longer than this process, on a free port."""
    launched = launch_prefect(settings, 0, private=True, services=services)
    return PrefectApi(f"{launched.server.url}/api", launched)


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Run flows without the heartbeat thread, whose end costs each flow a second.

    The setting accepts no empty value from the environment, hence a block around the call.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
