"""Load base models and tokenizers: local folders or Hub ids, safetensors only, no remote code."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from core.errors import ModelError, ResourceError
from core.models.config import ModelConfig

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Choose the dtype of weights: as asked, else bf16 or fp16 on a GPU and fp32 on a CPU."""
    if name is not None:
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_model(config: ModelConfig, *, trainable: bool = False) -> PreTrainedModel:
    """Load a base model for training or for inference.

    Args:
        config: The model block; ``load_in_4bit`` quantizes to NF4 only when ``trainable``.
        trainable: True when an adapter will be put on it.

    Raises:
        ModelError: If the model does not exist, is not in safetensors, or needs code of its own.
        ResourceError: If memory runs out while loading.
    """
    device = pick_device()
    dtype = pick_dtype(config.dtype, device)
    quantization = nf4(dtype) if config.load_in_4bit and trainable else None
    with _clear_messages(config.name):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            config.name,
            dtype=dtype,
            quantization_config=quantization,
            device_map=place_of(device, quantized=quantization is not None),
            use_safetensors=True,
            trust_remote_code=False,
        )
    return without_packing(model) if quantization else moved(model, device)


def without_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from repacking 4-bit weights on processors with AVX512-BF16.

    It does so in the first evaluation, for good: the packed kernel has no gradient, so training that goes on after
    a look at the validation loss would be silently wrong, and layers narrower than a block of 64 fail at once.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def load_folder(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model folder that this program wrote, for inference."""
    device = pick_device()
    with _clear_messages(str(folder)):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or pick_dtype(None, device),
            device_map=place_of(device),
            use_safetensors=True,
            trust_remote_code=False,
        )
    moved(model, device).eval()
    return model


def place_of(device: torch.device, *, quantized: bool = False) -> dict[str, str] | None:
    """Say where weights are loaded to: straight onto a GPU, so that main memory need not hold them too."""
    return {"": str(device)} if quantized or device.type != "cpu" else None


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model to a device; Transformers' own wrapper of ``to`` hides its types."""
    torch.nn.Module.to(model, device)
    return model


def nf4(compute: torch.dtype) -> Any:
    """Describe 4-bit NormalFloat storage with double quantization (arXiv:2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer.

    Raises:
        ModelError: If there is none, or only one that needs remote code.
    """
    with _clear_messages(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            "the tokenizer has no tokenizer.json", where=name, fix="convert it to a fast tokenizer"
        )
    return tokenizer


def local_snapshot(name: str) -> Path:
    """Return the folder a model lies in: the folder itself, or the Hub cache's snapshot.

    Downloads the snapshot when it is not cached and the Hub can be reached.

    Raises:
        ModelError: If neither works.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    with _clear_messages(name):
        return Path(snapshot_download(name, allow_patterns=wanted))


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json.

    Raises:
        ModelError: If it is missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"no readable config.json ({error})", where=str(folder)) from error
    return content


@contextlib.contextmanager
def _clear_messages(name: str) -> Iterator[None]:
    """Turn the libraries' errors about a model into one message with its fix."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            "not enough GPU memory to load the model",
            where=name,
            fix="load_in_4bit: true, or a smaller model",
        ) from error
    except MemoryError as error:
        raise ResourceError(
            "not enough memory to load the model", where=name, fix="a smaller model"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the model: {str(error).splitlines()[0]}",
            where=name,
            fix="give a folder with config.json, tokenizer.json and *.safetensors, or a Hub id you can reach "
            "(model.name in the config); pickled weights and remote code are refused",
        ) from error
