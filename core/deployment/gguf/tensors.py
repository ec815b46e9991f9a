"""Weights: read one by one from safetensors, renamed, rearranged, and written out."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from core.deployment.gguf.families import Family
from core.errors import ModelError

Dtype = Literal["f32", "f16", "bf16"]

_FORMATS: dict[Dtype, tuple[torch.dtype, GGMLQuantizationType]] = {
    "f32": (torch.float32, GGMLQuantizationType.F32),
    "f16": (torch.float16, GGMLQuantizationType.F16),
    "bf16": (torch.bfloat16, GGMLQuantizationType.BF16),
}
_VISION = ("vision_tower.", "multi_modal_projector.")
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


class Weights:
    """The tensors of a checkpoint folder, each read only when asked for."""

    def __init__(self, model_dir: Path) -> None:
        """Open every shard.

        Raises:
            ModelError: If there are no safetensors, or a shard is missing or broken.
        """
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}
        for shard in _shards(model_dir):
            try:
                handle = self._stack.enter_context(safe_open(str(shard), framework="pt"))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise ModelError(f"cannot read the weights: {error}", where=str(shard)) from error
            self._where |= dict.fromkeys(handle.keys(), handle)

    def __enter__(self) -> Self:
        """Return the open weights."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every shard."""
        self._stack.close()

    def names(self) -> list[str]:
        """Return every tensor's name, as the checkpoint has it."""
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, as float32."""
        return self._where[name].get_tensor(name).to(torch.float32)  # type: ignore[no-any-return]


def _shards(model_dir: Path) -> list[Path]:
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [model_dir / name for name in sorted(names)]
    single = model_dir / "model.safetensors"
    if not single.is_file():
        raise ModelError(
            "there is no model.safetensors", where=str(model_dir), fix="save the model with save_pretrained"
        )
    return [single]


@dataclass(frozen=True)
class Planned:
    """One tensor of the file and where it comes from."""

    name: str
    source: str
    shape: tuple[int, ...]

    def wide(self) -> bool:
        """Tell whether the tensor is stored in the file's type; vectors stay float32."""
        return len(self.shape) > 1


def plan_tensors(weights: Weights, config: Any, family: Family) -> list[Planned]:
    """Decide what every weight is called in the file.

    Args:
        weights: The checkpoint.
        config: transformers config of the language model.
        family: Its family.

    Returns:
        One entry per tensor to write, in the order they are written.

    Raises:
        ModelError: If a weight has no place in the file, or the output layer is missing.
    """
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.arch)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    planned = []
    for source in weights.names():
        plain = _plain_name(source)
        if plain is None or (config.tie_word_embeddings and plain == "lm_head.weight"):
            continue
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"llama.cpp has no place for the weight {source} in {family.arch}")
        planned.append(Planned(name, source, weights.shape(source)))
    _check_complete(planned, config)
    return planned


def _plain_name(source: str) -> str | None:
    """Drop a multimodal wrapper's prefix; None for what is not part of the language model."""
    bare = source.removeprefix("model.")
    if bare.startswith(_VISION) or source.endswith(_BUFFERS):
        return None
    if bare.startswith("language_model."):
        bare = bare.removeprefix("language_model.").removeprefix("model.")
        return bare if bare.startswith("lm_head") else f"model.{bare}"
    return source


def _check_complete(planned: list[Planned], config: Any) -> None:
    present = {item.name for item in planned}
    wanted = {"token_embd.weight", "output_norm.weight"}
    if not config.tie_word_embeddings:
        # llama.cpp would reuse the embedding without a word.
        wanted.add("output.weight")
    if missing := wanted - present:
        raise ModelError(f"the checkpoint lacks {', '.join(sorted(missing))}", where="model.safetensors")


def embedding_rows(planned: list[Planned]) -> int:
    """Return how many token ids the embedding has."""
    return next(item.shape[0] for item in planned if item.name == "token_embd.weight")


def announce(
    writer: GGUFWriter, planned: list[Planned], extra: dict[str, NDArray[np.float32]], dtype: Dtype
) -> None:
    """Register every tensor's name, shape and type before the data follows."""
    for name, array in extra.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    kind, stored = _FORMATS[dtype]
    for item in planned:
        count = int(np.prod(item.shape))
        size = count * (kind.itemsize if item.wide() else 4)
        raw = stored if item.wide() else GGMLQuantizationType.F32
        # The writer wants a numpy type, which bfloat16 has not; raw decides what is recorded.
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), size, raw_dtype=raw)


def stream(
    weights: Weights, planned: list[Planned], config: Any, family: Family, dtype: Dtype
) -> Iterator[NDArray[Any]]:
    """Yield each planned tensor's data, holding one tensor at a time.

    Raises:
        ModelError: If a weight is too large for the file's type.
    """
    for item in planned:
        tensor = _rearranged(item, weights.read(item.source), config, family)
        kind = _FORMATS[dtype][0] if item.wide() else torch.float32
        narrow = tensor.to(kind)
        if kind is torch.float16 and not bool(torch.isfinite(narrow).all()):
            raise ModelError(
                f"weight {item.source} does not fit into f16",
                where="model.safetensors",
                fix="write bf16 or f32 instead",
            )
        yield narrow.contiguous().view(torch.uint8).numpy()


def _rearranged(item: Planned, tensor: torch.Tensor, config: Any, family: Family) -> torch.Tensor:
    if family.norms_plus_one and item.source.endswith("norm.weight"):
        return tensor + 1
    part = item.source.rsplit(".", 2)[-2]
    if family.permutes_qk and part in ("q_proj", "k_proj"):
        grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return _pair_rotary(tensor, config.num_attention_heads if part == "q_proj" else grouped)
    return tensor


def _pair_rotary(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Move the two halves of every head's rotary pairs next to each other."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
