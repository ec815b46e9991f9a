"""Sizes are held against models built on the meta device, measured tensors, and published numbers."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from core.models.config import LoraConfig
from core.models.resources import (
    GB,
    NF4_BYTES,
    PUBLISHED,
    TrainingLoad,
    count_block_weights,
    count_lora,
    count_parameters,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_training,
    published_shape,
    recommended_settings,
    shape_from_config,
    stored_weights,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
CONFIGS: list[PretrainedConfig] = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=24),
    Phi3Config(**SIZES),
    Gemma3TextConfig(**SIZES, head_dim=24),
    Gemma3Config(text_config={**SIZES, "head_dim": 24}, vision_config=SMALL_VISION),
]


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.tie_weights()
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_parameter_count_equals_the_built_model(config: PretrainedConfig) -> None:
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    assert count_parameters(shape) == parameters(on_meta(config))


@pytest.mark.parametrize("config", CONFIGS[:-1], ids=lambda config: type(config).__name__)
def test_adapter_count_equals_peft(config: PretrainedConfig) -> None:
    names = ("qkv_proj", "gate_up_proj", *LoraConfig().target_modules)
    lora = LoraConfig(r=8, target_modules=names)
    adapted = get_peft_model(on_meta(config), PeftLoraConfig(r=8, target_modules=list(names)))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    assert count_lora(shape, lora) == trained


def test_adapter_count_follows_the_switches() -> None:
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    whole = count_lora(shape, LoraConfig())
    attention = count_lora(shape, LoraConfig(finetune_mlp_modules=False))
    mlp = count_lora(shape, LoraConfig(finetune_attention_modules=False))
    assert attention + mlp == whole
    assert attention == count_lora(shape, LoraConfig(target_modules=("q_proj", "k_proj", "v_proj", "o_proj")))


# Parameters as published with the checkpoints; counted apart from our formula.
CHECKPOINTS = {
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_shapes_give_the_published_totals(name: str) -> None:
    assert count_parameters(PUBLISHED[name]) == CHECKPOINTS[name]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("unsloth/gemma-3-4b-it-unsloth-bnb-4bit", "google/gemma-3-4b-it"),
        ("unsloth/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B"),
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("microsoft/Phi-4-mini-instruct", None),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", None),
        ("someone/else", None),
    ],
)
def test_variants_of_a_published_model_are_recognised(name: str, known: str | None) -> None:
    assert published_shape(name) == (PUBLISHED[known] if known else None)


def test_a_published_gemma_config_leaves_keys_out() -> None:
    """Gemma 3 files name only what differs from the family's defaults."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = shape_from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert shape == PUBLISHED["google/gemma-3-4b-it"]


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba2"}, {"model_type": "llama"}, {"model_type": "qwen3_moe"}]
)
def test_an_unknown_family_has_no_shape(config: dict[str, str]) -> None:
    assert shape_from_config(config) is None


def of_depth(family: Callable[..., PretrainedConfig], layers: int) -> PretrainedConfig:
    sizes = {
        **SIZES,
        "hidden_size": 256,
        "intermediate_size": 768,
        "head_dim": 64,
        "num_hidden_layers": layers,
    }
    return family(**sizes, attn_implementation="sdpa")


def saved_bytes(config: PretrainedConfig, dtype: torch.dtype, *, checkpointed: bool) -> float:
    """Measure what autograd keeps for one token, the head left out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    adapter = PeftLoraConfig(r=8, target_modules=list(LoraConfig().target_modules), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, adapter)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    adapted.enable_input_require_grads()
    if checkpointed:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted.train()
    own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 100, (1, 128))
    cast = torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        adapted.model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / ids.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config, Gemma3TextConfig])
def test_activations_match_what_autograd_keeps(family: type[PretrainedConfig], dtype: torch.dtype) -> None:
    deep, flat = (saved_bytes(of_depth(family, layers), dtype, checkpointed=False) for layers in (3, 1))
    measured = deep - flat
    shape = shape_from_config(of_depth(family, 2).to_dict())
    assert shape is not None
    load = TrainingLoad(1, 1, "sgd", is_checkpointed=False, is_4bit=False, width=dtype.itemsize)
    estimated = estimate_training(shape, LoraConfig(), load).activations
    assert measured <= 1.02 * estimated
    assert estimated <= 1.15 * measured


def test_checkpointing_keeps_one_input_a_block() -> None:
    more, fewer = (saved_bytes(of_depth(LlamaConfig, n), torch.float32, checkpointed=True) for n in (4, 2))
    load = TrainingLoad(1, 1, "sgd", is_checkpointed=True, is_4bit=False, width=4)
    estimates = []
    for layers in (2, 4):
        shape = shape_from_config(of_depth(LlamaConfig, layers).to_dict())
        assert shape is not None
        estimates.append(estimate_training(shape, LoraConfig(), load).activations)
    assert more - fewer == estimates[1] - estimates[0] == 2 * 256 * 4


def test_four_bit_storage_equals_bitsandbytes() -> None:
    """One million weights, double quantization: packed nibbles, 8-bit scales, float32 scales of scales."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = torch.randn(1024, 1024)
    packed, state = functional.quantize_4bit(
        weights, quant_type="nf4", compress_statistics=True, blocksize=64
    )
    held = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == NF4_BYTES * weights.numel()


