"""Transformers, PEFT and bitsandbytes: the engine that is always there."""

from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from core.errors import ModelError
from core.models.config import Framework, LoraConfig, ModelConfig
from core.models.devices import moved, place_of
from core.models.quantized import quantization_of, ready_for_training
from core.models.seed import seed_everything
from core.models.targeting import other_senses, targets


class HfEngine:
    """Loads with Transformers and adapts with PEFT."""

    name: Framework = "hf"

    def load(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Load a base for training; see ``Engine.load``."""
        held = quantization_of(config, dtype)
        model = read_weights(config.name, device, dtype, held)
        return ready_for_training(model) if held else model

    def attach(self, model: PreTrainedModel, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on a frozen base; B = 0, so its logits do not change.

        Adapter weights are float32 whatever the base holds, so that small updates survive.
        """
        if is_quantized(model):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        settings = peft_settings(config, model)
        seed_everything(config.random_state)
        adapted = get_peft_model(model, PeftLoraConfig(task_type="CAUSAL_LM", **settings))
        if config.use_gradient_checkpointing:
            checkpoint_blocks(adapted)
        return adapted


def checkpoint_blocks(adapted: PeftModel) -> None:
    """Compute each block again in the backward pass instead of keeping what it computed.

    bitsandbytes' 8-bit product keeps its input where PyTorch's hooks on saved tensors do not see it. Only the
    reentrant variant, whose first forward pass records nothing, lets go of it: on an H200, 1B parameters and
    8 x 2048 tokens, the other one peaked at 24.5 GiB instead of 7.3 with 4 bits.
    """
    in_8_bit = bool(getattr(adapted.get_base_model(), "is_loaded_in_8bit", False))
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": in_8_bit})
    adapted.config.use_cache = False


def read_weights(
    name: str, device: torch.device, dtype: torch.dtype, held: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Read a model folder, safetensors only, and see that no weight is missing.

    Attention stays what Transformers picks, PyTorch's scaled dot product, unless the model's config forbids it.

    Raises:
        ModelError: If the files lack weights of the model: Transformers would draw them at random.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        quantization_config=held,
        device_map=place_of(device, quantized=held is not None),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights lack {len(missing)} tensors of the model: {', '.join(missing[:3])}",
            where=name,
            fix="download the model again, or take config.json and the weights from the same model",
        )
    whole: PreTrainedModel = model
    return whole if held else moved(whole, device)


def window_of(config: PretrainedConfig) -> int | None:
    """Return the positions that a model knows, or None if its settings name none."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def is_quantized(model: torch.nn.Module) -> bool:
    """Tell whether bitsandbytes holds the base in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def peft_settings(config: LoraConfig, model: PreTrainedModel) -> dict[str, Any]:
    """Say in PEFT's words what the adapter is; every engine passes on exactly these.

    Raises:
        ConfigError: If the model lacks a named layer.
    """
    settings: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": targets(config, model),
        "bias": config.bias,
        "use_rslora": config.use_rslora,
    }
    # Vision towers call their projections q_proj and k_proj too.
    excluded = None if config.finetune_vision_layers else other_senses(model)
    # Given only where they say something: engines copy what they get.
    return settings | ({"use_dora": True} if config.use_dora else {}) | (
        {"exclude_modules": excluded} if excluded else {}
    )  # fmt: skip
