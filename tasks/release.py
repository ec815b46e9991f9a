"""Release: what happens to a bundle that passed the last gate."""

import json
from datetime import UTC, datetime
from typing import Any

from core.artifacts import Bundle, write_json
from core.deployment.config import DeploymentConfig
from core.deployment.reports import BundleReport
from tasks.context import RunContext, current


def release(bundle: Bundle, report: BundleReport, config: DeploymentConfig) -> str:
    """Register the bundle under its alias and make it what ``factory chat`` talks to.

    Releasing the same bundle twice changes nothing.

    Returns:
        The registered version, like ``tutor/3``.
    """
    context = current()
    known = released(context)
    name = config.registered_name or context.name
    tags = {"gguf_type": report.gguf_type, "gguf_digest": report.gguf_digest, "bundle_digest": bundle.digest}
    if (
        known.get("digest") == bundle.digest
        and known.get("name") == name
        and context.tracker.is_registered(name, config.alias, known["version"], tags)
    ):
        return f"{name}/{known['version']}"
    version = context.tracker.register(name, bundle.verified(), config.alias, tags)
    record = {
        "name": name, "version": version, "alias": config.alias, "digest": bundle.digest,
        "gguf": next(file.path for file in report.files if file.digest == report.gguf_digest),
        "gguf_digest": report.gguf_digest, "context_length": config.context_length,
        "tracking_uri": context.tracker.uri, "released_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_json(context.workspace.private / "release.json", record)
    return f"{name}/{version}"


def released(context: RunContext) -> dict[str, Any]:
    """Return the record of the last release from this workspace, or nothing."""
    try:
        record: dict[str, Any] = json.loads(
            (context.workspace.private / "release.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return record