def test_four_bit_shrinks_the_linear_layers_only() -> None:
    shape = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
    rest = count_parameters(shape) - count_block_weights(shape)
    assert stored_weights(shape, 2, is_4bit=True) == int(count_block_weights(shape) * NF4_BYTES) + 4 * rest
    assert stored_weights(shape, 2, is_4bit=False) == 2 * 8_030_261_248


def test_training_memory_has_every_part() -> None:
    shape, lora = PUBLISHED["Qwen/Qwen3-0.6B"], LoraConfig(r=16)
    load = TrainingLoad(2, 512, "adamw_torch", is_checkpointed=True, is_4bit=False, width=2)
    need = estimate_training(shape, lora, load)
    trained = count_lora(shape, lora)
    assert (need.adapter, need.gradients, need.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    assert estimate_training(shape, lora, load._replace(optimizer="adamw_8bit")).optimizer == 2 * trained
    assert need.logits == 2 * 512 * shape.vocab * 14
    assert need.total == sum(need)
    doubled = estimate_training(shape, lora, load._replace(micro_batch=4))
    assert (doubled.activations, doubled.logits) == (2 * need.activations, 2 * need.logits)
    assert doubled.weights == need.weights
    plain = estimate_training(shape, lora, load._replace(is_checkpointed=False))
    assert plain.activations > 3 * need.activations


def test_inference_and_merge_hold_the_whole_model() -> None:
    shape = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
    need = estimate_inference(shape, 2, batch=8, window=1024)
    assert need.weights == 2 * 8_030_261_248
    assert need.cache == 8 * 1024 * 131_072  # 2 (k, v) x 8 heads x 128 x 32 layers x 2 bytes
    merge = estimate_merge(shape, LoraConfig(), 2)
    assert need.weights < merge.total < 1.1 * need.weights


def test_gguf_sizes_match_published_files() -> None:
    """Files of Llama 3.1 8B as commonly published: 4.92, 5.73, 6.60 and 8.54 GB (10^9 bytes)."""
    shape = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
    for gguf_type, published in {
        "Q4_K_M": 4.92,
        "Q5_K_M": 5.73,
        "Q6_K": 6.60,
        "Q8_0": 8.54,
        "f16": 16.07,
    }.items():
        assert estimate_gguf(shape, gguf_type) / 1e9 == pytest.approx(published, rel=0.005)


def test_disk_counts_every_file() -> None:
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    files = estimate_disk(shape, LoraConfig(), 2, ["Q8_0", "Q4_K_M"])
    small, large = estimate_gguf(shape, "Q4_K_M"), estimate_gguf(shape, "Q8_0")
    assert files["GGUF files"] == small + large
    assert files["bundle"] == large
    assert files["merged model"] == 2 * count_parameters(shape)


@pytest.mark.parametrize(
    ("vram_gb", "expected"),
    [
        (4, (8, 1, 8, 1024)),
        (8, (8, 1, 8, 1024)),
        (15.9, (8, 1, 8, 1024)),
        (16, (16, 2, 4, 2048)),
        (23.9, (16, 2, 4, 2048)),
        (24, (32, 4, 2, 4096)),
        (80, (32, 4, 2, 4096)),
    ],
)
def test_recommended_settings_follow_the_table(vram_gb: float, expected: tuple[int, int, int, int]) -> None:
    settings = recommended_settings(vram_gb)
    keys = (
        "lora.r",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "model.max_seq_length",
    )
    assert tuple(settings[key] for key in keys) == expected


def test_a_four_billion_model_trains_on_a_16_gb_card() -> None:
    shape = PUBLISHED["google/gemma-3-4b-it"]
    load = TrainingLoad(1, 1024, "adamw_8bit", is_checkpointed=True, is_4bit=True, width=2)
    assert estimate_training(shape, LoraConfig(r=16), load).total < 15 * GB
    wide = load._replace(is_4bit=False, micro_batch=8, window=4096)
    assert estimate_training(shape, LoraConfig(r=16), wide).total > 24 * GB


def test_no_framework_is_imported() -> None:
    code = "import sys, core.models.resources; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
