"""Datasets of the Hugging Face hub, and datasets in its layouts on this machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import path_digest
from core.data.config import SourceConfig
from core.data.readers.batching import Row, in_batches
from core.data.readers.columns import Columns
from core.data.rows import RowBatch
from core.data.sources import hub_errors, hub_library
from core.data.sources.opened import at_most, no_rows
from core.data.sources.presets import PRESETS
from core.errors import DataError

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


class HubName(NamedTuple):
    """What follows ``hf:``."""

    repository: str
    config: str | None
    revision: str | None


def parse_name(path: str, revision: str | None) -> HubName:
    """Return the dataset that ``hf:name``, ``hf:owner/name`` or ``hf:name:config`` means; presets first.

    Raises:
        DataError: If it is no name of a dataset.
    """
    name, _, config = path.removeprefix("hf:").partition(":")
    preset = PRESETS.get(name)
    if preset:
        return HubName(preset.repository, config or preset.config, revision or preset.revision)
    if not _REPOSITORY.fullmatch(name) or set(name) <= {"."} or name in hub_library.loaders():
        fix = f"write hf:owner/name, hf:owner/name:config, or one of {', '.join('hf:' + each for each in PRESETS)}"
        raise DataError("is no name of a dataset", where=path, fix=fix)
    return HubName(name, config or None, revision)


def open_hub(source: SourceConfig, base: Path, *, cache: Path) -> "HubDataset | LocalDataset":
    """Find a dataset of the hub, or a folder with one; nothing is downloaded yet.

    Raises:
        DataError: If there is none.
    """
    name = source.path.removeprefix("hf:")
    folder, _, config = name.partition(":")
    for place, chosen in ((base / name, None), (base / folder, config or None)):
        # A folder wins only over names that look like a path or that it really answers to.
        if name and place.is_dir() and (name.startswith((".", "/")) or folder not in PRESETS):
            return LocalDataset(source, place, chosen, cache)
    if name.startswith((".", "/")):
        raise DataError("no such folder", where=source.path, fix=f"paths are relative to {base}")
    return HubDataset(source, parse_name(source.path, source.revision))


class _Dataset:
    """What both kinds have in common."""

    def __init__(self, source: SourceConfig, origin: str, place: str) -> None:
        self.files: tuple[str, ...] = (origin,)
        self.places: tuple[str, ...] = (place,)
        self.passed_over: tuple[str, ...] = ()
        self._source, self._origin = source, origin
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know; complete once the rows were read."""
        return tuple(self._notes)

    def batches(self) -> Iterator[tuple[str, RowBatch]]:
        """Yield the rows in order with their origin, at most ``max_rows`` of them."""
        return at_most(self._all(), self._source.max_rows)

    def _all(self) -> Iterator[tuple[str, RowBatch]]:
        empty = True
        with hub_errors.told(self._source.path):
            for batch in in_batches(self._rows()):
                empty = False
                yield self._origin, batch
        if empty:
            raise no_rows(self._source.path)

    def _rows(self) -> Iterator[Row]:
        columns, line = None, 1
        for table in hub_library.tables(self._load(), self._source.max_rows):
            columns = columns or Columns(table.schema, self._source.path, self._note)
            for batch in table.to_batches():
                yield from columns.rows(batch, line)
                line += batch.num_rows

    def _load(self) -> Any:
        raise NotImplementedError

    def _note(self, note: str) -> None:
        self._notes[note] = None


class HubDataset(_Dataset):
    """A dataset of the hub as an opened source; its revision is fixed when it is opened."""

    def __init__(self, source: SourceConfig, name: HubName) -> None:
        """Ask the hub, or the cache if there is no network, which commit it is.

        Raises:
            DataError: If there is no such dataset or revision, or nobody can tell.
        """
        with hub_errors.told(source.path):
            found = hub_library.resolve(name.repository, name.config, name.revision)
        label = f"hf:{found.repository}" + (f":{name.config}" if name.config else "")
        super().__init__(source, f"{label}/{source.split}", f"{label}/{source.split}")
        self._name, self._resolved = name, found
        if found.is_cached_only:
            self._note(
                f"{source.path}: the hub was not asked; commit {found.commit[:12]} is read from the cache"
            )

    def digests(self) -> list[tuple[str, str]]:
        """Return the commit."""
        return [(self._origin, f"commit:{self._resolved.commit}")]

    def _load(self) -> Any:
        return hub_library.load_hub(
            self._resolved, self._name.config, self._source.split, streaming=self._source.streaming
        )


class LocalDataset(_Dataset):
    """A folder written by ``save_to_disk``, or one that ``load_dataset`` understands."""

    def __init__(self, source: SourceConfig, folder: Path, config: str | None, cache: Path) -> None:
        """Take over the folder.

        Raises:
            DataError: If a revision is asked for, which a folder has none of.
        """
        if source.revision is not None:
            raise DataError("a folder has no revision", where=source.path, fix="leave revision out")
        name = folder.name + (f":{config}" if config else "")
        super().__init__(source, f"hf:{name}/{source.split}", f"{folder.resolve()}:{config}/{source.split}")
        self._folder, self._config, self._cache = folder, config, cache
        if not source.path.removeprefix("hf:").startswith((".", "/")):
            self._note(f"{source.path}: read from the folder of that name, not from the hub")

    def digests(self) -> list[tuple[str, str]]:
        """Return the digest of the folder's names and bytes."""
        return [(self._origin, path_digest(self._folder))]

    def _load(self) -> Any:
        return hub_library.load_folder(
            self._folder,
            self._config,
            self._source.split,
            streaming=self._source.streaming,
            cache=self._cache / "hub",
        )
