"""Low-rank adapters through PEFT: attach, load, fold into the base."""

import re
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import ConfigError
from core.models.config import LoraConfig
from core.models.seed import seed_everything

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"}
OTHER_SENSES = r".*(vision|visual|image|audio).*"
"""Modules of a model that are not its language part, as a pattern of their names."""
MLP = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}


def targets(config: LoraConfig, model: PreTrainedModel) -> list[str]:
    """List the linear layers that get an adapter.

    Raises:
        ConfigError: If the model has none of the named layers.
    """
    wanted = [name for name in config.target_modules if _is_wanted(name, config)]
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    chosen = [name for name in wanted if name in present]
    if not chosen:
        raise ConfigError(
            f"the model has none of the layers {', '.join(wanted) or '(none left by the finetune_* switches)'}",
            where="lora.target_modules",
            fix=f"its linear layers are {', '.join(sorted(linear_names(model)))}",
        )
    return chosen


def other_senses(model: torch.nn.Module) -> str | None:
    """Return the pattern of modules to leave out, or None if the model has language only."""
    return (
        OTHER_SENSES if any(re.fullmatch(OTHER_SENSES, name) for name, _ in model.named_modules()) else None
    )


def _is_wanted(name: str, config: LoraConfig) -> bool:
    if not config.finetune_language_layers:
        return False
    if name in ATTENTION:
        return config.finetune_attention_modules
    return config.finetune_mlp_modules if name in MLP else True


def linear_names(model: torch.nn.Module) -> set[str]:
    """Return the last name of every linear layer but the output head."""
    names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return names - {"lm_head"}


def attach(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put a fresh adapter on a frozen base; B = 0, so its logits do not change.

    Adapter weights are float32 whatever the base holds, so that small updates survive.
    """
    checkpointing = bool(config.use_gradient_checkpointing)
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    seed_everything(config.random_state)
    adapted = get_peft_model(
        model,
        PeftLoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets(config, model),
            bias=config.bias,
            use_rslora=config.use_rslora,
            task_type="CAUSAL_LM",
            # Vision towers call their projections q_proj and k_proj too.
            exclude_modules=None if config.finetune_vision_layers else other_senses(model),
        ),
    )
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.config.use_cache = False
    return adapted


def merge(base: PreTrainedModel, adapter: Path, probe: Tensor) -> tuple[PreTrainedModel, float]:
    """Fold an adapter into its base and measure what that changed.

    Args:
        base: The base in full precision, never a 4-bit one: folding into NF4 loses the update.
        adapter: Folder of the adapter.
        probe: Token ids [b, s] to compare logits on.

    Returns:
        The merged model, and the largest absolute logit difference on ``probe``.
    """
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        before = adapted(input_ids=probe).logits.float()
        merged = adapted.merge_and_unload(safe_merge=True)
        after = merged(input_ids=probe).logits.float()
    return merged, float((before - after).abs().max())
