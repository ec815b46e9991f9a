"""Quantizes GGUF files with llama.cpp, in a process of its own.

python -m core.quantization.gguf SOURCE TARGET FTYPE THREADS
"""

import ctypes
import subprocess
import sys
from pathlib import Path

from core.artifacts import atomic_path
from core.errors import EngineFailed, ModelError
from core.quantization.config import GgufType

ROOT = Path(__file__).resolve().parents[2]
# llama.cpp's numbers for "most tensors have this type" (llama_ftype).
FTYPES: dict[GgufType, int] = {"Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}


def quantize_gguf(source: Path, target: Path, kind: GgufType, *, threads: int) -> None:
    """Write a quantized copy of a GGUF file.

    llama.cpp ends the whole process when an assertion fails, so it runs in a child.

    Args:
        source: File with f32, f16 or bf16 weights.
        target: File to write; it appears whole or not at all.
        kind: Type most weights get.
        threads: Threads that quantize.

    Raises:
        ValueError: For f16 and bf16, which the converter writes itself.
        ModelError: If the source is not a GGUF file.
        EngineFailed: If llama.cpp refuses the file or dies, or the result is not a smaller GGUF file.
    """
    if kind not in FTYPES:
        raise ValueError(f"{kind} is written by core.deployment.gguf.write_gguf, not by quantizing")
    if not source.is_file() or not _has_magic(source):
        raise ModelError("this is not a GGUF file", where=str(source))
    with atomic_path(target) as part:
        _run(source.resolve(), part.resolve(), kind, threads)
        _check(source, part, kind)


def _run(source: Path, part: Path, kind: GgufType, threads: int) -> None:
    command = [sys.executable, "-m", "core.quantization.gguf", str(source), str(part)]
    command += [str(FTYPES[kind]), str(threads)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-8:]
        raise EngineFailed(
            f"llama.cpp could not quantize {source.name} to {kind} (exit code {done.returncode})\n"
            + "\n".join(tail)
        )


def _check(source: Path, part: Path, kind: GgufType) -> None:
    if not part.is_file() or not _has_magic(part):
        raise EngineFailed(f"llama.cpp wrote no GGUF file for {kind}")
    before, after = source.stat().st_size, part.stat().st_size
    if after >= before:
        raise EngineFailed(f"{kind} takes {after} bytes, not less than the {before} it was made from")


def _has_magic(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def main(source: str, target: str, ftype: int, threads: int) -> int:
    """Quantize in this process; return llama.cpp's status, 0 for success."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = ftype
    settings.nthread = threads
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
