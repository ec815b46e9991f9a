"""Ways of asking the base: which examples are shown, and what the model is given."""

from pathlib import Path

import pytest

from core.artifacts import write_jsonl
from core.data.records import Conversation, Message
from core.errors import DataError
from core.evaluation.arms import FewShot, Shot, arm_messages, draw_shots

ASKED = [{"role": "user", "content": "2 + 2?"}]
SYSTEM = {"role": "system", "content": "Be kind."}
SHOTS = (Shot("1 + 1?", "2"), Shot("3 + 3?", "6"))
SHOWN = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3 + 3?"},
    {"role": "assistant", "content": "6"},
]


def row(number: int, question: str, answer: str, *before: dict) -> dict:
    turns = [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"r{number}", "conversations": turns}


@pytest.fixture
def train(tmp_path: Path) -> Path:
    rows = [row(i, f"question {i} " + "long " * i, f"answer {i}") for i in range(20)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    return tmp_path / "train.jsonl"


def test_arms_ask_the_same_question_in_three_ways():
    assert arm_messages("zero_shot", ASKED, SHOTS, "Be short.") == ASKED
    assert arm_messages("few_shot", ASKED, SHOTS, "Be short.") == [*SHOWN, *ASKED]
    assert arm_messages("few_shot", [SYSTEM, *ASKED], SHOTS, "") == [SYSTEM, *SHOWN, *ASKED]
    assert arm_messages("prompted", ASKED, SHOTS, "Be short.") == [
        {"role": "system", "content": "Be short."},
        *ASKED,
    ]
    extended = {"role": "system", "content": "Be kind.\n\nBe short."}
    assert arm_messages("prompted", [SYSTEM, *ASKED], SHOTS, "Be short.") == [extended, *ASKED]


def test_arms_leave_the_question_itself_alone_and_make_sound_conversations():
    messages = [SYSTEM, *SHOWN[:2], *ASKED]
    copy = [dict(turn) for turn in messages]
    for arm in ("zero_shot", "few_shot", "prompted"):
        made = arm_messages(arm, messages, SHOTS, "Be short.")
        turns = tuple(Message.model_validate(turn) for turn in [*made, {"role": "assistant", "content": "4"}])
        Conversation(id="x", messages=turns)
    assert messages == copy


def test_shots_are_the_same_for_a_seed_whatever_the_order_of_the_rows(train: Path, tmp_path: Path):
    first = draw_shots(train, 4, seed=1)
    assert len(set(first)) == 4
    assert draw_shots(train, 4, seed=1) == first
    lines = train.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert draw_shots(tmp_path / "other.jsonl", 4, seed=1) == first
    assert draw_shots(train, 4, seed=2) != first


def test_shots_come_from_the_shorter_half(train: Path):
    drawn = {shot.answer for seed in range(40) for shot in draw_shots(train, 4, seed)}
    assert drawn == {f"answer {i}" for i in range(10)}


def test_few_rows_give_few_shots_and_every_one_of_them(tmp_path: Path):
    write_jsonl(tmp_path / "t.jsonl", [row(1, "a", "b"), row(2, "a", "b"), row(3, "c" * 5000, "d")])
    assert set(draw_shots(tmp_path / "t.jsonl", 8, 1)) == {Shot("a", "b"), Shot("c" * 5000, "d")}


def test_only_single_questions_without_tools_are_shown(tmp_path: Path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    rows = [
        row(1, "again?", "yes", *SHOWN[:2]),
        {"id": "r2", "conversations": [ASKED[0], call]},
        {"id": "r3", "text": "a plain text"},
        row(4, "kept?", "yes", SYSTEM),
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert draw_shots(tmp_path / "t.jsonl", 4, 1) == (Shot("kept?", "yes"),)
    write_jsonl(tmp_path / "none.jsonl", rows[:3])
    with pytest.raises(DataError, match="no single question"):
        draw_shots(tmp_path / "none.jsonl", 4, 1)


def words(messages) -> int:
    return sum(len(turn["content"].split()) for turn in messages)


@pytest.mark.parametrize(
    ("window", "shown", "shortened"), [(None, 4, 0), (16, 4, 0), (15, 2, 1), (11, 0, 1), (1, 0, 1)]
)
def test_fewer_examples_are_shown_where_the_window_is_small(window, shown, shortened):
    # A shot has four words, the question three, the answer is kept five: 16 in all.
    ask = FewShot(SHOTS, words, window, answer=5)
    assert ask(ASKED) == [*SHOWN[:shown], *ASKED]
    assert ask.shortened == shortened


@pytest.mark.parametrize(("window", "room"), [(None, 2), (16, 2), (15, 1), (12, 1), (11, 0)])
def test_room_is_known_before_anything_is_asked(window, room):
    ask = FewShot(SHOTS, words, window, answer=5)
    assert (ask.room(ASKED), ask.shortened, ask.most) == (room, 0, 2)
