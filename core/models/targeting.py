"""Which layers of a loaded model get an adapter."""

import re

from torch import nn
from transformers import PreTrainedModel

from core.errors import ConfigError
from core.models.config import LoraConfig
from core.models.target_names import match_targets

OTHER_SENSES = r".*(vision|visual|image|audio).*"
"""Modules of a model that are not its language part, as a pattern of their names."""


def targets(config: LoraConfig, model: PreTrainedModel) -> list[str]:
    """List the linear layers that get an adapter, by the last part of their names.

    Projections that a family keeps in one matrix (Phi's ``qkv_proj``, ``gate_up_proj``) are found under
    that name.

    Raises:
        ConfigError: If a named layer is no linear layer of the model, or none is left: a run never adapts
            less than asked. Or if it is an output head that shares its weights with the input embedding.
    """
    linears = sorted(linear_names(model, with_other_senses=config.finetune_vision_layers))
    head = _head_name(model)
    chosen, absent = match_targets(config, linears, {*linears, *([head] if head else [])})
    if head in chosen and getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        raise ConfigError(
            f"{head} shares its weights with the input embedding, so an adapter on it cannot be folded in",
            where="lora.target_modules",
            fix=f"leave {head} out",
        )
    if absent or not chosen:
        named = ", ".join(absent) or "(none left by the finetune_* switches)"
        raise ConfigError(
            f"the model has none of the layers {named}",
            where="lora.target_modules",
            fix=f"its linear layers are {', '.join(linears)}; all-linear takes every one of them",
        )
    return list(chosen)


def linear_names(model: nn.Module, *, with_other_senses: bool = True) -> set[str]:
    """Return the last name of every linear layer but the output head."""
    head = output_head(model)
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (with_other_senses or not re.fullmatch(OTHER_SENSES, name))
    } - {"lm_head"}


def _head_name(model: nn.Module) -> str | None:
    head = output_head(model)
    return next((name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is head), None)


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits, if the model tells."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter else None


def other_senses(model: nn.Module) -> str | None:
    """Return the pattern of modules to leave out, or None if the model has language only."""
    return (
        OTHER_SENSES if any(re.fullmatch(OTHER_SENSES, name) for name, _ in model.named_modules()) else None
    )
