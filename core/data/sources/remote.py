"""Sources on other machines: listed first, then downloaded once or read through."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from core.artifacts import atomic_path, file_digest, write_json
from core.data.readers import is_supported, read_batches, read_open, unsupported
from core.data.rows import RowBatch
from core.data.sources.network import Guarded, connect, told
from core.data.sources.opened import at_most, no_rows
from core.data.sources.places import redacted
from core.data.sources.walking import is_document, nothing_readable
from core.errors import DataError

_TRIES = 3
# What file systems call the mark that changes with the content, best first.
_VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "Content-MD5",
    "Digest",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)


class RemoteFile(NamedTuple):
    """A data file on another machine."""

    path: str
    """Path on its file system; may hold secrets."""
    name: str
    """Its address without secrets."""
    origin: str
    version: str | None
    """What changes with the content; None if the server does not tell."""
    size: int | None


class Remote:
    """Files behind a URL as an opened source."""

    def __init__(self, url: str, *, cache: Path, streaming: bool, max_rows: int | None) -> None:
        """Look up what is there.

        Args:
            url: An address that fsspec understands: a file, a folder, or a glob where the server can list.
            cache: Folder for downloads.
            streaming: Read through instead of downloading.
            max_rows: Rows to yield at most.

        Raises:
            DataError: If it cannot be reached, or nothing of it can be read.
        """
        self._url, self._cache, self._streaming, self._max_rows = url, cache, streaming, max_rows
        self._found, self.passed_over = _look_up(url)
        self.files = tuple(file.origin for file in self._found)
        self.places = tuple(_place(file) for file in self._found)
        self._notes: dict[str, None] = {}
        self._fetched: dict[str, Path] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know; complete once the rows were read."""
        return tuple(self._notes)

    def batches(self) -> Iterator[tuple[str, RowBatch]]:
        """Yield the rows in order with their origin, at most ``max_rows`` of them."""
        return at_most(self._all(), self._max_rows)

    def digests(self) -> list[tuple[str, str]]:
        """Return each origin with the digest of its bytes; of a stream, of its version or its first rows."""
        if not self._streaming:
            return [(file.origin, _digest_of(self._fetch(file))) for file in self._found]
        if all(file.version for file in self._found):
            return [(file.origin, _hashed(_address(file), str(file.version))) for file in self._found]
        total = hashlib.sha256()
        for _, batch in self.batches():
            total.update("\n".join(batch.rows).encode() + b"\n")
        return [(redacted(self._url), "sha256:" + total.hexdigest())]

    def _all(self) -> Iterator[tuple[str, RowBatch]]:
        empty = []
        for file in self._found:
            count = 0
            for batch in self._through(file) if self._streaming else self._stored(file):
                count += len(batch.rows)
                yield file.origin, batch
            if not count:
                empty.append(file.name)
        if len(empty) == len(self._found):
            raise no_rows(redacted(self._url))
        for name in empty:
            self._note(f"{name}: holds no rows")

    def _stored(self, file: RemoteFile) -> Iterator[RowBatch]:
        return read_batches(self._fetch(file), file.name, suffix=file.origin, note=self._note)

    def _through(self, file: RemoteFile) -> Iterator[RowBatch]:
        filesystem, _ = connect(self._url)
        with told(self._url):
            opened = filesystem.open(file.path, "rb")
        with Guarded(opened, self._url) as raw:
            yield from read_open(cast(Any, raw), file.name, file.origin, self._note)

    def _fetch(self, file: RemoteFile) -> Path:
        if file.path not in self._fetched:
            self._fetched[file.path] = _download(self._url, file, self._cache)
        return self._fetched[file.path]

    def _note(self, note: str) -> None:
        self._notes[note] = None


