"""Between split and baseline: could this model learn these rows at all? What could not work stops here."""

import json

from pydantic import ValidationError

from core.artifacts import Checkpoint, Splits, file_digest, fingerprint, source_digest, write_json
from core.data.learning_reports import LearnReport
from core.errors import ConfigError
from tasks.context import RunContext, current
from tasks.learnable import READS, Setup, learn_report
from tasks.phase import ROOT


def will_learn(model: Checkpoint, splits: Splits, setup: Setup) -> LearnReport:
    """Look at the training rows as the model will see them, and let it learn one batch by heart if it is small.

    An unchanged look is not repeated.

    Args:
        model: The base model.
        splits: The rows.
        setup: What the run trains, and how.

    Raises:
        ConfigError: If a finding makes training pointless.
    """
    context = current()
    key = fingerprint("learn", source_digest(READS, ROOT), model.digest, file_digest(splits.train), *setup)
    report = _recalled(context, key) or _look(context, model, splits, setup, key)
    context.reports["learning"] = report
    if report.errors:
        first = report.errors[0]
        raise ConfigError(
            "it would not learn: " + "; ".join(finding.what for finding in report.errors),
            where=str(context.workspace.learning),
            fix=first.fix,
        )
    return report


def _recalled(context: RunContext, key: str) -> LearnReport | None:
    try:
        known = json.loads(context.workspace.learning.read_text(encoding="utf-8"))
        return LearnReport.model_validate(known["report"]) if known["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _look(context: RunContext, model: Checkpoint, splits: Splits, setup: Setup, key: str) -> LearnReport:
    context.watcher.noted("split", "looking whether it will learn")
    report = learn_report(model.path, splits.train, setup)
    write_json(context.workspace.learning, {"key": key, "report": report.model_dump(mode="json")})
    verdict = report.overfit.verdict if report.overfit else "not tried"
    context.watcher.noted(
        "split", f"{len(report.findings)} findings on learning; one batch by heart: {verdict}"
    )
    return report
