"""The process that traces and quantizes: the exporter may use much memory, print much, or crash.

    python -m core.deployment.onnx.worker trace MODEL FOLDER THREADS
    python -m core.deployment.onnx.worker shrink TRACED FOLDER KIND THREADS

Success is exit code 0. An error that the user can understand is one JSON object on stdout and exit code 3;
everything that libraries print goes to stderr.
"""

import json
import os
import sys
from pathlib import Path
from typing import get_args

from core.errors import ModelError, UserError
from core.quantization.config import OnnxType

EXPLAINED = 3
PROBE = 6
"""Tokens that a finished model must get through, at once and one by one."""


def trace_folder(model: Path, folder: Path, threads: int) -> None:
    """Trace a model folder to a float32 graph in another folder."""
    import torch

    from core.deployment.onnx.files import save
    from core.deployment.onnx.graph import load_for_export, trace

    torch.set_num_threads(threads)
    save(trace(load_for_export(model)), folder)


def shrink_folder(traced: Path, folder: Path, kind: OnnxType, threads: int) -> None:
    """Write a traced graph in another type, and run the result once."""
    from core.deployment.onnx.files import load, save
    from core.quantization.onnx import shrink

    program = load(traced)
    shrink(program, kind)
    save(program, folder)
    _probe(folder, threads)


def _probe(folder: Path, threads: int) -> None:
    """Run the model here: what makes ONNX Runtime crash ends this process and not the one that waits for it."""
    import numpy as np

    from core.deployment.onnx.runner import OnnxRunner

    runner = OnnxRunner(folder, threads=threads)
    ids = np.arange(2 * PROBE).reshape(2, PROBE) % min(runner.vocabulary, 16)
    if not (np.isfinite(runner.logits(ids)).all() and np.isfinite(runner.decode_logits(ids)).all()):
        raise ModelError(
            "the ONNX model computes values that are no numbers",
            where=str(folder),
            fix="leave this type out of quantization.onnx",
        )


def main(arguments: list[str]) -> int:
    """Run one order; return the exit code."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        match arguments:
            case ["trace", model, folder, threads]:
                trace_folder(Path(model), Path(folder), int(threads))
            case ["shrink", traced, folder, kind, threads]:
                known: dict[str, OnnxType] = {name: name for name in get_args(OnnxType)}
                shrink_folder(Path(traced), Path(folder), known[kind], int(threads))
            case _:
                return 2
    except (UserError, MemoryError, OSError) as error:
        told.write(json.dumps(_described(error)))
        told.flush()
        return EXPLAINED
    return 0


def _described(error: UserError | MemoryError | OSError) -> dict[str, str | int]:
    if isinstance(error, UserError):
        return {"error": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    if isinstance(error, OSError):
        return {"error": "OSError", "number": error.errno or 0, "what": str(error)}
    return {"error": "MemoryError"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
