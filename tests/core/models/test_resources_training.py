"""Memory of a training step: against autograd, against bitsandbytes, and against peaks measured on an H200."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_model
from core.models.resources import (
    GB,
    NF4_BYTES,
    PUBLISHED,
    ModelShape,
    TrainingLoad,
    count_block_weights,
    count_lora,
    count_parameters,
    estimate_training,
    optimizer_bytes,
    shape_from_config,
    storage_of,
    stored_weights,
)
from core.models.resources.training import CHUNK_NUMBERS, FOUR_BIT_BYTES, Storage
from core.training import head

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def of_depth(family: Callable[..., PretrainedConfig], layers: int) -> PretrainedConfig:
    return family(**SIZES, num_hidden_layers=layers, attn_implementation="sdpa")


def shape_of(config: PretrainedConfig) -> ModelShape:
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    return shape


def kept_bytes(adapted: Any, dtype: torch.dtype) -> float:
    """Measure what autograd keeps for one token, the head left out."""
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


def plain(config: PretrainedConfig, dtype: torch.dtype, *, checkpointed: bool = False) -> Any:
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
    return adapted


def quantized(config: PretrainedConfig, folder: Path) -> Any:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    base = load_model(ModelConfig(name=str(folder), dtype="bfloat16"), trainable=True)
    return attach(base, LoraConfig(r=8, use_gradient_checkpointing=False))


def block_of(family: type[PretrainedConfig], load: TrainingLoad) -> float:
    """Return the estimate of one more block."""
    more, fewer = (
        estimate_training(shape_of(of_depth(family, n)), LoraConfig(r=8), load).activations for n in (9, 1)
    )
    return (more - fewer) / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config, Gemma3TextConfig])
def test_activations_match_what_autograd_keeps(family: type[PretrainedConfig], dtype: torch.dtype) -> None:
    deep, flat = (kept_bytes(plain(of_depth(family, n), dtype), dtype) for n in (3, 1))
    measured = (deep - flat) / 2
    load = TrainingLoad(1, 1, "sgd", is_checkpointed=False, storage="full", width=dtype.itemsize)
    estimated = block_of(family, load)
    assert measured <= 1.02 * estimated
    assert estimated <= 1.15 * measured


@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config])
def test_activations_over_four_bits_match_what_autograd_keeps(
    family: type[PretrainedConfig], tmp_path: Path
) -> None:
    deep, flat = (
        kept_bytes(quantized(of_depth(family, n), tmp_path / str(n)), torch.bfloat16) for n in (3, 1)
    )
    measured = (deep - flat) / 2
    load = TrainingLoad(1, 1, "sgd", is_checkpointed=False, storage="4bit+double", width=2)
    # Attention on a CPU keeps keys and values once more, repeated for every head.
    assert 0.92 * measured <= block_of(family, load) <= 1.02 * measured


def test_checkpointing_keeps_one_input_a_block() -> None:
    more, fewer = (
        kept_bytes(plain(of_depth(LlamaConfig, n), torch.float32, checkpointed=True), torch.float32)
        for n in (4, 2)
    )
    load = TrainingLoad(1, 1, "sgd", is_checkpointed=True, storage="full", width=4)
    assert (more - fewer) / 2 == block_of(LlamaConfig, load) == 256 * 4


def test_logits_are_chunked_as_training_chunks_them() -> None:
    assert CHUNK_NUMBERS == head.CHUNK_NUMBERS


@pytest.mark.parametrize(("double", "per_weight"), [(True, NF4_BYTES), (False, FOUR_BIT_BYTES)])
def test_four_bit_storage_equals_bitsandbytes(double: bool, per_weight: float) -> None:
    """One million weights: packed nibbles, scales of 8 or 32 bits, float32 scales of scales."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = torch.randn(1024, 1024)
    packed, state = functional.quantize_4bit(
        weights, quant_type="nf4", compress_statistics=double, blocksize=64
    )
    held = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    assert held == per_weight * weights.numel()


