"""Which of the quantized files ships: asked of the gate, and written where people look for the scores.

The choice follows from the phase's report and the thresholds, so it is made anew in every run, like the verdict:
another threshold changes what ships without quantizing or measuring anything again.
"""

import json
from pathlib import Path
from typing import Any

from core.artifacts import file_digest, write_json
from core.evaluation.reports import EvalReport
from core.quantization.reports import QuantizedFile, QuantReport
from core.training.hints import hint
from gates.rungs import Wanted, judged, ladder, shipped
from gates.thresholds import QuantizationVerified
from tasks.context import current
from tasks.scores import headed

HEAD = ("metric", "value", "n", "interval", "timestamp", "split_digest", "model_digest", "decoding")


def choose(
    tuned: EvalReport, quantized: QuantReport, thresholds: QuantizationVerified, wanted: Wanted
) -> QuantizedFile:
    """Say which file ships, or which one the gate closes over, and write ``metrics/quantization.json``.

    Args:
        tuned: The merged model's evaluation.
        quantized: All files.
        thresholds: The gate's limits.
        wanted: The type that is to ship.
    """
    context = current()
    # Nothing but a report that closes the gate anyway has no file to name.
    chosen = judged(tuned, quantized, thresholds, wanted) or ladder(quantized.files)[0]
    written = write_scores(context.workspace.metrics, quantized, chosen)
    context.evidence[written.relative_to(context.workspace.root).as_posix()] = file_digest(written)
    context.reports["shipped"] = chosen
    return chosen


def advice_on(
    tuned: EvalReport, quantized: QuantReport, thresholds: QuantizationVerified, wanted: Wanted
) -> tuple[str, ...]:
    """Say what to change if no file is good enough; nothing if one is."""
    if shipped(tuned, quantized, thresholds, wanted) is not None:
        return ()
    others = shipped(tuned, quantized, thresholds)
    if others is not None:
        return (f"{wanted} lost too much, {others.type} did not: set deployment.format: smallest",)
    return (hint("quantization_drop"),)


def write_scores(folder: Path, report: QuantReport, chosen: QuantizedFile) -> Path:
    """Write the report with the scores of one file on top; a file that already says so keeps its time."""
    path, content = folder / "quantization.json", headed_files(report, chosen)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return write_json(path, content)
    same = isinstance(known, dict) and {**known, "timestamp": content["timestamp"]} == content
    return path if same else write_json(path, content)


def headed_files(report: QuantReport, chosen: QuantizedFile) -> dict[str, Any]:
    """Lay the report out for its file: the scores of the chosen file on top, every file below."""
    shown = headed(chosen.evaluation)
    head = {name: shown[name] for name in HEAD}
    return {"type": chosen.type, **head, **report.model_dump(mode="json")}
