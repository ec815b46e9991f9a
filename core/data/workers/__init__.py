"""Who does the work of the data phases: this process, processes of this machine, or a Ray cluster.

All three give the same results in the same order, so nothing else needs to know which one is at work. Jobs
are small and name files; the rows themselves stay on disk.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Literal, NoReturn, Protocol, TypeVar

from core.errors import EngineFailed, ResourceError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(Protocol):
    """Something that can apply a function to many jobs."""

    @property
    def count(self) -> int:
        """Jobs at work at once."""
        ...

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield ``function(job)`` for every job, in the order of the jobs.

        Jobs are taken from the iterable only as they are needed, at most ``2 * count`` ahead of the
        result that is awaited. After closing the iterator those may still be finished, no others.

        Args:
            function: Importable by name (no lambda, no closure), as are its arguments and results.
            jobs: What to apply it to.

        Raises:
            Exception: Whatever the function raised first, in the order of the jobs.
            ResourceError: If a worker died.
        """
        ...


@contextmanager
def open_workers(
    engine: Literal["local", "ray"], count: int | None, address: str | None
) -> Iterator[Workers]:
    """Offer workers for the length of a ``with`` block; none is left when it ends, however it ends.

    Args:
        engine: ``execution.engine``.
        count: ``execution.workers``; None takes every core.
        address: ``execution.address``, the Ray cluster to join.

    Raises:
        ConfigError: If Ray is not installed, or no cluster answers.
    """
    if engine == "ray":
        from core.data.workers.ray_engine import open_ray

        with open_ray(count, address) as cluster:
            yield cluster
        return
    wanted = count or _cores()
    if wanted == 1:
        yield Inline()
        return
    local = Local(wanted)
    try:
        yield local
    except BaseException:
        local.kill()
        raise
    finally:
        local.close()


def _cores() -> int:
    # A container or a batch system may lend fewer than the machine has; not every system can say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Inline:
    """This process alone."""

    count = 1

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results one by one, see ``Workers.map``."""
        for job in jobs:
            yield function(job)


class Local:
    """Processes of this machine, started when a second job comes: little data costs nothing extra.

    Args:
        count: Processes at work at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results, see ``Workers.map``; a single job is done by this process itself."""
        jobs = iter(jobs)
        first = list(islice(jobs, 2))
        if len(first) < 2:
            yield from Inline().map(function, first)
            return
        # Left early, these are not cancelled: in a pool that breaks, cancelled futures kill the thread that
        # cleans up. They are few, and ``kill`` ends them.
        waiting: deque[Future[Result]] = deque()
        for job in chain(first, jobs):
            waiting.append(self._submit(function, job))
            if len(waiting) == 2 * self.count:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _submit(self, function: Callable[[Job], Result], job: Job) -> "Future[Result]":
        # A process is started on demand. It inherits the mask and is deaf to Ctrl-C from its first moment.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._started().submit(guarded, function, job)
        except BrokenProcessPool as error:
            _died(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: the parent may hold locks of Arrow's or Prefect's threads.
            context = multiprocessing.get_context("spawn")
            theirs, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_begin, initargs=(theirs,)
            )
        return self._pool

    def kill(self) -> None:
        """End all workers at once, in the middle of their jobs."""
        if self._lifeline is not None:
            self._lifeline.close()

    def close(self) -> None:
        """Wait for running jobs, drop the others, end the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self.kill()
        self._pool = self._lifeline = None


def _result(future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        _died(error)


def _died(error: BrokenProcessPool) -> NoReturn:
    raise worker_died() from error


def worker_died() -> ResourceError:
    """Return what to tell the user when a worker is gone without a word."""
    return ResourceError(
        "a worker process was killed, most likely because memory ran out",
        where="execution.workers",
        fix="set execution.workers: 1, or free memory and start again",
    )


def guarded(function: Callable[[Job], Result], job: Job) -> Result:
    """Call a function in a worker so that whatever it raises can travel to the parent.

    Raises:
        EngineFailed: In place of an exception that does not survive pickling.
    """
    try:
        return function(job)
    except Exception as error:
        if _travels(error):
            raise
        raise EngineFailed(f"{type(error).__name__}: {error}") from None


def _travels(error: Exception) -> bool:
    try:
        copy = pickle.loads(pickle.dumps(error))  # our own bytes, made in this line
    except Exception:  # noqa: BLE001 - foreign exceptions may fail here in any way
        return False
    return type(copy) is type(error) and str(copy) == str(error)


def one_thread() -> None:
    """Keep Arrow and BLAS in this process to one thread; the parallelism is in the processes."""
    # The libraries read these when they are loaded, which is after this.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.putenv(name, "1")
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _begin(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output may be the one JSON line of --json; nothing a job calls may add to it.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.close(silent)
    sys.stdout = sys.__stdout__
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    one_thread()


def _end_with(lifeline: Connection) -> None:
    """Leave as soon as the parent closes its end of the pipe, or dies in whatever way."""
    lifeline.poll(None)
    os._exit(1)
