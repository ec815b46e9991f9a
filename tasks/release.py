"""Release: what happens to a bundle that passed the last gate."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.artifacts import Bundle, atomic_path, is_unchanged, write_json
from core.deployment.config import DeploymentConfig
from core.deployment.reports import BundleReport
from core.errors import ResourceError
from core.training.config import SaveConfig
from tasks.context import RunContext, current


def release(bundle: Bundle, report: BundleReport, config: DeploymentConfig, save: SaveConfig) -> str:
    """Register the bundle under its alias and make it what ``factory chat`` talks to.

    Releasing the same bundle twice changes nothing.

    Returns:
        The registered version, like ``tutor/3``.
    """
    context = current()
    known = released(context)
    place_bundle(bundle.verified(), context.workspace.bundle, bundle.digest)
    name = config.registered_name or context.name
    waived = [record.gate for record in context.judged if record.status == "waived"]
    tags = {"gguf_type": report.gguf_type, "gguf_digest": report.gguf_digest, "bundle_digest": bundle.digest,
            "waived_gates": ", ".join(waived) or "none"}  # fmt: skip
    if (
        known.get("digest") == bundle.digest
        and known.get("name") == name
        and context.tracker.is_registered(name, config.alias, known["version"], tags)
    ):
        return f"{name}/{known['version']}"
    version = context.tracker.register(name, context.workspace.bundle, config.alias, tags)
    record = {
        "name": name, "version": version, "alias": config.alias, "digest": bundle.digest,
        "gguf": next(file.path for file in report.files if file.digest == report.gguf_digest),
        "gguf_digest": report.gguf_digest, "context_length": config.context_length,
        "threads": context.threads, "released_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_json(context.workspace.private / "release.json", record)
    if save.push_to_hub and save.hub_model_id:
        push(context.workspace.bundle, save.hub_model_id)
    return f"{name}/{version}"


def push(bundle: Path, repository: str) -> None:
    """Upload the bundle to a model repository of the Hugging Face Hub, with the login kept there.

    Raises:
        ResourceError: If the Hub cannot be reached or refuses; the release itself stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True, private=True)
        api.upload_folder(repo_id=repository, folder_path=bundle)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ResourceError(
            f"released, but not uploaded: {str(error).splitlines()[0]}",
            where=f"save.hub_model_id {repository}",
            fix="log in with: hf auth login, check the network, and upload with: "
            f"hf upload {repository} {bundle}",
        ) from error


def place_bundle(candidate: Path, bundle: Path, digest: str) -> None:
    """Put a judged candidate in the place of the bundle, whole or not at all."""
    if is_unchanged(bundle, digest):
        return
    with atomic_path(bundle) as part:
        shutil.copytree(candidate, part, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    """Link a file hard where the file system allows it: model files are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def released(context: RunContext) -> dict[str, Any]:
    """Return the record of the last release from this workspace, or nothing."""
    try:
        record: dict[str, Any] = json.loads(
            (context.workspace.private / "release.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return record
