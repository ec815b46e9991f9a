"""Workers on a Ray cluster: ``execution.engine: ray``.

Without an address a cluster is started on this machine and stopped at the end. With one, an existing cluster
is joined and left running. Either way Ray's ports are open on every address of the machine, guarded by Ray's own
token. Jobs name files, so on several machines

- the workspace and local sources lie on a file system that all of them mount at the same path, and
- ``data-factory[ray]`` is installed on every node, in the same version.
"""

import importlib.util
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from core.data.workers import guarded, one_thread, worker_died
from core.errors import ConfigError, ResourceError

Job = TypeVar("Job")
Result = TypeVar("Result")

_STORE_BYTES = 256 << 20
"""Shared memory for results, which are small."""
_PATIENCE = 10.0
"""Seconds for a cluster to answer at its address; Ray itself would try for minutes."""
_RETRIES = 1
"""A node may be lost; a job that kills its worker twice is not tried again."""


@contextmanager
def open_ray(count: int | None, address: str | None) -> Iterator["RayWorkers"]:
    """Offer the workers of a cluster.

    Args:
        count: Jobs at work at once; None takes every core of the cluster.
        address: The cluster to join, such as ``auto`` or ``ray://head:10001``; None starts one.

    Raises:
        ConfigError: If Ray is not installed, or no cluster answers.
        ResourceError: If the cluster has no processors.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "Ray is not installed",
            where="execution.engine",
            fix='run pip install "data-factory[ray]", or set execution.engine: local',
        )
    import ray

    if ray.is_initialized():
        # Somebody else's connection; theirs to close.
        yield RayWorkers(count, joined=True)
        return
    with _termination_handler_kept():
        _connect(count, address)
    try:
        yield RayWorkers(count, joined=address is not None)
    finally:
        ray.shutdown()


def _connect(count: int | None, address: str | None) -> None:
    import ray

    # "local", because without an address Ray joins whatever cluster was last started on the machine.
    settings: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "num_cpus": count,
    }
    if address is not None:
        settings = {"address": address}
    try:
        _knock(address)
        ray.init(configure_logging=False, logging_level="ERROR", log_to_driver=False, **settings)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if address is None:
            raise ResourceError(f"Ray does not start: {error}", where="execution.engine") from error
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}",
            where="execution.address",
            fix="start one with `ray start --head`, or leave execution.address out",
        ) from error


def _knock(address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


@contextmanager
def _termination_handler_kept() -> Iterator[None]:
    # ray.init replaces the handler of SIGTERM and never puts it back.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class RayWorkers:
    """The processors of a cluster.

    Args:
        count: Jobs at work at once; None takes every processor.
        joined: The cluster may have more processors than ``count``.
    """

    def __init__(self, count: int | None, *, joined: bool) -> None:
        import ray

        processors = int(ray.cluster_resources().get("CPU", 0))
        if not processors:
            raise ResourceError(
                "the Ray cluster has no processors", where="execution.address", fix="add a node"
            )
        self.count = count or processors
        # Ray itself runs no more than it has processors; only below that must it be given less.
        self._ahead = self.count if joined and self.count < processors else 2 * self.count
        self._run = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results, see ``Workers.map``."""
        import ray

        waiting: deque[Any] = deque()
        try:
            for job in jobs:
                waiting.append(self._run.remote(function, job))
                if len(waiting) == self._ahead:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _run(function: Callable[[Job], Result], job: Job) -> Result:
    one_thread()
    return guarded(function, job)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray wraps it in a class of its own whose message is a traceback.
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise worker_died() from error
