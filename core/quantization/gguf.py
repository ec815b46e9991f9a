"""Quantizes GGUF files with llama.cpp, in a process of its own.

python -m core.quantization.gguf SOURCE TARGET FTYPE THREADS [IMPORTANCE]
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

from core.artifacts import atomic_path
from core.errors import EngineFailed, ModelError
from core.quantization.config import GgufType
from core.quantization.engine import run_engine

# llama.cpp's numbers for "most tensors have this type" (llama_ftype).
FTYPES: dict[GgufType, int] = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}


def quantize_gguf(
    source: Path, target: Path, kind: GgufType, *, threads: int, importance: Path | None = None
) -> None:
    """Write a quantized copy of a GGUF file.

    llama.cpp ends the whole process when an assertion fails, so it runs in a child.

    Args:
        source: File with f32, f16 or bf16 weights.
        target: File to write; it appears whole or not at all.
        kind: Type most weights get.
        threads: Threads that quantize.
        importance: What ``collect_importance`` measured on the source; weighs the rounding errors.

    Raises:
        ValueError: For f16 and bf16, which the converter writes itself.
        ModelError: If the source is not a GGUF file.
        OSError: If the disk is full (``errno.ENOSPC``).
        EngineFailed: If llama.cpp refuses the file or dies, or the result is not a smaller GGUF file.
    """
    if kind not in FTYPES:
        raise ValueError(f"{kind} is written by core.deployment.gguf.write_gguf, not by quantizing")
    if not source.is_file() or not _has_magic(source):
        raise ModelError("this is not a GGUF file", where=str(source))
    with atomic_path(target) as part:
        _run(source.resolve(), part.resolve(), kind, threads, importance)
        _check(source, part, kind)


def _run(source: Path, part: Path, kind: GgufType, threads: int, importance: Path | None) -> None:
    arguments = [str(source), str(part), str(FTYPES[kind]), str(threads)]
    arguments += [str(importance.resolve())] if importance else []
    run_engine("core.quantization.gguf", arguments, part.parent, f"quantize {source.name} to {kind}")


def _check(source: Path, part: Path, kind: GgufType) -> None:
    if not part.is_file() or not _has_magic(part):
        raise EngineFailed(f"llama.cpp wrote no GGUF file for {kind}")
    before, after = source.stat().st_size, part.stat().st_size
    if after >= before:
        raise EngineFailed(f"{kind} takes {after} bytes, not less than the {before} it was made from")


def _has_magic(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def main(source: str, target: str, ftype: int, threads: int, importance: str | None = None) -> int:
    """Quantize in this process; return llama.cpp's status, 0 for success."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = ftype
    settings.nthread = threads
    held = _entries(importance) if importance else None
    if held is not None:
        settings.imatrix = held[0]
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))


def _entries(importance: str) -> tuple[Any, ...]:
    """Lay importance out as llama.cpp reads it: an array that ends with an empty entry, and what it points to."""
    import llama_cpp

    from core.quantization.importance import load_importance

    values = load_importance(Path(importance))
    entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    floats = ctypes.POINTER(ctypes.c_float)
    for entry, (name, numbers) in zip(entries, values.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), numbers.ctypes.data_as(floats), numbers.size
    return entries, values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:6]))
