"""A tiny model through training, folding and quantizing for Q4_0: the file holds what was trained, weight by weight."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file

from core.artifacts import Checkpoint, Splits, fingerprint, scratch_beside, write_jsonl
from core.errors import ConfigError
from core.models.config import LoraConfig, ModelConfig
from core.quantization.aware_limits import check_aware
from core.quantization.config import QuantizationConfig
from core.training.config import TrainingConfig
from core.training.reports import TrainReport
from tasks.context import running
from tasks.file_story import rounding_story
from tasks.finetune import fold, make_report, prepare, told, train
from tasks.gguf_files import write_files
from tests.core.deployment.gguf import tiny
from tests.families.logits import compare_logits
from tests.tasks.test_ladder import fresh, talk

MODEL = {"max_seq_length": 256, "load_in_4bit": False}
LORA = LoraConfig(
    r=8, lora_alpha=16, use_gradient_checkpointing=False, target_modules=("q_proj", "v_proj", "down_proj")
)
TRAINING = TrainingConfig(
    per_device_train_batch_size=8, gradient_accumulation_steps=1, max_steps=6, warmup_steps=1, learning_rate=5e-3,
    optim="adamw_torch", eval_steps=3, save_steps=6,
)  # fmt: skip


class Made(NamedTuple):
    """What finetune and quantize left."""

    report: TrainReport
    merged: Path
    file: Path


def make(root: Path, base: Path, aware: str | None, kind: str = "Q4_0", lora: LoraConfig = LORA) -> Made:
    """Run the bodies of both phases."""
    context = fresh(root)
    splits = root / "splits"
    splits.mkdir()
    for name, count in (("train", 24), ("val", 6), ("test", 2)):
        write_jsonl(splits / f"{name}.jsonl", [talk(n) for n in range(1, count + 1)])
    given, checkpoint = Splits.of(splits), Checkpoint.of(base)
    adapter, merged, target = root / "lora", root / "merged", root / "quantized"
    model = ModelConfig(name=str(base), **MODEL)
    with running(context), scratch_beside(target) as work:
        prepared = prepare(base, given, model, "chatml", root / "tokens")
        tuned = train(context, "key", checkpoint, prepared, model, lora, TRAINING, adapter, aware)
        folded = fold(checkpoint, adapter, merged, prepared, tuned.micro_batch, aware)
        report = make_report(checkpoint, given, adapter, merged, prepared, tuned, folded)
        settings = QuantizationConfig(formats=(kind,))
        files = write_files(context, merged, given, target, work, settings, "tiny").files
    return Made(report, merged, files[kind])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    root = tmp_path_factory.mktemp("aware")
    base = tiny.wide(root / "base")
    made = []
    for name, aware in (("plain", None), ("aware", "Q4_0")):
        (root / name).mkdir()
        made.append(make(root / name, base, aware))
    return made[0], made[1]


def kept_loss(report: TrainReport) -> float:
    return {each.step: each.loss for each in report.eval_losses}[report.kept_step]


def test_the_merged_model_has_the_loss_that_training_saw(both: tuple[Made, Made]):
    plain, aware = (made.report for made in both)
    assert aware.quantization_aware == "Q4_0"
    assert aware.merged_eval_loss == kept_loss(aware)
    assert aware.merge_error == 0.0
    assert kept_loss(aware) != kept_loss(plain)
    assert aware.first_loss > aware.final_loss
    assert "rounding to Q4_0" in told(aware)
    assert "Q4_0" in rounding_story(aware.quantization_aware)[0]
    assert plain.quantization_aware is None
    assert "rounding" not in told(plain)
    assert rounding_story(plain.quantization_aware) == ()


def test_the_file_holds_the_merged_weights_bit_for_bit(both: tuple[Made, Made]):
    weights = load_file(both[1].merged / "model.safetensors")
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}  # fmt: skip
    seen = 0
    for tensor in GGUFReader(both[1].file).tensors:
        if tensor.tensor_type != GGMLQuantizationType.Q4_0:
            continue
        held = quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == "token_embd.weight":
            merged = weights["model.embed_tokens.weight"].numpy()
        else:
            _, layer, part, _ = tensor.name.split(".")
            merged = weights[f"model.layers.{layer}.{names[part]}.weight"].numpy()
            merged = (
                paired(merged, {"attn_q": 4, "attn_k": 2}[part]) if part in ("attn_q", "attn_k") else merged
            )
        assert np.array_equal(held, merged), tensor.name
        seen += 1
    assert seen == 2 * 7 + 1


def test_a_head_with_an_adapter_is_in_the_file_as_it_was_trained(tmp_path: Path):
    base = tiny.save(
        tmp_path / "base", "Llama", tiny.byte_level(), hidden_size=256, intermediate_size=512,
        tie_word_embeddings=False,
    )  # fmt: skip
    names = {"target_modules": ("q_proj", "lm_head")}
    made = make(tmp_path, base, "Q8_0", "Q8_0", LORA.model_copy(update=names))
    assert made.report.merged_eval_loss == kept_loss(made.report)
    assert made.report.merge_error == 0.0
    held = {tensor.name: tensor for tensor in GGUFReader(made.file).tensors}["output.weight"]
    merged = load_file(made.merged / "model.safetensors")["lm_head.weight"].numpy()
    assert held.tensor_type == GGMLQuantizationType.Q8_0
    # The file is made from one in 16 bits, where a scale may move by its last bit; rounding anew errs by 1/254.
    error = np.abs(quants.dequantize(held.data, held.tensor_type) - merged)
    assert error.max() < np.abs(merged).max() / 1000
    before = load_file(base / "model.safetensors")["lm_head.weight"].numpy()
    assert np.abs(merged - before).max() > np.abs(before).max() / 50


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Lay rotary pairs next to each other, as llama.cpp does with Llama's q and k."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def test_the_file_answers_as_the_model_that_was_trained(both: tuple[Made, Made]):
    plain, aware = (compare_logits(made.merged, made.file, tokens=48) for made in both)
    # What is left are llama.cpp's 8-bit inputs of a product, and the head in Q6_K.
    assert aware.kl < 0.1 * plain.kl
    assert aware.max_abs < 0.5 * plain.max_abs


def test_the_type_trained_for_is_part_of_the_key():
    assert fingerprint("Q4_0") != fingerprint(None)


def test_settings_are_refused_as_the_model_itself_would_be():
    with pytest.raises(ConfigError, match="load_in_4bit"):
        check_aware("Q4_0", ModelConfig(name="m"), LORA)
    check_aware("Q4_0", ModelConfig(name="m", load_in_4bit=False), LORA)
