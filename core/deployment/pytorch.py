"""Writes the folder of a quantized PyTorch model: weights, tokenizer, chat template, a script that runs them."""

import shutil
from pathlib import Path

import torch

from core.artifacts import atomic_path, write_text
from core.deployment.templates import render_page
from core.deployment.tokenizer_files import TOKENIZER_FILES
from core.models.failures import clear_messages
from core.models.files import require_loadable
from core.models.hf import read_weights
from core.quantization import byte_model
from core.quantization.dynamic import quantize_language_model, save_dynamic

SCRIPT = "run.py"


def export_pytorch(merged: Path, target: Path) -> None:
    """Write a model with 8-bit weights, for CPUs; the work is done on one, whatever else there is.

    Args:
        merged: Folder of a merged model.
        target: Folder to write; it appears whole or not at all.

    Raises:
        ModelError: If the model is broken.
        ResourceError: If memory runs out, or PyTorch cannot multiply 8-bit integers on this processor.
        OSError: If the disk is full (``errno.ENOSPC``).
    """
    require_loadable(merged)
    with clear_messages(str(merged)):
        model = read_weights(str(merged), torch.device("cpu"), torch.float32)
    quantize_language_model(model)
    with atomic_path(target) as part:
        part.mkdir()
        weights = save_dynamic(model, part)
        _add_companions(merged, part, weights.stat().st_size)


def _add_companions(merged: Path, part: Path, size: int) -> None:
    for name in TOKENIZER_FILES:
        if (merged / name).is_file():
            shutil.copyfile(merged / name, part / name)
    shutil.copyfile(Path(byte_model.__file__), part / SCRIPT)
    facts = {
        "script": SCRIPT,
        "weights": byte_model.WEIGHTS_FILE,
        "has_template": (part / "chat_template.jinja").is_file(),
        "torch": torch.__version__.split("+")[0],
        "megabytes": size / 1e6,
    }
    write_text(part / "README.md", render_page("pytorch", facts))
