"""Low-rank adapters: attach one, by the engine that loaded the base; compare two."""

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from core.models.config import LoraConfig
from core.models.engines import engine_named, framework_of


def attach(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put a fresh adapter on a frozen base; B = 0, so its logits do not change.

    Args:
        model: A base from ``load_model(..., trainable=True)``; the engine that loaded it attaches.
        config: The lora block.

    Raises:
        ConfigError: If the model lacks a named layer.
    """
    return engine_named(framework_of(model)).attach(model, config)


def adapter_parity(first: nn.Module, second: nn.Module) -> tuple[str, ...]:
    """Compare what two adapted models train: names, shapes and dtypes.

    Returns:
        One line per difference; empty when the same tensors are trained.
    """
    one, other = _trained(first), _trained(second)
    lines = [f"{name}: only in the first" for name in sorted(one.keys() - other.keys())]
    lines += [f"{name}: only in the second" for name in sorted(other.keys() - one.keys())]
    shared = sorted(one.keys() & other.keys())
    lines += [f"{name}: {one[name]} and {other[name]}" for name in shared if one[name] != other[name]]
    return tuple(lines)


def _trained(model: nn.Module) -> dict[str, str]:
    return {
        name: f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }
