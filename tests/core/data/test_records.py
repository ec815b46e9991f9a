import pytest
from pydantic import ValidationError

from core.data.records import (
    Conversation,
    Document,
    Message,
    ToolCall,
    first_problem,
    from_row,
    read_conversations,
    read_records,
    to_row,
)

S, U, A, T = "system", "user", "assistant", "tool"
C = "assistant with a call"


def turns(*roles, blank=None):
    return tuple(
        Message(
            role=A if role == C else role,
            content=" \n" if place == blank else f"{role} {place}",
            tool_calls=(ToolCall(name="f", arguments="{}"),) if role == C else (),
        )
        for place, role in enumerate(roles)
    )


@pytest.mark.parametrize(
    "roles",
    [
        (U, A),
        (S, U, A),
        (U, A, U, A),
        (S, U, A, U, A, U, A),
        (U, C),
        (U, C, T, A),
        (U, C, T, T, A, U, A),
        (S, U, C, T, C, T, A),
        (U, A, U, C),
    ],
)
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
        ((U, C, T), None, "no answer"),
        ((U, C, A), None, "tool call without an answer"),
        ((U, C, U, A), None, "tool call without an answer"),
        ((U, T, A), None, "tool answer without a call"),
        ((T, U, A), None, "tool answer without a call"),
        ((U, A, T, A), None, "tool answer without a call"),
        ((U, C, T, U, A), None, "roles do not alternate"),
        ((U, C, T, A, A), None, "roles do not alternate"),
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


def test_calls_and_their_answers_may_be_empty():
    assert first_problem(turns(U, C, T, A, blank=1)) is None
    assert first_problem(turns(U, C, T, A, blank=2)) is None
    assert first_problem(turns(U, C, blank=1)) is None
    assert first_problem(turns(U, C, T, A, blank=3)) == "empty answer"
    assert first_problem(turns(U, C, blank=0)) == "empty turn"


def test_only_an_assistant_calls_tools():
    user = Message(role="user", content="x", tool_calls=(ToolCall(name="f", arguments="{}"),))
    assert first_problem([user, *turns(A)]) == "tool call outside an assistant turn"


@pytest.mark.parametrize("arguments", ["", "x", "[1]", "1", '"a"'])
def test_arguments_are_a_json_object(arguments):
    with pytest.raises(ValidationError):
        ToolCall(name="f", arguments=arguments)


def test_unknown_role_and_frozen():
    with pytest.raises(ValidationError):
        Message(role="narrator", content="x")
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


def test_what_is_not_set_is_left_out_of_a_turn():
    call = ToolCall(name="f", arguments='{"a": 1}', id="c1")
    messages = (
        Message(role="user", content="Q"),
        Message(role="assistant", content="", tool_calls=(call, ToolCall(name="g", arguments="{}"))),
        Message(role="tool", content="1", name="f", tool_call_id="c1"),
        Message(role="assistant", content="A"),
    )
    row = to_row(Conversation(id="a", messages=messages), {})
    assert row["conversations"] == [
        {"role": "user", "content": "Q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"name": "f", "arguments": '{"a": 1}', "id": "c1"},
                {"name": "g", "arguments": "{}"},
            ],
        },
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c1"},
        {"role": "assistant", "content": "A"},
    ]
    assert from_row(row).messages == messages


def test_a_file_may_hold_conversations_and_plain_texts(tmp_path, jsonl):
    document = Document(id="d", text=" words ", metadata={"topic": "ɛ"})
    conversation = Conversation(id="a", messages=turns(U, A))
    row = to_row(document, {"file": "f", "line": 1})
    assert row == {
        "id": "d",
        "text": " words ",
        "metadata": {"topic": "ɛ"},
        "origin": {"file": "f", "line": 1},
    }
    path = jsonl(tmp_path / "x.jsonl", [row, to_row(conversation, {})])
    assert list(read_records(path)) == [document, conversation]
    assert list(read_conversations(path)) == [conversation]
