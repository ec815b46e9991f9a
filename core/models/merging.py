"""Fold an adapter into its base and measure what that changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import ModelError
from core.models.adapter_files import check_adapter
from core.models.failures import clear_messages
from core.models.hf import is_quantized

ROUNDING = "rounds_its_weight_with"
"""Mark of a layer that computes with a rounded weight: the function that rounds it, [outputs, inputs] to the same."""


class MergeErrors(NamedTuple):
    """What folding an adapter in, and taking it out again, changed."""

    logits: float
    """Largest logit difference between base + adapter, as they were trained, and the merged model."""
    rounding: float
    """Largest error of a folded weight against its exact value, over the layer's largest weight."""
    unmerge: float
    """Largest change of a weight after PEFT merged and unmerged the adapter, over the layer's largest weight."""


class Folded(NamedTuple):
    """A base with its adapter folded in."""

    model: PreTrainedModel
    errors: MergeErrors


@torch.no_grad()
def fold(
    base: PreTrainedModel, adapter: Path, probe: Tensor, ready: Callable[[PeftModel], object] | None = None
) -> Folded:
    """Fold an adapter into its base and measure the errors.

    Every folded weight is computed in float32 and rounded to the base's format once; rounding the update
    first and the sum again, as adding in 16 bits does, errs up to twice as much. Works one layer at a time,
    so it needs the memory of the base and of one layer.

    Args:
        base: The base in 16 or 32 bits; becomes the merged model.
        adapter: Folder of the adapter.
        probe: Token ids [b, s] to compare logits on.
        ready: What was done to the adapted model before it was trained, such as letting it round its weights.

    Raises:
        ModelError: If the adapter is for another base, or the base is quantized.
    """
    if is_quantized(base):
        what = "an adapter is not folded into a quantized base: rounding would lose it"
        raise ModelError(what, where=str(adapter), fix="load the base in full precision")
    check_adapter(adapter, base)
    with clear_messages(str(adapter)):
        adapted = PeftModel.from_pretrained(base, adapter).eval()
    if ready:
        ready(adapted)
    before = adapted(input_ids=probe).logits.float()
    unmerge, rounding = 0.0, 0.0
    for layer in adapted_layers(adapted):
        unmerge = max(unmerge, unmerge_error(layer))
        rounding = max(rounding, fold_layer(layer))
    merged: PreTrainedModel = adapted.unload()
    after = merged(input_ids=probe).logits.float()
    return Folded(merged, MergeErrors(float((before - after).abs().max()), rounding, unmerge))


def adapted_layers(model: PeftModel) -> Iterator[LoraLayer]:
    """Iterate over the layers that carry an adapter."""
    yield from (module for module in model.modules() if isinstance(module, LoraLayer))


def fold_layer(layer: Any) -> float:
    """Write base + adapter into the base's weight of one layer.

    Returns:
        The rounding error, relative to the layer's largest weight.
    """
    weight = layer.get_base_layer().weight
    exact = exact_weight(layer)
    if not torch.isfinite(exact).all():
        raise ModelError("the adapter holds numbers that are not finite", fix="train it again")
    weight.data = exact.to(weight.dtype)
    return relative(weight.data.float() - exact, exact)


def exact_weight(layer: Any, adapter: str = "default") -> Tensor:
    """Return the weight [outputs, inputs] of a layer with its adapter, in float32.

    LoRA: W + s B A, with s = alpha / r (arXiv:2106.09685, section 4.1) or alpha / sqrt(r) for rsLoRA
    (arXiv:2312.03732). DoRA: m (W + s B A) / |W + s B A| by rows of outputs (arXiv:2402.09353, equation 5).
    A layer that computes with a rounded weight has that one.
    """
    whole = updated_weight(
        layer.get_base_layer().weight,
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        layer.scaling[adapter],
    )
    if rounding := getattr(layer, ROUNDING, None):
        rounded: Tensor = rounding(whole)
        return rounded
    if adapter not in layer.lora_magnitude_vector:
        return whole
    length = layer.lora_magnitude_vector[adapter].weight.float()
    scaled: Tensor = length[:, None] * whole / whole.norm(dim=1, keepdim=True)
    return scaled


def updated_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + s B A in float32, in memory of its own.

    Args:
        weight: W [outputs, inputs].
        down: A [r, inputs].
        up: B [outputs, r].
        scale: s.
    """
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale)


def unmerge_error(layer: Any) -> float:
    """Let PEFT merge one layer and unmerge it; return the largest change, and put the weight back as it was."""
    weight = layer.get_base_layer().weight
    kept = weight.data.clone()
    layer.merge()
    layer.unmerge()
    error = relative(weight.data.float() - kept.float(), kept.float())
    weight.data = kept
    return error


def relative(difference: Tensor, reference: Tensor) -> float:
    """Return the largest entry of a difference over the largest of its reference; 0 for no difference."""
    top = float(difference.abs().max())
    return top / float(reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)) if top else 0.0
