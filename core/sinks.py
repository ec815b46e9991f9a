"""Where long computations send their numbers: a protocol, and the plain implementations."""

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Receives metrics by step. Core never knows who listens."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""
        ...


class ListSink:
    """Keeps everything in memory; for tests and for curves in reports."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step."""
        self.rows.append((step, dict(metrics)))


class Fanout:
    """Sends every metric to several sinks."""

    def __init__(self, *sinks: MetricSink) -> None:
        """Remember the listeners, in order."""
        self.sinks = sinks

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass one step on to every listener."""
        for sink in self.sinks:
            sink.log(step, metrics)
