"""Settings for a card: the product owner's tables, and the search for what fits."""

import pytest

from core.models.config import LoraConfig
from core.models.resources import (
    GB,
    HARDWARE,
    PUBLISHED,
    TrainingLoad,
    estimate_training,
    fit,
    hardware_row,
    recommended_settings,
)

SHAPE, LORA = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"], LoraConfig(r=16)
LOAD = TrainingLoad(4, 2048, "adamw_8bit", True, "4bit+double", 2)


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


def test_the_hardware_table_names_known_models() -> None:
    assert set(HARDWARE) <= set(PUBLISHED)
    assert hardware_row(PUBLISHED["google/gemma-3-12b-it"]) == (16, 24)
    assert hardware_row(PUBLISHED["Qwen/Qwen3-0.6B"]) is None


@pytest.mark.parametrize("card", [12, 16, 24, 48, 80, 141])
@pytest.mark.parametrize("storage", ["4bit+double", "8bit", "full"])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_advice_fits_and_keeps_the_examples_of_a_step(card: int, storage: str, checkpointed: bool) -> None:
    load = LOAD._replace(storage=storage, is_checkpointed=checkpointed)
    advice = fit(SHAPE, LORA, load, 4, card * GB)
    assert advice is not None
    assert advice.need.total <= card * GB
    assert advice.need == estimate_training(SHAPE, LORA, advice.load)
    given = advice.overrides
    batch = given.get("training.per_device_train_batch_size", 4)
    assert batch == advice.load.micro_batch
    assert batch * given.get("training.gradient_accumulation_steps", 4) == 16


def test_a_smaller_micro_batch_comes_before_anything_else() -> None:
    free = estimate_training(SHAPE, LORA, LOAD._replace(micro_batch=2)).total
    advice = fit(SHAPE, LORA, LOAD, 4, free)
    assert advice is not None
    assert advice.overrides == {
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 8,
    }
    assert (
        advice.line == "-o training.per_device_train_batch_size=2 -o training.gradient_accumulation_steps=8"
    )


def test_the_largest_micro_batch_that_fits_is_chosen() -> None:
    free = estimate_training(SHAPE, LORA, LOAD._replace(micro_batch=8)).total
    larger = fit(SHAPE, LORA, LOAD, 4, free)
    assert larger is not None
    assert larger.load.micro_batch == 8
    one_byte_less = fit(SHAPE, LORA, LOAD, 4, free - 1)
    assert one_byte_less is not None
    assert one_byte_less.overrides == {}


def test_checkpointing_comes_before_four_bits_and_both_before_shorter_examples() -> None:
    heavy = LOAD._replace(micro_batch=1, is_checkpointed=False, storage="full")
    free = estimate_training(SHAPE, LORA, heavy._replace(is_checkpointed=True)).total
    advice = fit(SHAPE, LORA, heavy, 1, free)
    assert advice is not None
    assert advice.overrides == {"lora.use_gradient_checkpointing": True}
    assert advice.line == "-o lora.use_gradient_checkpointing=true"
    four = estimate_training(SHAPE, LORA, heavy._replace(is_checkpointed=True, storage="4bit+double")).total
    advice = fit(SHAPE, LORA, heavy, 1, four)
    assert advice is not None
    assert advice.overrides == {"lora.use_gradient_checkpointing": True, "model.load_in_4bit": True}
    short = fit(SHAPE, LORA, heavy, 1, four - 1)
    assert short is not None
    assert short.overrides["model.max_seq_length"] == 1024


def test_eight_bits_give_way_to_four() -> None:
    free = estimate_training(SHAPE, LORA, LOAD._replace(micro_batch=1)).total
    advice = fit(SHAPE, LORA, LOAD._replace(micro_batch=1, storage="8bit"), 1, free)
    assert advice is not None
    assert advice.overrides == {"model.load_in_8bit": False, "model.load_in_4bit": True}


def test_nothing_is_advised_where_nothing_fits() -> None:
    assert fit(SHAPE, LORA, LOAD, 4, 2 * GB) is None


def test_a_step_of_few_examples_is_not_made_larger() -> None:
    advice = fit(SHAPE, LORA, LOAD, 1, 141 * GB)
    assert advice is not None
    assert advice.overrides == {}
