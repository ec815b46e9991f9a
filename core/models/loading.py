"""The one seam through which models come in: local folders or Hub ids, safetensors only, no remote code."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from core.errors import ModelError
from core.models.config import ModelConfig
from core.models.devices import DTYPES, moved, pick_device, pick_dtype, place_of
from core.models.engines import engine_named, framework_of, marked
from core.models.failures import GENERAL_FIX, clear_messages, first_line
from core.models.files import read_object, require_loadable, require_tokenizer
from core.models.frameworks import prepare_framework
from core.models.hf import read_weights
from core.models.quantized import base_format, without_packing

__all__ = [
    "DTYPES",
    "base_format",
    "framework_of",
    "load_folder",
    "load_model",
    "load_tokenizer",
    "local_snapshot",
    "moved",
    "pick_device",
    "pick_dtype",
    "place_of",
    "prepare_framework",
    "read_hf_config",
    "without_packing",
]

WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
COPIES = ["consolidated*", "original/*", "onnx/*", "metal/*"]
"""The same weights once more, in the formats of other programs."""


def load_model(config: ModelConfig, *, trainable: bool = False) -> PreTrainedModel:
    """Load a base model for training or for inference.

    Args:
        config: The model block; its framework and 4- or 8-bit storage count only when ``trainable``.
        trainable: True when an adapter will be put on it.

    Raises:
        ModelError: If the model does not exist, is damaged, is not in safetensors, or needs code of its own.
        ConfigError: If the chosen framework cannot work here and ``fall_back`` is false.
        ResourceError: If memory runs out while loading.
    """
    folder = local_snapshot(config.name, config.revision)
    require_loadable(folder)
    if not trainable:
        device = pick_device()
        with clear_messages(config.name):
            return read_weights(str(folder), device, pick_dtype(config.dtype, device))
    engine = engine_named(prepare_framework(config).framework)
    device = pick_device()
    local = config.model_copy(update={"name": str(folder)})
    with clear_messages(config.name):
        return marked(engine.load(local, device, pick_dtype(config.dtype, device)), engine)


def load_folder(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model folder for inference.

    Raises:
        ModelError: If it cannot be loaded as it is.
    """
    device = pick_device()
    require_loadable(local_snapshot(str(folder)))
    with clear_messages(str(folder)):
        model = read_weights(str(folder), device, dtype or pick_dtype(None, device))
    model.eval()
    return model


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer.

    Raises:
        ModelError: If there is none, if it is damaged, or if it needs remote code.
    """
    if Path(name).is_dir():
        require_tokenizer(Path(name))
        require_parsed(Path(name) / "tokenizer.json")
    with clear_messages(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        fix = "convert it to a fast tokenizer"
        raise ModelError("the tokenizer has no tokenizer.json", where=name, fix=fix)
    return tokenizer


def require_parsed(file: Path) -> None:
    """See that the tokenizers library reads a file; it raises nothing narrower than Exception.

    Raises:
        ModelError: If it does not.
    """
    if not file.is_file():
        return
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:
        fix = "download or save the tokenizer again"
        raise ModelError(
            f"tokenizer.json is broken: {first_line(error)}", where=str(file.parent), fix=fix
        ) from error


def local_snapshot(name: str, revision: str | None = None) -> Path:
    """Return the folder a model lies in: the folder itself, or the Hub cache's snapshot.

    Downloads the snapshot when it is not cached and the Hub can be reached.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub id; None takes the main branch.

    Raises:
        ModelError: If neither works.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError("there is no such folder", where=name, fix=GENERAL_FIX)
    from huggingface_hub import snapshot_download

    with clear_messages(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=COPIES))


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json.

    Raises:
        ModelError: If it is missing or not JSON.
    """
    content, problem = read_object(folder / "config.json")
    if problem:
        raise ModelError(f"has no readable config.json: it {problem}", where=str(folder))
    return content
