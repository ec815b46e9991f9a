"""Which kinds of files are read, told by the ending of their name."""

from core.errors import DataError

SUPPORTED = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".parquet",
    ".arrow",
    ".feather",
)
"""File endings that can be read; each also compressed, such as ``.jsonl.gz``."""
PACKINGS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files, with the name of the compression."""


def split_suffix(name: str) -> tuple[str, str | None]:
    """Return the ending of a file name that tells its kind, and its compression.

    Returns:
        Such as (".jsonl", None), (".csv", "gzip") or ("", None), in small letters.
    """
    *_, name = name.lower().replace("\\", "/").split("/")
    stem, dot, last = name.rpartition(".")
    if not dot:
        return "", None
    if dot + last not in PACKINGS:
        return dot + last, None
    _, dot, inner = stem.rpartition(".")
    return dot + inner if dot else "", PACKINGS["." + last]


def is_supported(name: str) -> bool:
    """Tell whether a file of this name is read."""
    return split_suffix(name)[0] in SUPPORTED


def unsupported(where: str, file_name: str) -> DataError:
    """Return the error for a file type that no reader knows."""
    suffix, packing = split_suffix(file_name)
    kind = f"files ending in {suffix}" if suffix else "files without an ending"
    if packing:
        kind += f" inside {packing}"
    fix = f"convert it to one of {', '.join(SUPPORTED)}; each may also be compressed, such as .jsonl.gz or .jsonl.zst"
    return DataError(f"{kind} cannot be read", where=where, fix=fix)
