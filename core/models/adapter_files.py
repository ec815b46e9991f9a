"""Adapter folders: does one fit a base? Compared tensor by tensor, and by the weights it was trained on."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ModelError
from core.models.files import read_object
from core.models.weight_files import BrokenFile, TensorFiles, read_header

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
OTHER_BASE = "use the base that the adapter was trained on"
ONLY_UPDATES = "train it without modules_to_save, and save it with save_embedding_layers=False"
# What is left of a tensor's name after the layer it belongs to; a trained bias keeps PEFT's wrapper in its name.
_PART = re.compile(r"(?:\.base_layer)?\.(lora_A|lora_B|lora_magnitude_vector|bias)(?:\.weight)?$")


def check_adapter(folder: Path, model: "nn.Module") -> dict[str, Any]:
    """Refuse an adapter that does not fit a base model.

    Every tensor must belong to a layer of the base and have its widths, every layer that the adapter
    names must have its tensors, and if the adapter says which weights it was trained on, they must be these.

    Args:
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: The base, without any adapter.

    Returns:
        The adapter's settings.

    Raises:
        ModelError: If the folder is no adapter, or its first tensor that does not fit.
    """
    from core.models.base_identity import check_identity

    settings, tensors = read_adapter(folder)
    base = settings.get("base_model_name_or_path") or "an unnamed base"
    layers, covered = dict(model.named_modules()), set()
    for name, info in sorted(tensors.items()):
        layer, part = _split(name, folder)
        if layer not in layers:
            what = f"the adapter is for another base ({base}): no layer {layer} here"
            raise ModelError(what, where=str(folder), fix=OTHER_BASE)
        covered.add(layer)
        _check_width(folder, layers[layer], layer, part, info.shape)
    if lacking := _uncovered(settings, layers, covered):
        what = f"the adapter is for another base ({base}): it has nothing for layer {lacking}"
        raise ModelError(what, where=str(folder), fix=OTHER_BASE)
    check_identity(folder, model)
    return settings


def read_adapter(folder: Path) -> tuple[dict[str, Any], TensorFiles]:
    """Read an adapter's settings and the names and shapes of its tensors; needs no base, and no PyTorch.

    Raises:
        ModelError: If the folder is no LoRA adapter, or a file of it is damaged.
    """
    settings, problem = read_object(folder / "adapter_config.json")
    if problem or settings.get("peft_type") != "LORA":
        what = f"is no LoRA adapter: adapter_config.json {problem or 'names another kind'}"
        raise ModelError(what, where=str(folder), fix="give the folder that finetune wrote")
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = " (pickled weights are refused)" if list(folder.glob("*.bin")) else ""
        raise ModelError(
            f"has no {WEIGHTS}{pickled}", where=str(folder), fix="save the adapter as safetensors"
        )
    try:
        return settings, read_header(file)
    except BrokenFile as error:
        raise ModelError(f"{file.name} {error}", where=str(folder), fix="copy the adapter again") from error


def _split(name: str, folder: Path) -> tuple[str, str]:
    found = _PART.search(name)
    if not found or not name.startswith(PREFIX):
        raise ModelError(f"holds a tensor that no adapter has: {name}", where=str(folder), fix=ONLY_UPDATES)
    return name[len(PREFIX) : found.start()], found.group(1)


def _check_width(folder: Path, module: "nn.Module", layer: str, part: str, shape: tuple[int, ...]) -> None:
    """Compare one tensor with its layer: A is [r, inputs], B [outputs, r], the rest [outputs]."""
    wanted = module.in_features if part == "lora_A" else getattr(module, "out_features", None)
    found = shape[-1] if part == "lora_A" else shape[0]
    if wanted is not None and wanted != found:
        side = "inputs" if part == "lora_A" else "outputs"
        raise ModelError(
            f"the adapter is for another base: {layer} has {wanted} {side}, its {part} {found}",
            where=str(folder),
            fix=OTHER_BASE,
        )


def _uncovered(settings: dict[str, Any], layers: dict[str, "nn.Module"], covered: set[str]) -> str | None:
    """Return the first layer that the adapter names and has no tensors for."""
    from torch import nn

    named, excluded = settings.get("target_modules"), settings.get("exclude_modules")
    if not isinstance(named, list) or settings.get("layers_to_transform") is not None:
        return None
    for layer, module in layers.items():
        wanted = any(layer == name or layer.endswith(f".{name}") for name in named)
        skipped = isinstance(excluded, str) and re.fullmatch(excluded, layer)
        if wanted and not skipped and isinstance(module, nn.Linear) and layer not in covered:
            return layer
    return None
