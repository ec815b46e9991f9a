"""The float32 reference: stock modules, eager attention, every document alone, no kernel of ours or of a peer."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from core.data.batches import Batch
from core.data.chat import IGNORE_INDEX
from core.models.devices import moved, pick_device, place_of
from core.models.hf import HfEngine
from core.models.loading import load_model
from core.training.benchmark.adapter import fill, gradients
from core.training.benchmark.case import Case
from core.training.benchmark.parity import save_reference
from core.training.benchmark.rows import documents_of, parity_batch
from core.training.language import trained_tokens


def make_reference(case: Case, target: Path) -> float:
    """Compute loss and gradients of the parity batch, and write them.

    Args:
        case: Base, storage, adapter and rows; the system does not matter.
        target: A safetensors file.

    Returns:
        The loss.
    """
    # On a GPU this keeps float32 products from being rounded to 19 bits (TF32).
    torch.set_float32_matmul_precision("highest")
    model = HfEngine().attach(exact_base(case), case.lora_block(checkpointing=False))
    fill(model, case.seed)
    loss = backward(model, parity_batch(case, model.config.get_text_config().vocab_size))
    save_reference(target, loss, gradients(model))
    return loss


def exact_base(case: Case) -> Any:
    """Load the base in float32; of a quantized one, the very numbers that its bytes stand for in a product.

    bitsandbytes expands 4-bit weights to the compute dtype before it multiplies: those values, widened.
    """
    device = pick_device()
    model: Any = AutoModelForCausalLM.from_pretrained(
        case.model, dtype=torch.float32, attn_implementation="eager", device_map=place_of(device), use_safetensors=True,
        trust_remote_code=False,
    )  # fmt: skip
    moved(model, device)
    if case.storage == "nf4":
        take_quantized(model, load_model(case.model_block("hf"), trainable=True))
    return model.requires_grad_(False)


@torch.no_grad()
def take_quantized(model: nn.Module, held: nn.Module) -> None:
    """Copy the weights of a quantized model's linear layers, expanded, into the same layers of another."""
    from bitsandbytes.functional import dequantize_4bit

    for name, module in held.named_modules():
        weight: Any = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is None:
            continue
        mine: Any = model.get_submodule(name).weight
        mine.copy_(dequantize_4bit(weight.data, weight.quant_state).reshape(mine.shape))


def backward(model: PeftModel, batch: Batch) -> float:
    """Leave the gradient of the mean loss per learned token in the adapter; return that loss.

    Each document is run alone, so nothing here can leak from one to the next.
    """
    model.train()
    device = next(model.parameters()).device
    total, loss = trained_tokens(batch), 0.0
    for document in documents_of(batch):
        if not trained_tokens(document):
            continue
        logits = model(input_ids=document.input_ids.to(device), use_cache=False).logits[0, :-1].float()
        wanted = document.labels[0, 1:].to(device)
        share = cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORE_INDEX) / total
        share.backward()  # type: ignore[no-untyped-call]
        loss += float(share.detach())
    return loss
