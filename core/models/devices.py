"""Where weights lie and in which format they compute."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    # Its module takes several times as long to import as PyTorch, and to look for a GPU needs none of it.
    from transformers import PreTrainedModel

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Choose the dtype of weights: as asked, else bf16 or fp16 on a GPU and fp32 on a CPU.

    bfloat16 is taken only where the GPU computes in it; PyTorch also says yes where it emulates it.
    """
    if name is not None:
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def place_of(device: torch.device, *, quantized: bool = False) -> dict[str, str] | None:
    """Say where weights are loaded to: straight onto a GPU, so that main memory need not hold them too."""
    return {"": str(device)} if quantized or device.type != "cpu" else None


def moved(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    """Move a model to a device; Transformers' own wrapper of ``to`` hides its types."""
    torch.nn.Module.to(model, device)
    return model
