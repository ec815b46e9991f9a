"""Writes the folder that ONNX Runtime needs: model, tokenizer, chat template, a script that runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core import errors
from core.artifacts import atomic_path, scratch_beside, write_text
from core.deployment.llama.template import without_generation_tags
from core.deployment.onnx.names import INPUTS, MODEL_FILE
from core.deployment.onnx.probe import require_onnx
from core.deployment.onnx.runner import read_switch
from core.deployment.onnx.worker import EXPLAINED
from core.deployment.templates import render_page
from core.deployment.tokenizer_files import TOKENIZER_FILES
from core.errors import EngineFailed, ModelError, ResourceError
from core.models.files import require_loadable
from core.quantization.config import OnnxType

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = "run.py"
PLAIN_FILES = (*TOKENIZER_FILES, "config.json")
SHORTAGE = (
    "a smaller model, or leave ONNX out (quantization.onnx: []): tracing takes about 8 bytes a parameter"
)


def export(model: Path, target: Path, kind: OnnxType, *, threads: int, traced: Path | None = None) -> None:
    """Write a model as ONNX, with a key-value cache and free batch size and length.

    Args:
        model: Folder of a merged model.
        target: Folder to write; it appears whole or not at all.
        kind: fp32, fp16, int8 or int4.
        threads: Threads that compute.
        traced: What ``traced_graph`` yielded for the same model; without it the model is traced here.

    Raises:
        ConfigError: If the packages are missing.
        ModelError: If the model is broken, or keeps other state than keys and values.
        ResourceError: If memory runs out.
        EngineFailed: If the exporter dies.
        OSError: If the disk is full (``errno.ENOSPC``).
    """
    require_onnx()
    if traced is None:
        with traced_graph(model, target, threads=threads) as fresh:
            export(model, target, kind, threads=threads, traced=fresh)
        return
    with atomic_path(target) as part:
        part.mkdir()
        _work(["shrink", str(traced.resolve()), str(part.resolve()), kind, str(threads)])
        _add_companions(model, part, kind)


@contextmanager
def traced_graph(model: Path, beside: Path, *, threads: int) -> Iterator[Path]:
    """Trace a model once, for exports of several types; the folder (4 bytes a parameter) is gone afterwards.

    Args:
        model: Folder of a merged model.
        beside: A path on the disk to work on.
        threads: Threads that compute.

    Raises:
        ConfigError: If the packages are missing.
        ModelError: If the model is broken, or keeps other state than keys and values.
        ResourceError: If memory runs out.
        EngineFailed: If the exporter dies.
    """
    require_onnx()
    if not model.is_dir():
        raise ModelError("there is no model folder", where=str(model))
    require_loadable(model)
    with scratch_beside(beside) as folder:
        _work(["trace", str(model.resolve()), str(folder.resolve()), str(threads)])
        yield folder


def _work(order: Sequence[str]) -> None:
    """Run one order of the worker in a process of its own."""
    command = [sys.executable, "-m", "core.deployment.onnx.worker", *order]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=False)
    if done.returncode == 0:
        return
    if done.returncode == EXPLAINED:
        raise _explained(json.loads(done.stdout))
    if done.returncode == -signal.SIGKILL:
        raise ResourceError("the system ended the ONNX export, as it does when memory runs out", fix=SHORTAGE)
    tail = "\n".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[-8:])
    raise EngineFailed(f"the ONNX export died ({order[0]}, exit code {done.returncode})\n{tail}")


def _explained(told: dict[str, Any]) -> Exception:
    if told["error"] == "MemoryError":
        return ResourceError("not enough memory for the ONNX export", fix=SHORTAGE)
    if told["error"] == "OSError":
        return OSError(told["number"], os.strerror(told["number"]) if told["number"] else told["what"])
    kind: type[errors.UserError] = getattr(errors, told["error"])
    return kind(told["what"], where=told["where"], fix=told["fix"])


def _add_companions(model: Path, part: Path, kind: OnnxType) -> None:
    for name in PLAIN_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, part / name)
    _clean_template(part)
    shutil.copyfile(Path(__file__).with_name("example.py"), part / SCRIPT)
    write_text(part / "README.md", render_page("onnx", _facts(model, part, kind)))


def _clean_template(part: Path) -> None:
    """Take the marks of trained tokens out of the template, which only transformers understands."""
    file = part / "chat_template.jinja"
    if file.is_file():
        write_text(file, without_generation_tags(file.read_text(encoding="utf-8")))


def _facts(model: Path, part: Path, kind: OnnxType) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError("config.json is not JSON", where=str(model)) from error
    return {
        "kind": kind,
        "model": MODEL_FILE,
        "script": SCRIPT,
        "inputs": INPUTS,
        "layers": config.get("num_hidden_layers"),
        "context": config.get("max_position_embeddings"),
        "switch": read_switch(part),
        "has_template": (part / "chat_template.jinja").is_file(),
        "megabytes": sum(file.stat().st_size for file in part.glob("model.onnx*")) / 1e6,
    }
