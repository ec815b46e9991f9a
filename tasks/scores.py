"""How scores are laid out in the files of ``metrics/``, and which way of asking the base is on top there."""

import json
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.artifacts import atomic_path, file_digest, write_json
from core.evaluation.reports import LOWER_IS_BETTER, BaselineReport, EvalReport
from gates.model_performance import arm_to_beat
from tasks.context import current


def headed(report: EvalReport) -> dict[str, Any]:
    """Lay a report out for its file: the primary metric's interval and the time on top."""
    entry = report.metrics[report.metric]
    head = {"metric": report.metric, "value": report.value, "n": report.n, "interval": [entry.low, entry.high],
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    return {**head, **report.model_dump(mode="json")}


def share(report: EvalReport) -> float | None:
    """Return a primary value that lies between 0 and 1; a perplexity does not."""
    return None if report.metric in LOWER_IS_BETTER else report.value


def answers_of(folder: Path, arm: str) -> Path:
    """Name the file of an arm's answers."""
    return folder / f"baseline-{arm}-answers.jsonl"


def forget_arms(folder: Path, kept: Iterable[Path]) -> None:
    """Remove the answers of arms that are no longer asked."""
    known = set(kept)
    for stale in folder.glob("baseline-*-answers.jsonl"):
        if stale not in known:
            stale.unlink()


def compare(base: BaselineReport, compare_to: str) -> EvalReport:
    """Say which arm the tuned model is held against, and put it on top of ``metrics/baseline.json``.

    The choice follows from the phase's report and the gate's setting, so it is made anew in every run, like the
    verdict: another setting asks no model again.

    Args:
        base: Every arm.
        compare_to: An arm's name, or best.

    Returns:
        The arm.
    """
    context, chosen = current(), arm_to_beat(base, compare_to)
    folder = context.workspace.metrics
    scores = _kept(folder / "baseline.json", {**headed(chosen), "arms": base.model_dump(mode="json")["arms"]})
    answers = _copied(answers_of(folder, chosen.arm), folder / "baseline-answers.jsonl")
    for path in (scores, answers):
        context.evidence[path.relative_to(context.workspace.root).as_posix()] = file_digest(path)
    context.reports["compared"] = chosen
    return chosen


def _kept(path: Path, content: dict[str, Any]) -> Path:
    """Write a file of scores; one that says the same already keeps its time."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return write_json(path, content)
    same = isinstance(known, dict) and {**known, "timestamp": content["timestamp"]} == content
    return path if same else write_json(path, content)


def _copied(source: Path, target: Path) -> Path:
    if target.is_file() and file_digest(target) == file_digest(source):
        return target
    with atomic_path(target) as part:
        shutil.copyfile(source, part)
    return target
