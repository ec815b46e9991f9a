"""The seam between the engines: what one does, and which one loaded a model."""

from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from core.models.config import Framework, LoraConfig, ModelConfig

MARK = "loaded_by_engine"


class Engine(Protocol):
    """Loads a base for training and puts an adapter on it; every engine trains the same numbers."""

    name: Framework
    """What the config calls it."""

    def load(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Load the base, quantized if the config says so.

        Args:
            config: The model block; ``name`` is a local folder.
            device: Where the weights go.
            dtype: Format of weights and of computation.
        """
        ...

    def attach(self, model: PreTrainedModel, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on a base that this engine loaded."""
        ...


def engine_named(name: Framework) -> Engine:
    """Return an engine; its library is imported by now, or here."""
    if name == "unsloth":
        from core.models.unsloth import UnslothEngine

        return UnslothEngine()
    if name == "fused":
        from core.models.fused.engine import FusedEngine

        return FusedEngine()
    from core.models.hf import HfEngine

    return HfEngine()


def marked(model: PreTrainedModel, engine: Engine) -> PreTrainedModel:
    """Write on a model which engine loaded it; an adapter is attached by the same one."""
    setattr(model, MARK, engine.name)
    return model


def framework_of(model: torch.nn.Module) -> Framework:
    """Return the engine that loaded a model, also below its adapter."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    name: Framework = getattr(inner, MARK, "hf")
    return name
