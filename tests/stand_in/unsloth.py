"""Does with Transformers and PEFT what unsloth does with its kernels, keeps what it was told, and when it was imported.

This folder goes onto PYTHONPATH where a test wants ``import unsloth`` to find it.
"""

import importlib
import sys

import torch

LOADED_BEFORE = frozenset(sys.modules)
"""What had been imported before this was."""


def import_the_rest() -> None:
    """Import what unsloth imports. bitsandbytes must not look for the GPU that sitecustomize pretends to have."""
    said, torch.cuda.is_available = torch.cuda.is_available, lambda: False
    try:
        for name in ("bitsandbytes", "transformers", "peft"):
            importlib.import_module(name)
    finally:
        torch.cuda.is_available = said


if "core.training.worker" in sys.orig_argv:
    import_the_rest()

# What unsloth 2026.10.9 takes; the rest of from_pretrained goes to Transformers, the rest of get_peft_model to PEFT.
LOADS = {"model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit",
         "use_exact_model_name", "trust_remote_code", "local_files_only", "use_safetensors", "quantization_config"}  # fmt: skip
ADAPTS = {"r", "target_modules", "lora_alpha", "lora_dropout", "bias", "use_gradient_checkpointing", "random_state",
          "use_rslora", "use_dora", "exclude_modules"}  # fmt: skip


class FastLanguageModel:
    """The tensors stay on the processor."""

    loaded: dict = {}
    adapted: dict = {}

    @staticmethod
    def from_pretrained(**given):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        FastLanguageModel.loaded = given
        assert set(given) <= LOADS
        assert sum((given["load_in_4bit"], given["load_in_8bit"], given["load_in_16bit"])) <= 1
        held = given.get("quantization_config")
        model = AutoModelForCausalLM.from_pretrained(
            given["model_name"], dtype=given["dtype"], quantization_config=held, use_safetensors=True,
            device_map={"": "cpu"} if held is not None else None,
        )  # fmt: skip
        print("modules before unsloth:", *sorted(LOADED_BEFORE), flush=True)
        return model, AutoTokenizer.from_pretrained(given["model_name"])

    @staticmethod
    def get_peft_model(model, *, use_gradient_checkpointing, random_state, **given):
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        FastLanguageModel.adapted = {
            **given, "use_gradient_checkpointing": use_gradient_checkpointing, "random_state": random_state,
        }  # fmt: skip
        assert set(FastLanguageModel.adapted) <= ADAPTS
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))
