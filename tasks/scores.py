"""How scores are laid out in the files of ``metrics/``."""

from datetime import UTC, datetime
from typing import Any

from core.evaluation.reports import EvalReport


def headed(report: EvalReport) -> dict[str, Any]:
    """Lay a report out for its file: the primary metric's interval and the time on top."""
    entry = report.metrics[report.metric]
    head = {"metric": report.metric, "value": report.value, "n": report.n, "interval": [entry.low, entry.high],
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    return {**head, **report.model_dump(mode="json")}
