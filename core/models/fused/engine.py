"""The fused engine: Transformers' model and PEFT's adapter, run by our own functions."""

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from core.models.config import Framework, LoraConfig, ModelConfig
from core.models.fused.backbone import fuse
from core.models.fused.state import FusedState, obstacle
from core.models.hf import checkpoint_blocks, peft_settings, read_weights
from core.models.quantized import quantization_of, ready_for_training
from core.models.seed import seed_everything


class FusedEngine:
    """Loads with Transformers, adapts with PEFT, and replaces how decoder layers are computed."""

    name: Framework = "fused"

    def load(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Load a base for training; see ``Engine.load``."""
        held = quantization_of(config, dtype)
        model = read_weights(config.name, device, dtype, held)
        return ready_for_training(model) if held else model

    def attach(self, model: PreTrainedModel, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on a frozen base, float32 whatever the base holds, and fuse the layers.

        Embeddings, norms and the head of a quantized base keep their 16 bits. A family without fused layers runs
        by its own code, checkpointed as with the stock engine, and says so.
        """
        settings = peft_settings(config, model)
        model.requires_grad_(False)
        seed_everything(config.random_state)
        adapted = get_peft_model(model, PeftLoraConfig(task_type="CAUSAL_LM", **settings))
        reason = obstacle(model)
        state = fuse(adapted)
        if state is None:
            FusedState.warn(f"{reason}; they run by their own code")
            if config.use_gradient_checkpointing:
                checkpoint_blocks(adapted)
            return adapted
        state.is_checkpointed = bool(config.use_gradient_checkpointing)
        return adapted
