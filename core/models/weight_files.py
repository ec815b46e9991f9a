"""Weight files as they lie on disk: complete, safe, and with which tensors; nothing but headers is read."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the format's own readers."""


class Flaw(NamedTuple):
    """Something wrong with a model's files, and what to do about it."""

    what: str
    """Goes on where the folder's name ends: has no tokenizer."""
    fix: str


class TensorInfo(NamedTuple):
    """A tensor by its header."""

    dtype: str
    shape: tuple[int, ...]


TensorFiles = dict[str, TensorInfo]


class BrokenFile(ValueError):
    """A weight file is not what its header says."""


def weight_flaws(folder: Path) -> Iterator[Flaw]:
    """Find what keeps weights from loading: none, pickled ones, missing shards, pointers, truncated files."""
    present = sorted(folder.glob("*.safetensors"))
    if not present:
        pickled = any(next(folder.glob(pattern), None) for pattern in PICKLED)
        what = (
            "only pickled weights (*.bin), which can run code when loaded" if pickled else "no *.safetensors"
        )
        yield Flaw(f"has {what}", "convert or download the weights as safetensors")
        return
    if missing := missing_shards(folder):
        yield Flaw(f"lacks {len(missing)} weight files: {', '.join(missing[:3])}", "download it again")
        return
    files = weight_files(folder)
    if not files:
        yield Flaw(
            f"has {present[0].name}, but neither {SINGLE} nor {INDEX}",
            "save the model with save_pretrained, or download it in the Hugging Face layout",
        )
    for file in files:
        yield from _file_flaws(file)


def _file_flaws(file: Path) -> Iterator[Flaw]:
    try:
        read_header(file)
    except BrokenFile as error:
        pointer = "Git LFS pointer" in str(error)
        fix = f"git -C {file.parent} lfs pull" if pointer else "download or copy the file again"
        yield Flaw(f"has {file.name}, which {error}", fix)


def missing_shards(folder: Path) -> list[str]:
    """List weight files that the index names and the folder lacks."""
    try:
        named = _indexed(folder)
    except BrokenFile as error:
        return [str(error)]
    return sorted(name for name in named if not (folder / name).is_file())


def weight_files(folder: Path) -> list[Path]:
    """List the files a model is loaded from: the index's shards, or the single one."""
    try:
        named = _indexed(folder)
    except BrokenFile:
        return []
    if named:
        return [folder / name for name in sorted(named)]
    single = folder / SINGLE
    return [single] if single.is_file() else []


def _indexed(folder: Path) -> set[str]:
    index = folder / INDEX
    if not index.is_file():
        return set()
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenFile(f"those of {index.name}, which cannot be read") from error


def read_headers(folder: Path) -> TensorFiles:
    """Return every tensor of a model folder by name; empty if a file is missing or broken."""
    tensors: TensorFiles = {}
    try:
        for file in weight_files(folder):
            tensors |= read_header(file)
    except (OSError, BrokenFile):
        return {}
    return tensors


def read_header(file: Path) -> TensorFiles:
    """Read the header of a safetensors file and check that its tensors fill the file exactly.

    The file is: u64 length n, little-endian; n bytes of JSON; the tensors, at offsets the JSON gives.

    Raises:
        BrokenFile: If it is a Git LFS pointer, no safetensors file, or cut short.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise BrokenFile("is a Git LFS pointer, not weights")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER + 1
        if length > LONGEST_HEADER or 8 + length > size:
            raise BrokenFile(f"is truncated or no safetensors file ({size} bytes)")
        header = stream.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        found = {name: TensorInfo(str(e["dtype"]), tuple(e["shape"])) for name, e in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BrokenFile("has a header that is not that of a safetensors file") from error
    wanted = 8 + length + end
    if wanted != size:
        raise BrokenFile(f"is truncated: its header describes {wanted} bytes, it has {size}")
    return found
