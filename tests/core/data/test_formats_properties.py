"""Any conversation survives the way through the shapes people write, and no row breaks the reader."""

import json
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.config import FieldsConfig, RowFormat
from core.data.formats import Rejected, convert, describe
from core.data.records import Conversation, Document, Message, ToolCall, first_problem, from_row, to_row

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

words = st.text(max_size=30).map(str.strip).filter(lambda text: text and "<" not in text)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
arguments = st.dictionaries(names, st.integers() | words, max_size=2).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)


@st.composite
def exchanges(draw, tools):
    """One question, perhaps some calls with their answers, one answer."""
    turns = [Message(role="user", content=draw(words))]
    for _ in range(draw(st.integers(0, 2)) if tools else 0):
        calls = draw(st.lists(st.builds(ToolCall, name=names, arguments=arguments), min_size=1, max_size=2))
        turns.append(Message(role="assistant", content=draw(words | st.just("")), tool_calls=tuple(calls)))
        turns += [Message(role="tool", content=draw(words | st.just(""))) for _ in calls]
    return [*turns, Message(role="assistant", content=draw(words))]


@st.composite
def talks(draw, tools=True, longest=3):
    head = [Message(role="system", content=draw(words))] if draw(st.booleans()) else []
    body = [turn for _ in range(draw(st.integers(1, longest))) for turn in draw(exchanges(tools))]
    return tuple(head + body)


def as_openai(turn):
    row = {"role": turn.role, "content": turn.content or None}
    if turn.tool_calls:
        row["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    return row


def as_sharegpt(turn):
    speaker = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}[turn.role]
    rows = [{"from": speaker, "value": turn.content}] if turn.content or not turn.tool_calls else []
    calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in turn.tool_calls]
    return (
        [*rows, {"from": "function_call", "value": json.dumps(calls, ensure_ascii=False)}] if calls else rows
    )


@MANY
@given(talks())
def test_openai_messages_come_back_as_they_were(talk):
    assert first_problem(talk) is None
    assert convert({"messages": [as_openai(turn) for turn in talk]}).messages == talk


@MANY
@given(talks())
def test_sharegpt_comes_back_as_it_was(talk):
    rows = [row for turn in talk for row in as_sharegpt(turn)]
    assert convert({"conversations": rows}).messages == talk


@MANY
@given(talks(tools=False, longest=1))
def test_alpaca_and_pairs_come_back_as_they_were(talk):
    *system, user, assistant = talk
    head = (
        {"instruction": system[0].content, "input": user.content} if system else {"instruction": user.content}
    )
    assert convert({**head, "output": assistant.content}).messages == talk
    pair = {"prompt": user.content, "completion": assistant.content}
    if system:
        pair["system"] = system[0].content
    assert convert(pair).messages == talk
    mapped = FieldsConfig(user="prompt", assistant="completion", system="system")
    assert convert(pair, fields=mapped).messages == talk


@MANY
@given(talks(tools=False))
def test_chat_text_comes_back_as_it_was(talk):
    text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in talk)
    assert convert({"text": text}).messages == talk


@MANY
@given(talks(), st.dictionaries(names, st.integers() | words, max_size=2))
def test_a_dataset_file_of_ours_is_a_source_like_any_other(talk, metadata):
    record = Conversation(id="a", messages=talk, metadata=metadata)
    row = json.loads(json.dumps(to_row(record, {"file": "f", "line": 1})))
    assert from_row(row) == record
    converted = convert(row)
    assert (converted.messages, converted.metadata) == (talk, metadata)
    document = Document(id="d", text="words", metadata=metadata)
    converted = convert(to_row(document, {"file": "f", "line": 1}))
    assert (converted.text, converted.metadata) == ("words", metadata)


KEYS = [
    "instruction", "input", "output", "messages", "conversations", "dialog", "prompt", "completion", "response",
    "question", "answer", "text", "content", "role", "from", "value", "tool_calls", "function_call", "function",
    "name", "arguments", "tools", "metadata", "system", "history", "annotations", "raw_text", "source", "id", "label",
    "image", "chosen", "rejected", "type",
]  # fmt: skip
TEXTS = [
    "user", "assistant", "tool", "function_call", "system", "", " ", "[", "[1]", "{}", "NaN", "<tool_call>{}</tool_call>",
    "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA", "[INST] Q [/INST] A", "### Instruction:\n### Response:",
    "text", "image_url",
]  # fmt: skip
anything = st.recursive(
    scalars | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
rows = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), anything, max_size=5)
MAPS = [
    None,
    FieldsConfig(text="text"),
    FieldsConfig(user="prompt", assistant="output", system="system"),
    FieldsConfig(messages="messages", roles={"x": "user"}),
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows | anything, st.sampled_from(get_args(RowFormat)), st.sampled_from(MAPS))
def test_any_value_becomes_a_sound_record_or_is_rejected(row, declared, fields):
    try:
        converted = convert(row, declared, fields)
    except Rejected as refusal:
        assert 3 < len(str(refusal)) < 60
        return
    json.dumps(converted.metadata, allow_nan=False)
    assert set(converted.used) <= set(row)
    assert converted.format != "auto"
    assert describe(converted.format, converted.used)
    if converted.text is None:
        assert first_problem(converted.messages) is None
        Conversation.model_validate(Conversation(id="x", messages=converted.messages).model_dump())
    else:
        assert converted.text.strip()
        assert converted.messages == ()


@pytest.mark.parametrize(
    "deep", [{"metadata": "x"}, {"messages": "x"}, {"annotations": "x", "raw_text": "t"}]
)
def test_a_bottomless_row_is_rejected_or_read(deep):
    value: object = 1
    for _ in range(20000):
        value = {"a": [value]}
    row = {key: value if given == "x" else given for key, given in deep.items()}
    with pytest.raises(Rejected):
        convert(
            {"question": "Q", "answer": "A", **row} if "raw_text" not in row else row,
            "auto" if "messages" not in row else "messages",
        )