def test_quantizing_shrinks_the_linear_layers_only() -> None:
    shape = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
    linear = count_block_weights(shape)
    rest = count_parameters(shape) - linear
    assert stored_weights(shape, 4, "4bit+double") == int(linear * NF4_BYTES) + 4 * rest
    assert stored_weights(shape, 2, "8bit") == linear + 2 * rest
    assert stored_weights(shape, 2) == 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("settings", "storage"),
    [
        ({}, "4bit+double"),
        ({"bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": "fp4"}, "4bit"),
        ({"load_in_8bit": True}, "8bit"),
        ({"load_in_4bit": False}, "full"),
    ],
)
def test_storage_follows_the_config(settings: dict[str, Any], storage: str) -> None:
    assert storage_of(ModelConfig(name="base", **settings)) == storage


# Bytes that PyTorch counted on an H200 after one step on the adapter of Llama-3.2-1B at rank 16.
MEASURED_STATES = {
    "adamw_8bit": 22_923_264,
    "adamw_torch": 90_177_536,
    "lion_8bit": 11_461_632,
    "sgd": 0,
    "adafactor": 2_932_736,
    "paged_adamw_8bit": 10_340_352,
    "paged_adamw_32bit": 39_845_888,
}
LLAMA_1B = PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"]
LORA = LoraConfig(r=16, lora_alpha=16)


@pytest.mark.parametrize("name", MEASURED_STATES)
def test_optimizer_states_match_the_measured_ones(name: str) -> None:
    assert optimizer_bytes(LLAMA_1B, LORA, name) == pytest.approx(MEASURED_STATES[name], rel=0.04)


def test_every_optimizer_of_the_config_has_a_size() -> None:
    from typing import get_args

    from core.training.config import Optimizer

    for name in get_args(Optimizer):
        assert optimizer_bytes(LLAMA_1B, LORA, name) >= 0


LLAMA_8B = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
QWEN_4B = PUBLISHED["Qwen/Qwen3-4B"]
# Shape, storage, engine, micro-batch, window, checkpointing, GiB allocated at the peak on an H200 (rank 16, all
# seven projections, adamw_8bit); tests/bench/reports/2026-11-21-h200.md.
PEAKS: list[tuple[ModelShape, Storage, str, int, int, bool, float]] = [
    (LLAMA_1B, "4bit+double", "hf", 8, 2048, True, 7.30),
    (LLAMA_1B, "4bit+double", "hf", 2, 2048, True, 3.40),
    (LLAMA_1B, "4bit+double", "hf", 4, 512, True, 3.10),
    (LLAMA_1B, "4bit+double", "hf", 8, 2048, False, 42.79),
    (LLAMA_1B, "full", "hf", 8, 2048, True, 6.28),
    (LLAMA_1B, "full", "hf", 8, 2048, False, 32.23),
    (LLAMA_1B, "full", "hf", 4, 512, False, 6.81),
    (LLAMA_1B, "4bit+double", "unsloth", 8, 2048, True, 3.39),
    (LLAMA_1B, "4bit+double", "unsloth", 4, 512, True, 2.04),
    (QWEN_4B, "4bit+double", "hf", 8, 2048, True, 14.00),
    (QWEN_4B, "4bit+double", "hf", 4, 512, True, 5.70),
    (QWEN_4B, "4bit+double", "hf", 2, 2048, False, 35.84),
    (QWEN_4B, "full", "hf", 8, 2048, True, 14.49),
    (QWEN_4B, "4bit+double", "unsloth", 8, 2048, True, 5.93),
    (QWEN_4B, "4bit+double", "unsloth", 2, 2048, True, 3.77),
    (LLAMA_1B, "4bit+double", "hf", 4, 2048, True, 4.44),
    (LLAMA_1B, "4bit+double", "unsloth", 4, 2048, True, 2.28),
    (LLAMA_1B, "8bit", "hf", 8, 2048, True, 8.87),
    (LLAMA_1B, "8bit", "hf", 4, 512, True, 3.54),
    (LLAMA_1B, "8bit", "hf", 8, 2048, False, 57.83),
    (LLAMA_1B, "4bit", "hf", 8, 2048, True, 7.34),
    (LLAMA_8B, "4bit+double", "hf", 8, 2048, True, 22.27),
    (LLAMA_8B, "4bit+double", "hf", 2, 2048, True, 11.48),
    (LLAMA_8B, "4bit+double", "hf", 4, 512, True, 10.38),
    (LLAMA_8B, "4bit+double", "hf", 2, 2048, False, 45.60),
    (LLAMA_8B, "4bit+double", "unsloth", 8, 2048, True, 9.86),
    (LLAMA_8B, "full", "unsloth", 8, 2048, True, 19.5),
    (LLAMA_8B, "full", "unsloth", 8, 2048, False, 75.8),
]


