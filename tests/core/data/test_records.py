import pytest
from pydantic import ValidationError

from core.data.records import Conversation, Message, first_problem, from_row, read_conversations, to_row

S, U, A = "system", "user", "assistant"


def turns(*roles, blank=None):
    return tuple(
        Message(role=role, content=" \n" if place == blank else f"{role} {place}")
        for place, role in enumerate(roles)
    )


@pytest.mark.parametrize("roles", [(U, A), (S, U, A), (U, A, U, A), (S, U, A, U, A, U, A)])
def test_well_formed(roles):
    assert first_problem(turns(*roles)) is None
    assert len(Conversation(id="a-1_B", messages=turns(*roles)).messages) == len(roles)


@pytest.mark.parametrize(
    ("roles", "blank", "problem"),
    [
        ((), None, "no user turn"),
        ((S,), None, "no user turn"),
        ((S, A), None, "no user turn"),
        ((A,), None, "no user turn"),
        ((U,), None, "no answer"),
        ((U, A, U), None, "no answer"),
        ((U, U, A), None, "roles do not alternate"),
        ((A, U, A), None, "roles do not alternate"),
        ((U, A, A), None, "roles do not alternate"),
        ((U, S, A), None, "roles do not alternate"),
        ((S, S, U, A), None, "roles do not alternate"),
        ((U, A), 1, "empty answer"),
        ((U, A), 0, "empty turn"),
        ((U, A, U, A), 1, "empty turn"),
        ((S, U, A), 0, "empty turn"),
    ],
)
def test_malformed(roles, blank, problem):
    assert first_problem(turns(*roles, blank=blank)) == problem
    with pytest.raises(ValidationError, match=problem):
        Conversation(id="a", messages=turns(*roles, blank=blank))


@pytest.mark.parametrize("name", ["", "a b", "é", "a\n", "a/b"])
def test_bad_ids_are_refused(name):
    with pytest.raises(ValidationError):
        Conversation(id=name, messages=turns(U, A))


def test_unknown_role_and_frozen():
    with pytest.raises(ValidationError):
        Message(role="tool", content="x")
    with pytest.raises(ValidationError, match="frozen"):
        Message(role="user", content="x").content = "y"


def test_round_trip_through_a_file(tmp_path, jsonl):
    conversation = Conversation(
        id="a", messages=turns(S, U, A), metadata={"topic": "ɛ", "deep": [1, {"x": None}]}
    )
    row = to_row(conversation, {"file": "f", "line": 1})
    assert list(row) == ["id", "conversations", "metadata", "origin"]
    assert row["conversations"][0] == {"role": "system", "content": "system 0"}
    assert from_row(row) == conversation
    assert list(read_conversations(jsonl(tmp_path / "x.jsonl", [row]))) == [conversation]
