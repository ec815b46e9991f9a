"""How long the GPU works on a call, and how long the host needs to launch it: two times that must not be mixed."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

HEAD_START = 400_000
"""Cycles, 0.2 ms, that the GPU waits before each timed call, so that the host is never what is timed."""
FLUSHED = 1 << 28
"""Bytes that are cleared before each call: five times the L2 cache."""


def timed(run: Callable[[], Any], budget: float) -> tuple[float, float]:
    """Return the median milliseconds of a call on the GPU with a cold L2 cache, and the host's microseconds.

    Without the head start a short kernel seems to take as long as its launch: the start event is recorded, and then
    the GPU waits for the host.

    Args:
        run: The call.
        budget: Milliseconds to spend, about.
    """
    flushed = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    for _ in range(3):
        run()
    once = statistics.median(_once(run, flushed) for _ in range(3))
    times = [_once(run, flushed) for _ in range(min(200, max(5, int(budget / (once + 0.4)))))]
    return statistics.median(times), min(_host(run) for _ in range(5))


def _once(run: Callable[[], Any], flushed: torch.Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flushed.zero_()
    torch.cuda._sleep(HEAD_START)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _host(run: Callable[[], Any], calls: int = 5) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return seconds / calls * 1e6
