"""One batch by heart: a sound model learns it, a broken one is told why not, and nothing is left behind."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from core.data.chat import IGNORE_INDEX, Encoded
from core.data.learnable import short_examples
from core.data.records import Conversation
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder
from core.training.config import TrainingConfig
from core.training.language import mean_loss
from core.training.overfit import (
    Limits,
    _Attempt,
    _judge,
    _micro_batches,
    kept_randomness,
    overfit_base,
    overfit_batch,
)
from tasks.chat_tokens import chat_tokenizer

TUTOR = Path(__file__).parents[3] / "data/tutor_base/model"
LORA = LoraConfig(r=8, use_gradient_checkpointing=False)
FAST = TrainingConfig(per_device_train_batch_size=4, optim="adamw_torch", learning_rate=1e-2)
AMPLE = Limits(20, 120.0)


def batch(n=8, length=10):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(n):
        ids = torch.randint(6, 400, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * (length - 3) + ids[-3:]))
    return rows


@pytest.fixture
def adapted(base_folder: Path):
    return attach(load_folder(base_folder), LORA)


@pytest.fixture(scope="module")
def tutor_batch():
    chat = chat_tokenizer(TUTOR, "gemma-3")
    asked = [("What is 3 + 4?", "7"), ("Name a river.", "Volta"), ("Translate 'road' into Twi.", "ɛkwan")]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
    return short_examples(
        [Conversation(id=f"r{n}", messages=each) for n, each in enumerate(turns)], chat, 256
    )


def test_a_sound_model_learns_a_batch_by_heart(tutor_batch):
    report = overfit_base(ModelConfig(name=str(TUTOR), load_in_4bit=False), LORA, FAST, tutor_batch, 1, AMPLE)
    assert (report.verdict, report.examples) == ("learned", 3)
    assert report.ratio < 0.5 or report.loss_after < 0.1
    assert report.steps == len(report.losses) <= 60
    assert report.losses[0] == pytest.approx(report.loss_before, rel=1e-4)
    assert report.trainable_parameters > 0


def test_the_first_loss_is_that_of_the_untouched_base(base_folder, adapted):
    expected = mean_loss(
        load_folder(base_folder), _micro_batches(batch(), 1, FAST), torch.device("cpu"), FREE
    )
    assert overfit_batch(adapted, batch(), 1, FAST, AMPLE).loss_before == pytest.approx(expected, rel=1e-5)


def FREE():
    return torch.autocast("cpu", enabled=False)


def test_weights_mode_and_generators_are_left_as_they_were(adapted):
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    report = overfit_batch(adapted, batch(), 1, FAST, AMPLE)
    assert report.loss_after < report.loss_before
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    assert all(p.grad is None for p in adapted.parameters())
    assert not adapted.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_loading_a_copy_disturbs_no_generator(base_folder):
    state = torch.get_rng_state()
    model = ModelConfig(name=str(base_folder), load_in_4bit=False)
    first, second = (overfit_base(model, LORA, FAST, batch(), 1, Limits(3, 60.0)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.losses == second.losses


def test_generators_are_given_back_after_an_error_too():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), kept_randomness():
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)


def test_a_frozen_adapter_does_not_learn(adapted):
    adapted.requires_grad_(False)
    report = overfit_batch(adapted, batch(), 1, FAST, AMPLE)
    assert (report.verdict, report.trainable_parameters) == ("not learned", 0)
    assert "frozen" in report.reason


def test_an_adapter_whose_gradient_is_zero_does_not_learn(adapted):
    # B is zero and frozen, so nothing that A becomes reaches the output.
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
    report = overfit_batch(adapted, batch(), 1, FAST, Limits(5, 60.0))
    assert report.verdict == "not learned"
    assert "does not change" in report.reason
    assert report.loss_after == pytest.approx(report.loss_before)


def test_answers_that_contradict_each_other_cannot_be_learned(adapted):
    ids = [7, 8, 9, 10]
    rows = [Encoded([*ids, end], [IGNORE_INDEX] * 4 + [end]) for end in range(20, 380)]
    report = overfit_batch(
        adapted, rows, 1, FAST.model_copy(update={"per_device_train_batch_size": 64}), Limits(8, 60.0)
    )
    assert report.verdict == "not learned"
    assert "does not learn one batch by heart" in report.reason
    # The best possible guess is uniform over the 360 answers.
    assert report.loss_after > 0.9 * np.log(360)


def test_a_rate_that_is_too_low_is_told_from_a_model_that_cannot_learn(tutor_batch):
    slow = FAST.model_copy(update={"learning_rate": 5e-4})
    adapted = attach(load_folder(TUTOR), LORA)
    report = overfit_batch(adapted, tutor_batch, 1, slow, Limits(5, 120.0))
    assert report.verdict == "slow"
    assert report.learning_rate == pytest.approx(5e-3)
    assert "not learned in 5 steps at a learning rate of 0.0005, but in" in report.reason


def test_numbers_that_overflow_are_reported(adapted):
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.fill_(float("inf"))
    report = overfit_batch(adapted, batch(), 1, FAST, AMPLE)
    assert report.verdict == "not learned"
    assert "no number" in report.reason
    assert report.loss_after is None


def test_the_time_is_kept(adapted):
    report = overfit_batch(adapted, batch(), 1, FAST, Limits(100_000, 1.0))
    assert report.verdict in {"undecided", "not learned"}
    assert report.steps < 100_000


@pytest.mark.parametrize(
    ("after", "ran_out", "verdict"),
    [(1.49, True, "learned"), (1.5, True, "undecided"), (2.8, True, "undecided"), (2.86, True, "not learned"),
     (1.5, False, "not learned"), (None, False, "not learned")],
)  # fmt: skip
def test_what_only_the_time_kept_from_learning_is_undecided(after, ran_out, verdict):
    assert _judge([_Attempt(1e-3, (3.0, 2.9), after, ran_out)], before=3.0).verdict == verdict


def test_without_examples_nothing_is_tried(adapted):
    assert overfit_batch(adapted, [], 1, FAST).verdict == "skipped"


def test_a_model_that_cannot_be_loaded_is_skipped_with_the_reason(tmp_path):
    report = overfit_base(ModelConfig(name=str(tmp_path), load_in_4bit=False), LORA, FAST, batch(), 1)
    assert report.verdict == "skipped"
    assert "config.json" in report.reason
