"""The forgetting guard: the shipped set is what its page says, and scoring is by likelihood per byte."""

import csv
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from core.data.chat import ChatTokenizer
from core.data.examples import as_messages
from core.data.templates import template_for
from core.errors import ConfigError, DataError
from core.evaluation.general import SHIPPED, Choice, general, read_choices
from core.evaluation.generation import TorchResponder
from core.evaluation.graders import normalise
from core.evaluation.responders import Scored

ROOT = Path(__file__).parents[3]
HOW = {"resamples": 1000, "confidence": 0.95, "seed": 3407}
THREE = [
    Choice(question="a?", choices=("x", "yyyy"), answer=0),
    Choice(question="b?", choices=("x", "yyyy", "zz"), answer=1),
    Choice(question="c?", choices=("é", "ab"), answer=1),
    Choice(question="d?", choices=("x", "yyyy"), answer=0),
]


def test_the_shipped_set_is_what_its_page_says():
    choices = read_choices()
    page = (SHIPPED.parent / "README.md").read_text()
    assert f"holds {len(choices)} multiple-choice" in page and len(choices) >= 160
    assert {len(one.choices) for one in choices} == {4}
    assert Counter(one.answer for one in choices) == dict.fromkeys(range(4), len(choices) // 4)
    assert len({normalise(one.question) for one in choices}) == len(choices)
    for topic, count in Counter(one.topic for one in choices).items():
        assert f"| `{topic}` | {count} |" in page


def test_length_does_not_give_the_right_choice_away():
    choices = read_choices()
    right = [len(one.choices[one.answer]) for one in choices]
    wrong = [len(text) for one in choices for text in one.choices if text != one.choices[one.answer]]
    assert sum(right) / len(right) == pytest.approx(sum(wrong) / len(wrong), rel=0.1)


def test_no_question_is_the_tutors():
    asked = set()
    for line in [*(ROOT / "data/tutor/arithmetic.jsonl").open(), *(ROOT / "data/tutor/twi.jsonl").open()]:
        row = json.loads(line)
        asked |= {str(row.get("instruction")), *(str(t.get("value")) for t in row.get("conversations", []))}
    for row in json.loads((ROOT / "data/tutor/facts.json").read_text()):
        asked |= {str(turn.get("content")) for turn in row["conversations"]}
    with (ROOT / "data/tutor/units.csv").open() as stream:
        asked |= {row["instruction"] for row in csv.DictReader(stream)}
    known = {normalise(text) for text in asked}
    assert len(known) > 3000
    assert not [one.question for one in read_choices() if normalise(one.question) in known]


class Table:
    """Knows the likelihood of every choice by heart."""

    def __init__(self, nll: dict[tuple[str, str], float]) -> None:
        self.nll = nll

    def answer(self, prompts, max_new_tokens, tick):
        raise AssertionError

    def score(self, prompts, references, tick):
        pairs = zip(prompts, references, strict=True)
        # The token that ends an answer is dear, and must not count.
        return [Scored(self.nll[p[0]["content"], r["content"]] + 50.0, 3, 50.0) for p, r in pairs]


def test_the_right_choice_must_be_the_likeliest_per_byte():
    table = Table({
        ("a?", "x"): 1.0, ("a?", "yyyy"): 3.9,
        ("b?", "x"): 1.0, ("b?", "yyyy"): 3.9, ("b?", "zz"): 9.0,
        # Two bytes each, and a tie.
        ("c?", "é"): 2.0, ("c?", "ab"): 2.0,
        ("d?", "x"): 0.5, ("d?", "yyyy"): 3.9,
    })  # fmt: skip
    suite = general(table, THREE, **HOW)
    assert suite.scores == (0.0, 1.0, 0.0, 1.0)
    assert (suite.name, suite.metric, suite.n) == ("general", "accuracy", 4)
    assert suite.value == pytest.approx(1 / 2)
    assert suite.low <= suite.value <= suite.high


def test_the_digest_tells_sets_of_questions_apart():
    table = Table({(o.question, c): 1.0 for o in THREE for c in o.choices})
    assert general(table, THREE, **HOW).digest == general(table, list(THREE), **HOW).digest
    assert general(table, THREE[:2], **HOW).digest != general(table, THREE, **HOW).digest


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_model_is_scored_by_its_own_likelihoods(model, tokenizer, batch_size: int):
    chat = ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))
    choices = read_choices()[:8]
    suite = general(TorchResponder(model, chat, batch_size), choices, **HOW)
    expected = []
    for one in choices:
        asked = chat.prompt_ids(as_messages([{"role": "user", "content": one.question}]))
        per_byte = []
        for text in one.choices:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model.eval()(input_ids=torch.tensor([asked + ids])).logits[0].log_softmax(-1)
            total = sum(float(logits[len(asked) - 1 + i, token]) for i, token in enumerate(ids))
            per_byte.append(total / len(text.encode()))
        expected.append(float(max(range(4), key=per_byte.__getitem__) == one.answer))
    assert list(suite.scores) == expected
    assert 0 < math.fsum(expected) < 8


def test_a_responder_without_likelihoods_is_refused():
    class Mute:
        def answer(self, prompts, max_new_tokens, tick):
            return []

    with pytest.raises(ConfigError, match="Mute cannot tell likelihoods"):
        general(Mute(), THREE, **HOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"), ("not json", ":1: no JSON"), ('{"question": "q"}', "choices: Field required"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "names none"),
        ('{"question": "q", "choices": ["a", "a"], "answer": 0}', "must differ"),
        ('{"question": "q", "choices": ["a", " "], "answer": 0}', "hold text"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 0, "x": 1}', "x: Extra"),
    ],
)  # fmt: skip
def test_a_set_that_is_none_is_one_message(tmp_path: Path, text: str, message: str):
    (tmp_path / "set.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_choices(tmp_path / "set.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_choices(tmp_path / "missing.jsonl")
