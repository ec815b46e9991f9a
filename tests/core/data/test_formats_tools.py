import json

import pytest

from core.data.formats import Rejected, convert
from core.data.records import Message, ToolCall

CITY = '{"city": "Kumasi"}'
CALL = ToolCall(name="weather", arguments=CITY)
USER = Message(role="user", content="Weather?")
SAID = Message(role="assistant", content="Rain.")
TOOL = Message(role="tool", content="rain")
CALLS = Message(role="assistant", content="", tool_calls=(CALL,))
TALK = (USER, CALLS, TOOL, SAID)


def function(arguments=CITY, name="weather", **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def openai(*turns):
    return {"messages": [{"role": "user", "content": "Weather?"}, *turns]}


RESULT = {"role": "tool", "content": "rain"}
LAST = {"role": "assistant", "content": "Rain."}


def sharegpt(call, result="rain", call_role="function_call", result_role="observation", before=()):
    turns = [("human", "Weather?"), *before, (call_role, call), (result_role, result), ("gpt", "Rain.")]
    return {"conversations": [{"from": who, "value": value} for who, value in turns]}


FLAT = '{"name": "weather", "arguments": {"city": "Kumasi"}}'

ROWS = [
    openai({"role": "assistant", "content": None, "tool_calls": [function()]}, RESULT, LAST),
    openai({"role": "assistant", "tool_calls": [function()]}, RESULT, LAST),
    openai({"role": "assistant", "content": "", "tool_calls": [function({"city": "Kumasi"})]}, RESULT, LAST),
    openai({"role": "assistant", "content": None, "tool_calls": json.dumps([function()])}, RESULT, LAST),
    openai({"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": CITY}]}, RESULT, LAST),
    openai(
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": CITY}},
        {"role": "function", "content": "rain"},
        LAST,
    ),
    openai(
        {"role": "assistant", "content": None, "tool_calls": [function()], "function_call": None, "name": None},
        {**RESULT, "tool_calls": None, "content": [{"type": "text", "text": "rain"}]},
        {**LAST, "tool_calls": [], "tool_call_id": None},
    ),
    sharegpt(FLAT),
    sharegpt(FLAT, call_role="tool_call", result_role="tool"),
    sharegpt(f"[{FLAT}]", result_role="function"),
    sharegpt({"name": "weather", "parameters": {"city": "Kumasi"}}),
    sharegpt(
        f"<tool_call>\n{FLAT}\n</tool_call>", "<tool_response>\nrain\n</tool_response>", "gpt", "tool"
    ),
    sharegpt(
        f"<tool_call>\n{FLAT}\n</tool_call>", "<tool_response>\nrain\n</tool_response>", "gpt", "human"
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_spelling_of_a_call_becomes_the_same_turns(row):
    assert convert(row).messages == TALK


def test_names_and_ids_of_calls_are_kept():
    row = openai(
        {
            "role": "assistant",
            "content": "Two.",
            "tool_calls": [function(id="a"), function("", "now", id="b")],
        },
        {**RESULT, "tool_call_id": "a", "name": "weather"},
        {**RESULT, "content": {"hour": 7}, "tool_call_id": "b"},
        LAST,
    )
    _, calls, first, second, _ = convert(row).messages
    assert calls.content == "Two."
    assert [(c.name, c.arguments, c.id) for c in calls.tool_calls] == [
        ("weather", CITY, "a"),
        ("now", "{}", "b"),
    ]
    assert (first.name, first.tool_call_id, second.tool_call_id) == ("weather", "a", "b")
    assert second.content == '{"hour": 7}'


def test_a_call_of_its_own_joins_the_words_before_it():
    _, calls, *_ = convert(sharegpt(FLAT, before=[("gpt", "Let me see.")])).messages
    assert (calls.content, calls.tool_calls) == ("Let me see.", (CALL,))
    _, calls, *_ = convert(sharegpt(FLAT, before=[("function_call", FLAT)])).messages
    assert calls.tool_calls == (CALL, CALL)


def test_a_conversation_may_end_with_a_call():
    row = openai({"role": "assistant", "content": None, "tool_calls": [function()]})
    assert convert(row).messages == (USER, CALLS)


def test_an_answer_that_only_quotes_a_call_stays_a_text():
    quoted = f"Write <tool_call>{FLAT}</tool_call>."
    turns = [{"role": "assistant", "content": quoted}, {"role": "user", "content": "Thanks"}, LAST]
    assert [turn.content for turn in convert(openai(*turns)).messages] == [
        "Weather?",
        quoted,
        "Thanks",
        "Rain.",
    ]
    assert (
        convert(openai({"role": "assistant", "content": "<tool_call>"})).messages[1].content == "<tool_call>"
    )


def test_offered_tools_are_kept_as_json():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {**openai({"role": "assistant", "content": "x"}), "tools": tools}
    converted = convert(row)
    assert json.loads(converted.metadata["tools"]) == tools
    assert converted.used == ("messages", "tools")
    assert convert({**row, "tools": json.dumps(tools)}).metadata == converted.metadata
    assert convert({**row, "tools": []}).metadata == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sharegpt("not JSON"), "unreadable tool call"),
        (sharegpt('{"arguments": {}}'), "unreadable tool call"),
        (sharegpt('{"name": " ", "arguments": {}}'), "unreadable tool call"),
        (sharegpt('{"name": "w", "arguments": [1]}'), "unreadable tool call"),
        (sharegpt('{"name": "w", "arguments": "city"}'), "unreadable tool call"),
        (sharegpt('{"name": "w", "arguments": {"a": NaN}}'), "unreadable tool call"),
        (sharegpt({"name": "w", "arguments": {"a": float("nan")}}), "unreadable tool call"),
        (sharegpt("[]"), "unreadable tool call"),
        (sharegpt(None), "unreadable tool call"),
        (sharegpt('{"name": "w", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001), "unreadable tool call"),
        (sharegpt(FLAT, 7), "content is not text"),
        (openai({"role": "assistant", "content": None, "tool_calls": [function()]}, LAST), "tool call without an answer"),
        (openai(RESULT, LAST), "tool answer without a call"),
        (openai({"role": "assistant", "content": None, "tool_calls": [function()]}, RESULT), "no answer"),
        (
            openai({"role": "assistant", "content": None, "tool_calls": [function()]}, {"role": "user", "content": "x"}, LAST),
            "tool call without an answer",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [function()]}, LAST]},
            "tool call outside an assistant turn",
        ),
    ],
)  # fmt: skip
def test_unusable_tool_turns_have_a_stable_reason(row, reason):
    with pytest.raises(Rejected) as refusal:
        convert(row)
    assert str(refusal.value) == reason
