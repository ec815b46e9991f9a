"""Dynamic quantization in PyTorch: weights become 8-bit integers, inputs are rounded at every call; for CPUs.

PyTorch's converter is deprecated without a successor for LSTM and GRU; this is the one place that calls it.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import DISK_FULL, ModelError, ResourceError
from core.models.failures import first_line
from core.quantization.byte_model import (
    BIAS,
    FORMAT,
    LEVELS,
    SCALES,
    TIED,
    WEIGHTS_FILE,
    ByteEmbedding,
    ByteLinear,
    engine,
    rebuild,
    round_rows,
)

AGAIN = "make the files again: quantization.pytorch: [int8]"


def quantize_dynamic(network: nn.Module) -> nn.Module:
    """Turn the Linear, LSTM and GRU layers of a network into 8-bit ones, in place.

    Linear layers round every output row of the weights and every input row by itself (``ByteLinear``);
    recurrent ones are PyTorch's, with one step per matrix and per input tensor.

    Args:
        network: Float32, on the CPU; it is set to evaluation mode and cannot be trained any more.

    Returns:
        The same network; another one only if it was a single such layer.

    Raises:
        ResourceError: If PyTorch cannot multiply 8-bit integers on this processor.
    """
    from torch.ao.nn.quantized import dynamic as recurrent
    from torch.ao.quantization import default_dynamic_qconfig
    from torch.ao.quantization import quantize_dynamic as convert

    require_engine()
    mapping: dict[Any, Any] = {nn.Linear: ByteLinear, nn.LSTM: recurrent.LSTM, nn.GRU: recurrent.GRU}
    holder = nn.Sequential(network)
    with _deprecation_known():
        convert(holder, dict.fromkeys(mapping, default_dynamic_qconfig), mapping=mapping, inplace=True)
    return holder[0]


def quantize_language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Quantize a language model with its embedding; a head that is tied to it stays one table with it.

    Args:
        model: As for ``quantize_dynamic``.

    Raises:
        ResourceError: If PyTorch cannot multiply 8-bit integers on this processor.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = isinstance(head, nn.Linear) and head.weight is getattr(table, "weight", None)
    # Nothing may hold the float head while the rest is packed.
    del head
    quantize_dynamic(model)
    factor = table._buffers.get("embed_scale")
    # A subclass may do more than look up; Gemma's multiplies by that buffer.
    if type(table) is nn.Embedding or (isinstance(table, nn.Embedding) and factor is not None):
        packed = model.get_output_embeddings()
        rows = packed.rows() if is_tied and isinstance(packed, ByteLinear) else round_rows(table.weight)
        model.set_input_embeddings(ByteEmbedding(rows, factor))
    return model


def save_dynamic(model: PreTrainedModel, folder: Path) -> Path:
    """Write the integers, their steps and all other tensors; nothing is pickled.

    Args:
        model: What ``quantize_language_model`` returned.
        folder: A folder that exists; ``config.json`` is written beside the weights.

    Returns:
        The file of the weights.

    Raises:
        ModelError: If the model has recurrent layers, which live in memory only.
        OSError: If the disk is full (``errno.ENOSPC``).
    """
    from torch.ao.nn.quantized.dynamic.modules.rnn import RNNBase

    if any(isinstance(module, RNNBase) for module in model.modules()):
        raise ModelError(
            "8-bit LSTM and GRU layers cannot be saved", fix="save the float model, quantize after loading"
        )
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    skipped = head if isinstance(table, ByteEmbedding) and _same(table, head) else None
    tensors, header = dict[str, Tensor](), dict(FORMAT)
    for name, module in model.named_modules():
        if module is skipped:
            header[TIED] = name
        else:
            tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in _tensors(module)}
    model.config.save_pretrained(folder)
    return _written(tensors, header, folder / WEIGHTS_FILE)


def _written(tensors: dict[str, Tensor], header: dict[str, str], path: Path) -> Path:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:
        # All that this library says of the operating system's reason is its text.
        for number in DISK_FULL:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise
    return path


def load_dynamic(folder: Path) -> PreTrainedModel:
    """Load a model that ``save_dynamic`` wrote, on the CPU; its logits are the saved model's.

    Raises:
        ModelError: If a file is missing, damaged, of another kind, or does not fit ``config.json``.
        ResourceError: If PyTorch cannot multiply 8-bit integers on this processor, or memory runs out.
    """
    require_engine()
    for name in ("config.json", WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"there is no {name}", where=str(folder), fix=AGAIN)
    try:
        return rebuild(folder)
    except MemoryError as error:
        raise ResourceError("not enough memory to load the model", where=str(folder)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the 8-bit model: {first_line(error)}", where=str(folder), fix=AGAIN
        ) from error


def require_engine() -> None:
    """Refuse a processor that PyTorch cannot multiply 8-bit integers on.

    Raises:
        ResourceError: If there is no engine.
    """
    try:
        engine()
    except RuntimeError as error:
        raise ResourceError(
            str(error), where="quantization.pytorch", fix="quantization.pytorch: []"
        ) from error


def _same(table: ByteEmbedding, head: Any) -> bool:
    """Tell whether a head without bias multiplies with the very rows of the embedding."""
    if not isinstance(head, ByteLinear) or head.bias is not None:
        return False
    return all(torch.equal(mine, other) for mine, other in zip(table.rows(), head.rows(), strict=True))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module itself holds, buffers that Transformers would not save included."""
    if isinstance(module, ByteLinear):
        yield from zip((LEVELS, SCALES), module.rows(), strict=True)
        if module.bias is not None:
            yield BIAS, module.bias.detach()
        return
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            # A copy: frequencies and their originals share memory, which a file cannot.
            yield leaf, tensor.detach().clone().contiguous()


@contextmanager
def _deprecation_known() -> Iterator[None]:
    """Silence what PyTorch says about its converter and its quantized tensors, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"torch\.ao\.quantization is deprecated", category=DeprecationWarning
        )
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor, torch\.quantize_per_channel")
        yield
