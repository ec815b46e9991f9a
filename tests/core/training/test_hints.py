"""Every trouble has a sentence with a key of the config in it."""

import re

import pytest

from core.training.config import TrainingConfig
from core.training.hints import HINTS, hint, hints_for, troubles_of
from core.training.reports import EvalLoss, TrainReport
from flows.run_config import RunConfig

REPORT = TrainReport(
    base_digest="", train_digest="", adapter_digest="", merged_digest="", steps=20, total_steps=20, epochs=1.0,
    samples=100, truncated=0, tokens=1000, first_loss=2.0, final_loss=0.5, window=2,
    eval_losses=(EvalLoss(step=10, loss=0.6), EvalLoss(step=20, loss=1.4)), trainable_parameters=1, parameters=2,
    merge_error=0.0, kept_step=10, seconds=1.0, device="cpu", error=None,
)  # fmt: skip


def test_a_training_that_went_well_needs_no_advice():
    assert hints_for(REPORT, 0.4) == ()
    assert hints_for(REPORT) == ()


@pytest.mark.parametrize(
    ("change", "score", "expected"),
    [
        ({"final_loss": 1.97}, None, ("flat",)),
        ({"final_loss": 1.95}, None, ()),
        ({"final_loss": 2.5, "eval_losses": ()}, 0.0, ("flat",)),
        ({"shrinks": 1}, 0.3, ("oom",)),
        ({"kept_step": 20}, 0.3, ("overfit",)),
        ({"kept_step": None}, 0.3, ("overfit",)),
        ({}, 0.0, ("garbage",)),
        ({"shrinks": 2, "kept_step": 20}, 0.0, ("oom", "overfit", "garbage")),
    ],
)  # fmt: skip
def test_troubles_are_seen_in_the_numbers(change: dict, score: float | None, expected: tuple[str, ...]):
    report = REPORT.model_copy(update=change)
    assert troubles_of(report, score) == expected
    assert hints_for(report, score) == tuple(HINTS[trouble] for trouble in expected)


def test_the_advice_is_the_one_that_was_asked_for():
    assert "per_device_train_batch_size" in hint("oom")
    assert "gradient_accumulation_steps" in hint("oom")
    assert "model.framework: fused set training.activation_budget" in hint("oom")
    assert "learning_rate: 1e-4" in hint("flat")
    assert "dataset.chat_template" in hint("garbage")
    assert "bf16" in hint("slow")
    assert "unsloth" in hint("slow")
    assert "Q8_0" in hint("quantization_drop")


@pytest.mark.parametrize("trouble", HINTS)
def test_every_key_it_names_exists(trouble):
    keys = re.findall(r"\b(training|lora|model|dataset|quantization|save)\.(\w+)", HINTS[trouble])
    assert keys
    schema = RunConfig.model_json_schema()["$defs"]
    blocks = {"training": "TrainingConfig", "lora": "LoraConfig", "model": "ModelConfig",
              "dataset": "DatasetConfig", "quantization": "QuantizationConfig", "save": "SaveConfig"}  # fmt: skip
    for block, key in keys:
        assert key in schema[blocks[block]]["properties"], f"{block}.{key}"
    assert TrainingConfig().shrink_on_oom
