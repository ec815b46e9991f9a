"""The bundle: one folder with everything that is needed to serve a model, and a manifest of it.

The folder appears whole or not at all. It can be copied to another machine and checked there
against its own manifest.
"""

import errno
import shutil
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError

from core.artifacts import atomic_path, file_digest, write_json, write_text
from core.config import Frozen
from core.deployment.api_page import HandoffConfig
from core.deployment.model_card import ModelCard, render_card
from core.deployment.reports import BundledFile
from core.deployment.tokenizer_files import TOKENIZER_FILES

MANIFEST = "manifest.json"
REQUIRED_FILES = (
    "*.gguf",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "Modelfile",
    "model-card.md",
    "model-card.json",
    "inference-api.md",
    "model-config.json",
    MANIFEST,
)
"""Names, or patterns of names, without which a bundle is not complete."""

_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}

DIGEST = r"^sha256:[0-9a-f]{64}$"


class Provenance(Frozen):
    """What the model was made from, by digest."""

    base_model: str = Field(pattern=DIGEST)
    adapter: str | None = Field(default=None, pattern=DIGEST)
    """Null when no adapter was trained."""
    merged: str = Field(pattern=DIGEST)
    splits: str = Field(pattern=DIGEST)
    config: str = Field(pattern=DIGEST)
    """Fingerprint of the run's settings."""


class BundleContents(Frozen):
    """What goes into a bundle."""

    gguf: Path
    """The model file; keeps its name."""
    tokenizer: Path
    """Folder with the tokenizer's files, usually the merged model."""
    modelfile: str
    card: ModelCard
    api_page: str
    handoff: HandoffConfig
    license_note: str | None = None
    """Text of LICENSE."""
    provenance: Provenance


class Manifest(Frozen):
    """Every other file of the bundle, and what the model was made from."""

    name: str
    version: str | None
    provenance: Provenance
    files: tuple[BundledFile, ...]


def write_bundle(target: Path, contents: BundleContents) -> tuple[tuple[BundledFile, ...], tuple[str, ...]]:
    """Write a bundle in place of what lies at ``target``; the same contents give the same bytes.

    Args:
        target: Folder of the bundle.
        contents: What goes in. The model file is linked hard where the file system allows it,
            and copied otherwise.

    Returns:
        The files of the bundle, the manifest among them, and the entries of ``REQUIRED_FILES``
        for which there is none.
    """
    with atomic_path(target) as part:
        part.mkdir()
        _place_files(part, contents)
        _write_documents(part, contents)
        listed = tuple(_entry(part, name) for name in _names(part))
        manifest = Manifest(
            name=contents.card.model_id,
            version=contents.card.version,
            provenance=contents.provenance,
            files=listed,
        )
        write_json(part / MANIFEST, manifest)
        files = (*listed, _entry(part, MANIFEST))
    return files, _lacking({file.path for file in files})


def verify_bundle(target: Path) -> tuple[str, ...]:
    """Hash a bundle again and hold it against its manifest.

    Args:
        target: Folder of the bundle.

    Returns:
        One line per file that is missing, changed, a link, or not in the manifest; empty if the
        bundle is whole.
    """
    try:
        manifest = Manifest.model_validate_json((target / MANIFEST).read_bytes())
    except (OSError, ValidationError) as problem:
        return (f"{MANIFEST}: missing or unreadable ({type(problem).__name__})",)
    recorded = {file.path: file for file in manifest.files}
    present = set(_names(target)) - {MANIFEST}
    problems = [f"{name}: missing" for name in recorded.keys() - present]
    if (target / MANIFEST).is_symlink():
        problems.append(f"{MANIFEST}: a link, not a file")
    problems += [f"{name}: not in the manifest" for name in present - recorded.keys()]
    for name in present & recorded.keys():
        change = _difference(target / name, recorded[name])
        if change:
            problems.append(f"{name}: {change}")
    problems += [f"{name}: required, and not in the manifest" for name in _lacking({*recorded, MANIFEST})]
    return tuple(sorted(problems))


def _difference(path: Path, recorded: BundledFile) -> str | None:
    if path.is_symlink():
        return "a link, not a file"
    size = path.stat().st_size
    if size != recorded.bytes:
        return f"changed ({size} bytes, not {recorded.bytes})"
    return None if file_digest(path) == recorded.digest else "changed"


def _place_files(part: Path, contents: BundleContents) -> None:
    if contents.gguf.is_file():
        _link_or_copy(contents.gguf.resolve(), part / contents.gguf.name)
    for name in TOKENIZER_FILES:
        source = contents.tokenizer / name
        if source.is_file():
            shutil.copyfile(source, part / name)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a large file a second name; a copy only where the file system has no such thing."""
    try:
        target.hardlink_to(source)
    except OSError as problem:
        if problem.errno not in _NO_HARD_LINK:
            raise
        shutil.copyfile(source, target)


def _write_documents(part: Path, contents: BundleContents) -> None:
    write_text(part / "Modelfile", contents.modelfile)
    write_text(part / "model-card.md", render_card(contents.card))
    write_json(part / "model-card.json", contents.card.record())
    write_text(part / "inference-api.md", contents.api_page)
    write_json(part / "model-config.json", contents.handoff)
    if contents.license_note:
        write_text(part / "LICENSE", contents.license_note)


def _entry(folder: Path, name: str) -> BundledFile:
    path = folder / name
    return BundledFile(path=name, digest=file_digest(path), bytes=path.stat().st_size)


def _names(folder: Path) -> list[str]:
    """List files and links; a link to a folder counts as a file that does not belong here."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(PurePosixPath(path.relative_to(folder)).as_posix() for path in found)


def _lacking(present: set[str]) -> tuple[str, ...]:
    return tuple(wanted for wanted in REQUIRED_FILES if not any(fnmatch(name, wanted) for name in present))
