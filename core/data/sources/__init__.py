"""Sources: from what the user wrote to rows, wherever they lie. Nothing is read before it is asked for."""

from collections.abc import Sequence
from pathlib import Path

from core.data.config import SourceConfig
from core.data.sources.local import Expanded, LocalFiles, SourceFile, expand, expand_all, refuse_overlap
from core.data.sources.opened import Opened
from core.data.sources.places import kind_of, redacted
from core.data.sources.presets import PRESETS, Preset, find_text_field
from core.errors import DataError

__all__ = [
    "PRESETS",
    "Expanded",
    "Opened",
    "Preset",
    "SourceFile",
    "expand",
    "expand_all",
    "find_text_field",
    "kind_of",
    "open_source",
    "open_sources",
    "redacted",
    "source_digests",
]


def open_source(source: SourceConfig, base: Path, *, cache: Path) -> Opened:
    """Find what one source stands for, without reading its rows.

    Args:
        source: The source.
        base: Directory that a relative path starts from.
        cache: Folder for downloads.

    Raises:
        DataError: If it does not exist, cannot be reached, or is of no kind that is read.
    """
    kind = kind_of(source.path)
    if kind == "hub":
        # The library behind it takes a second to import.
        from core.data.sources.hub import open_hub

        return open_hub(source, base, cache=cache)
    if source.split != "train" or source.revision is not None:
        what = "split and revision are for datasets of the hub"
        raise DataError(what, where=redacted(source.path), fix="leave them out, or name a dataset as hf:NAME")
    if kind == "remote":
        from core.data.sources.remote import Remote

        return Remote(source.path, cache=cache, streaming=source.streaming, max_rows=source.max_rows)
    return LocalFiles(source.path, expand(source.path, base), source.max_rows)


def open_sources(sources: Sequence[SourceConfig], base: Path, *, cache: Path) -> list[Opened]:
    """Find what every source stands for, and make sure that nothing belongs to two.

    Raises:
        DataError: As ``open_source``; also without any source, and when sources overlap.
    """
    expand_all(sources, base)
    opened = [open_source(source, base, cache=cache) for source in sources]
    refuse_overlap(sources, [[(place, place) for place in part.places] for part in opened])
    return opened


def source_digests(sources: Sequence[SourceConfig], base: Path, *, cache: Path) -> list[tuple[str, str]]:
    """Return origin and digest of everything the sources stand for, in the order it is read.

    A phase puts them into its cache key: edited data is read again, moved data is not. What lies on other
    machines is downloaded for it, unless it is streamed.

    Raises:
        DataError: As ``open_sources``, or if something cannot be read.
    """
    return [pair for part in open_sources(sources, base, cache=cache) for pair in part.digests()]
