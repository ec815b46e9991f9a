"""The merged model's logits, kept within a budget and compared at the right positions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core.quantization import reference as module
from core.quantization.reference import Passage, distance, load_reference, model_logits, write_reference
from tests.core.deployment.gguf import tiny


def counting(ids: list[int], first: int) -> np.ndarray:
    """Logits that say which position and which prefix they are of."""
    rows = [[sum(ids[: at + 1]), at, 0.0] for at in range(first, len(ids))]
    return np.array(rows, dtype=np.float32)


def test_positions_that_predict_the_answer_are_kept_and_the_prompt_fills_the_rest(tmp_path: Path) -> None:
    passage = Passage(list(range(100, 120)), 15)
    (kept,) = write_reference(counting, [passage], tmp_path, 3)
    assert (kept.first, kept.answer, len(kept.ids)) == (0, 14, 20)
    assert kept.logits()[:, 1].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("length", "answer", "first", "end"),
    [
        (300, 280, 204, 300),  # a short answer: the prompt fills up
        (300, 100, 51, 147),  # a long one: half of the positions are its own
        (300, 1, 0, 96),  # no prompt: all of them are
        (50, 20, 0, 50),
    ],
)
def test_a_window_of_at_most_96_positions(
    tmp_path: Path, length: int, answer: int, first: int, end: int
) -> None:
    (kept,) = write_reference(counting, [Passage([1] * length, answer)], tmp_path, 3)
    assert (kept.first, len(kept.ids)) == (first, end)
    assert kept.logits().shape == (end - first, 3)


def test_a_large_vocabulary_keeps_fewer_positions_within_the_budget(tmp_path: Path) -> None:
    passages = [Passage([1] * 200, 150)] * 16
    (kept, *_) = write_reference(counting, passages, tmp_path, 262_144)
    positions = len(kept.ids) - kept.first
    assert positions == module.ROOM // (16 * 262_144 * 4)
    (kept, *_) = write_reference(counting, passages, tmp_path, 10**8)
    assert len(kept.ids) - kept.first == module.FEWEST_POSITIONS


def test_answers_only_compares_from_the_prompts_last_position_on(tmp_path: Path) -> None:
    kept = write_reference(counting, [Passage([5] * 20, 15), Passage([7] * 9, 4)], tmp_path, 3)

    def wrong_on_the_prompt(ids: list[int], first: int) -> np.ndarray:
        found = counting(ids, first)
        answer = 14 if ids[0] == 5 else 3
        found[: max(0, answer - first)] += [0, 0, 99]
        return found

    here = distance(wrong_on_the_prompt, kept, answers_only=True)
    there = distance(wrong_on_the_prompt, kept, answers_only=False)
    assert here is not None and there is not None
    assert (here.tokens, here.max_abs) == (6 + 6, 0.0)
    assert (there.tokens, there.max_abs) == (29, 99.0)


def test_logits_that_are_no_numbers_give_no_distance(tmp_path: Path) -> None:
    kept = write_reference(counting, [Passage([5] * 20, 15)], tmp_path, 3)
    with np.errstate(invalid="ignore"):
        assert distance(lambda ids, first: counting(ids, first) * np.nan, kept, answers_only=True) is None


def test_a_model_computes_in_float32_whatever_it_is_stored_in(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "Llama", tiny.byte_level(), dtype="bfloat16")
    model = load_reference(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    ids = list(range(3, 23))
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.allclose(model_logits(model)(ids, 12), whole[12:], atol=1e-5)
