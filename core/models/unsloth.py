"""Unsloth: faster kernels for the same adapter, on a GPU.

An optional extra, imported only when chosen; a run does so in a process of its own (``core.training.apart``).
"""

import importlib
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from core.errors import ConfigError
from core.models.config import Framework, LoraConfig, ModelConfig
from core.models.hf import peft_settings, window_of
from core.models.quantized import quantization_of, ready_for_training
from core.models.seed import seed_everything


class UnslothEngine:
    """Loads and adapts with ``unsloth.FastLanguageModel``.

    It gets the same description of the base and of the adapter as the stock engine, so what differs is
    speed and memory. Checked against unsloth 2026.10.
    """

    name: Framework = "unsloth"

    def __init__(self) -> None:
        """Take the library, which ``prepare_framework`` has imported."""
        self.fast: Any = importlib.import_module("unsloth").FastLanguageModel

    def load(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Load a base for training; see ``Engine.load``. Unsloth places it on its device itself.

        Raises:
            ConfigError: If examples may be longer than the model's window: unsloth would rescale positions.
        """
        held = quantization_of(config, dtype)
        model, _ = self.fast.from_pretrained(
            model_name=config.name,
            max_seq_length=within_window(config),
            dtype=dtype,
            load_in_4bit=config.load_in_4bit,
            load_in_8bit=config.load_in_8bit,
            load_in_16bit=held is None and dtype != torch.float32,
            # Its names of Hub models map to other uploads, already quantized in a way of its own.
            use_exact_model_name=True,
            # Everything is here by now; without this it also reports its use to a server.
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **({"quantization_config": held} if held else {}),
        )
        loaded: PreTrainedModel = model
        return ready_for_training(loaded) if held else loaded

    def attach(self, model: PreTrainedModel, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on a base; its names, sizes and dtypes are those of the stock engine."""
        settings = peft_settings(config, model)
        seed_everything(config.random_state)
        adapted: PeftModel = self.fast.get_peft_model(
            model,
            use_gradient_checkpointing=config.use_gradient_checkpointing,
            random_state=config.random_state,
            **settings,
        )
        return adapted


def within_window(config: ModelConfig) -> int:
    """Return the longest example, if the model's positions reach that far."""
    from transformers import AutoConfig

    window = window_of(AutoConfig.from_pretrained(config.name, trust_remote_code=False))
    if window is not None and config.max_seq_length > window:
        raise ConfigError(
            f"{config.max_seq_length} tokens exceed the model's own window of {window}, and unsloth would rescale positions",
            where="model.max_seq_length",
            fix=f"model.max_seq_length: {window} or less, or model.framework: hf",
        )
    return config.max_seq_length
