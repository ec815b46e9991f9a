"""What cannot work together in the model and lora blocks of a run config."""

from collections.abc import Iterator

from core.models.config import LINEAR_PROJECTIONS, LoraConfig, ModelConfig
from core.quantization.aware_limits import aware_obstacles, traits_of
from core.quantization.config import AwareType
from flows.run_outputs import Problem


def adapter_problems(model: ModelConfig, lora: LoraConfig) -> Iterator[Problem]:
    """List what makes an adapter impossible, or leaves nothing to train."""
    if not lora.target_modules:
        yield Problem(("lora.target_modules",), "is empty, so nothing would be trained")
    if not lora.finetune_language_layers:
        yield Problem(
            ("lora.finetune_language_layers", "lora.finetune_vision_layers"),
            "finetune_language_layers is false, and other layers cannot be trained yet: nothing would be trained",
        )
    if lora.use_dora and model.load_in_8bit:
        yield Problem(
            ("lora.use_dora", "model.load_in_8bit"),
            "DoRA needs the base's weights in every step, which 8-bit storage does not give back; "
            "use load_in_4bit: true, or use_dora: false",
        )
    named = set() if lora.target_modules == "all-linear" else set(lora.target_modules)
    projections_only = bool(named) and named <= set(LINEAR_PROJECTIONS)
    if projections_only and not (lora.finetune_attention_modules or lora.finetune_mlp_modules):
        yield Problem(
            ("lora.finetune_attention_modules", "lora.finetune_mlp_modules"),
            "finetune_attention_modules and finetune_mlp_modules are both false, so nothing would be trained",
        )


def rounding_problems(aware: AwareType | None, model: ModelConfig, lora: LoraConfig) -> Iterator[Problem]:
    """List what keeps a run from training with the rounding of a quantized type."""
    for obstacle in aware_obstacles(aware, traits_of(model, lora)) if aware else ():
        what = f"contradicts quantization.aware: {obstacle.what}; {obstacle.fix}"
        yield Problem((obstacle.where, "quantization.aware"), what)
