"""Find the base model and give it a handle."""

import json
from pathlib import Path

from core.artifacts import Checkpoint, path_digest, write_json
from core.models.files import require_loadable
from tasks.context import current


def base_model(name: str, revision: str | None = None) -> Checkpoint:
    """Locate the base (a folder, or the Hub's cache), look whether it can be loaded, and digest it.

    Digesting tens of gigabytes takes a while, so the digest is remembered with every
    file's size and time stamp and taken anew when any of them differs.

    Args:
        name: A folder or a Hub id.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        ModelError: If there is no such model, or it is not whole, not in safetensors or not a language model.
    """
    folder = Path(name).resolve() if Path(name).is_dir() else _from_hub(name, revision)
    require_loadable(folder)
    memory = current().workspace.private / "base.json"
    stamp = {p.relative_to(folder).as_posix(): [p.stat().st_size, p.stat().st_mtime_ns]
             for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("folder") == str(folder) and known.get("stamp") == stamp:
        return Checkpoint(path=folder, digest=known["digest"])
    digest = path_digest(folder)
    write_json(memory, {"folder": str(folder), "stamp": stamp, "digest": digest})
    return Checkpoint(path=folder, digest=digest)


def _from_hub(name: str, revision: str | None) -> Path:
    from core.models.loading import local_snapshot

    return local_snapshot(name, revision)