def _look_up(url: str) -> tuple[tuple[RemoteFile, ...], tuple[str, ...]]:
    filesystem, path = connect(url)
    with told(url):
        found, root = _list(filesystem, path, url)
    if root is None:
        file = _describe(filesystem, path, found[path], path.rpartition("/")[0])
        if not is_supported(file.origin):
            raise unsupported(file.name, file.origin)
        return (file,), ()
    files = [_describe(filesystem, each, info, root) for each, info in sorted(found.items())]
    files = [file for file in files if not is_document(tuple(file.origin.split("/")))]
    data = tuple(file for file in files if is_supported(file.origin))
    rest = [file.name for file in files if not is_supported(file.origin)]
    if not data:
        raise nothing_readable(redacted(url), len(found), rest)
    return data, tuple(rest)


def _list(filesystem: Any, path: str, url: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return what is there by path; and the folder it lies in, unless it is a single file."""
    is_http = url.lower().startswith("http")
    if any(sign in path.partition("?")[0] for sign in "*[") or ("?" in path and not is_http):
        found = filesystem.glob(path, detail=True)
        # The pattern's fixed beginning is what all matches lie under.
        root = path[: min(path.find(sign) for sign in "*[?" if sign in path)].rpartition("/")[0]
        return _files(found), root
    info = filesystem.info(path)
    if info.get("type") == "directory":
        return _files(filesystem.find(path, detail=True)), path.rstrip("/").rpartition("/")[0]
    return {path: info}, None


def _files(found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict):
        raise DataError("the server cannot list files", where="sources", fix="name each file")
    return {path: info for path, info in found.items() if info.get("type") != "directory"}


def _describe(filesystem: Any, path: str, info: dict[str, Any], root: str) -> RemoteFile:
    plain = redacted(path)
    name = redacted(filesystem.unstrip_protocol(path))
    origin = plain.removeprefix(redacted(root)).strip("/") or plain.rpartition("/")[2]
    versions = [f"{key}={info[key]}" for key in _VERSIONS if info.get(key)]
    size = info.get("size")
    version = f"{versions[0]};size={size}" if versions else None
    return RemoteFile(path, name, origin, version, size)


def _download(url: str, file: RemoteFile, cache: Path) -> Path:
    """Return a file's place in the cache; it is fetched unless this very version lies there."""
    folder = cache / "remote" / _hashed(_address(file), file.version or "").removeprefix("sha256:")[:32]
    target = folder / Path(file.origin).name
    if file.version and _is_whole(target):
        return target
    with atomic_path(folder) as part:
        part.mkdir()
        _fetch_into(url, file, part / target.name)
        size, digest = (part / target.name).stat().st_size, file_digest(part / target.name)
        about = {"address": file.name, "version": file.version, "size": size, "digest": digest}
        write_json(part / "about.json", about)
    return target


def _fetch_into(url: str, file: RemoteFile, target: Path) -> None:
    filesystem, _ = connect(url)
    for left in reversed(range(_TRIES)):
        try:
            with told(url):
                filesystem.get_file(file.path, str(target))
            break
        except DataError:
            # The listing has just worked, so a break in between is worth another try.
            if not left:
                raise
    got = target.stat().st_size
    if file.size is not None and not file.path.startswith("http") and got != file.size:
        what = f"the download has {got} bytes, the server announced {file.size}"
        raise DataError(what, where=file.name, fix="run again once the file is no longer written to")


def _is_whole(target: Path) -> bool:
    about = target.parent / "about.json"
    if not (about.is_file() and target.is_file()):
        return False
    return bool(json.loads(about.read_text(encoding="utf-8"))["size"] == target.stat().st_size)


def _digest_of(target: Path) -> str:
    about = json.loads((target.parent / "about.json").read_text(encoding="utf-8"))
    return str(about["digest"])


def _address(file: RemoteFile) -> str:
    # The query may tell files apart; only its hash is kept.
    return f"{file.name}\0{file.path.partition('?')[2]}"


def _place(file: RemoteFile) -> str:
    query = file.path.partition("?")[2]
    return f"{file.name} ({_hashed(query)[7:15]})" if query else file.name


def _hashed(*words: str) -> str:
    return "sha256:" + hashlib.sha256("\0".join(words).encode()).hexdigest()