@pytest.mark.parametrize("peak", PEAKS)
def test_estimates_are_within_four_percent_of_measured_peaks(peak: tuple[Any, ...]) -> None:
    shape, storage, framework, micro_batch, window, checkpointed, measured = peak
    load = TrainingLoad(micro_batch, window, "adamw_8bit", checkpointed, storage, 2, framework)
    assert estimate_training(shape, LORA, load).total / GB == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    ("micro_batch", "checkpointed", "measured"),
    [(8, True, 9.27), (2, True, 3.74), (8, False, 76.30), (2, False, 21.20)],
)
def test_dora_costs_what_was_measured(micro_batch: int, checkpointed: bool, measured: float) -> None:
    lora = LORA.model_copy(update={"use_dora": True})
    load = TrainingLoad(micro_batch, 2048, "adamw_8bit", checkpointed, "4bit+double", 2)
    assert estimate_training(LLAMA_1B, lora, load).total / GB == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize("checkpointed", [True, False])
def test_rounding_in_training_costs_two_copies_of_the_largest_matrix(checkpointed: bool) -> None:
    # Few tokens, so that the peak is in a block; measured on a CPU: 8.3 (Q4_0) to 9.1 (int4) bytes a weight.
    load = TrainingLoad(1, 64, "adamw_8bit", checkpointed, "full", 2)
    plain, rounding = (
        estimate_training(LLAMA_1B, LORA, load._replace(is_aware=aware)) for aware in (False, True)
    )
    largest = LLAMA_1B.hidden * LLAMA_1B.intermediate
    assert 8 * largest < rounding.total - plain.total + plain.logits <= 10 * largest + plain.logits
    assert rounding.weights == plain.weights


def test_packed_rows_cost_a_mask() -> None:
    load = TrainingLoad(4, 2048, "adamw_8bit", True, "4bit+double", 2)
    packed = estimate_training(QWEN_4B, LORA, load._replace(is_packed=True)).total
    assert packed > estimate_training(QWEN_4B, LORA, load).total
    assert packed / GB == pytest.approx(8.88, rel=0.06)


def test_training_memory_has_every_part() -> None:
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    load = TrainingLoad(2, 512, "adamw_torch", is_checkpointed=True, storage="full", width=2)
    need = estimate_training(shape, LORA, load)
    trained = count_lora(shape, LORA)
    assert (need.adapter, need.gradients, need.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    assert need.total == sum(need)
    doubled = estimate_training(shape, LORA, load._replace(micro_batch=4))
    assert doubled.weights == need.weights
    assert doubled.activations > need.activations
    assert (
        estimate_training(shape, LORA, load._replace(is_checkpointed=False)).activations
        > 3 * need.activations
    )


def test_dora_and_eight_bits_cost_more() -> None:
    load = TrainingLoad(2, 1024, "adamw_8bit", True, "4bit+double", 2)
    four = estimate_training(LLAMA_1B, LORA, load).total
    assert estimate_training(LLAMA_1B, LORA.model_copy(update={"use_dora": True}), load).total > four
    assert estimate_training(LLAMA_1B, LORA, load._replace(storage="8bit")).total > four
    single = estimate_training(LLAMA_1B, LORA, load._replace(storage="4bit")).weights
    assert single > estimate_training(LLAMA_1B, LORA, load).weights


def test_a_four_billion_model_trains_on_an_8_gb_card() -> None:
    shape = PUBLISHED["google/gemma-3-4b-it"]
    load = TrainingLoad(1, 1024, "adamw_8bit", is_checkpointed=True, storage="4bit+double", width=2)
    assert estimate_training(shape, LoraConfig(r=8), load).total < 8 * GB
    wide = load._replace(storage="full", micro_batch=8, window=4096)
    assert estimate_training(shape, LoraConfig(r=16), wide).total > 16 * GB


def test_no_framework_is_imported() -> None:
    code = "import sys, core.models.resources; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
