"""Handles to immutable files: where they lie and what their bytes hash to.

Bytes never travel between phases, handles do. Everything is written under a
temporary name and renamed into place, so a half-written file never has the
name of a whole one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, Field

from core.config import Frozen
from core.errors import ArtifactChanged

CACHE = "__pycache__"
OLD = "old."
"""Prefix of a folder that is about to be replaced."""


def file_digest(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file's bytes."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def path_digest(path: Path) -> str:
    """Return the digest of a file, or of a folder's relative names and contents.

    What Python keeps beside a script that was imported from the folder does not count.

    Raises:
        FileNotFoundError: If nothing lies at ``path``.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise FileNotFoundError(path)
    total = hashlib.sha256()
    for item in sorted(p for p in path.rglob("*") if p.is_file() and CACHE not in p.parts):
        total.update(f"{item.relative_to(path).as_posix()}\0{file_digest(item)}\n".encode())
    return "sha256:" + total.hexdigest()


def is_unchanged(path: Path, digest: str) -> bool:
    """Tell whether what lies at ``path`` is there and still has this digest."""
    return path.exists() and path_digest(path) == digest


class ArtifactRef(Frozen):
    """Where an artifact lies and what its bytes hash to."""

    path: Path
    """File or folder."""
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """Digest of the content, as ``path_digest`` gives it."""

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"path"})

    @classmethod
    def of(cls, path: Path) -> Self:
        """Make the handle of what lies at ``path`` now."""
        return cls(path=path.resolve(), digest=path_digest(path))

    def is_intact(self) -> bool:
        """Tell whether the bytes still match, without raising."""
        return is_unchanged(self.path, self.digest)

    def verified(self) -> Path:
        """Return the path after hashing the bytes again.

        Raises:
            ArtifactChanged: If the file is gone or its bytes differ.
        """
        if not self.path.exists():
            raise ArtifactChanged(f"{self.path} is gone; run again to make it anew")
        if not self.is_intact():
            raise ArtifactChanged(f"{self.path} was changed after it was made; run again to make it anew")
        return self.path


class Corpus(ArtifactRef):
    """Raw rows gathered from the sources, one JSON object per line, with their origin."""


class Dataset(ArtifactRef):
    """Conversations in the one internal format, cleaned and without duplicates."""


class Splits(ArtifactRef):
    """A folder with ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``."""

    @property
    def train(self) -> Path:
        """Rows to learn from."""
        return self.path / "train.jsonl"

    @property
    def val(self) -> Path:
        """Rows that steer training."""
        return self.path / "val.jsonl"

    @property
    def test(self) -> Path:
        """Rows that only evaluations read."""
        return self.path / "test.jsonl"


class Evaluation(ArtifactRef):
    """Scores of one model on one test set, with every answer it gave."""


class Checkpoint(ArtifactRef):
    """A model folder: weights in safetensors, config, tokenizer; or a LoRA adapter."""


class Quantized(ArtifactRef):
    """A folder of quantized model files."""


class Bundle(ArtifactRef):
    """Everything needed to serve a model, with a manifest."""


A = TypeVar("A", bound=ArtifactRef)
R = TypeVar("R", bound=Frozen)


class PhaseResult(Frozen, Generic[A, R]):
    """What the next phase consumes, and what a gate judges."""

    artifact: A
    report: R


def fingerprint(*parts: Any) -> str:
    """Hash values into one key that is equal in every process.

    Paths, and the fields a model declares in ``not_in_fingerprint``, are left out.

    Raises:
        TypeError: On a value that has no canonical form.
    """
    text = json.dumps([_canonical(part) for part in parts], sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, BaseModel):
        skipped: frozenset[str] = getattr(type(value), "not_in_fingerprint", frozenset())
        fields = {k: _canonical(getattr(value, k)) for k in type(value).model_fields if k not in skipped}
        return {"__kind__": type(value).__name__, **fields}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no canonical form for a fingerprint")


def source_digest(packages: Iterable[str], root: Path) -> str:
    """Hash the Python and template sources of packages, named like ``core.data``.

    A phase's fingerprint includes the code it calls, so editing an engine re-runs
    exactly the phases that use it. A module's templates may lie in a folder of its name.
    """
    total = hashlib.sha256()
    for package in sorted(packages):
        place = root.joinpath(*package.split("."))
        for file in (place.with_suffix(".py"), *sorted(place.rglob("*"))):
            if file.suffix in {".py", ".jinja", ".json"} and file.is_file():
                total.update(f"{file.relative_to(root).as_posix()}\0{file_digest(file)}\n".encode())
    return "sha256:" + total.hexdigest()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and rename it into place at the end.

    Works for files and for folders. On an exception, and after a kill, ``target`` is
    untouched: it holds the old content or does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        part = holder / target.name
        yield part
        _open_up(part)
        _sync(part)
        _replace(part, target, holder)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Yield a folder for work in between, on the disk of ``target``; after a kill it is swept like other parts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(part: Path, target: Path, holder: Path) -> None:
    if target.is_dir():
        # A folder cannot be renamed over a full folder: move the old one aside first.
        target.rename(holder / f"{OLD}{target.name}")
    part.replace(target)


def _open_up(folder: Path) -> None:
    """Give a folder's files the mode that new files have: safetensors makes its own for the owner alone."""
    if folder.is_dir():
        usual = folder.stat().st_mode & 0o666
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(file.stat().st_mode | usual)


def _sync(path: Path) -> None:
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def sweep_parts(folder: Path) -> None:
    """Delete temporary leftovers of killed writers under ``folder``.

    A writer killed between moving an old folder aside and putting the new one in place leaves
    neither; then the old one goes back first.
    """
    for part in folder.rglob(".*.part"):
        for old in part.glob(f"{OLD}*"):
            target = part.parent / old.name.removeprefix(OLD)
            if not target.exists():
                old.rename(target)
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write text atomically, UTF-8 with Unix line ends."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically; NaN and infinity are refused.

    Raises:
        ValueError: If a number is not finite.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows atomically, one JSON object per line; return how many."""
    count = 0
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file that this program wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
