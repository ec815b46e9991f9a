"""Tool turns on their way into a chat template: in the template's own words, or written out as text."""

import json
from collections.abc import Sequence
from typing import Any

from core.data.records import Message, ToolCall

ONE_CALL, SEVERAL_CALLS, WORDS_AND_CALL = "one call", "several calls", "words and a call"
"""What a conversation with tools may ask of a template."""

PROBE_TOOL, PROBE_VALUE, PROBE_WORDS = "probe_tool", "probe value", "Probe words."
PROBE_RESULT, PROBE_QUESTION, PROBE_ANSWER = "Probe result.", "Probe question?", "Probe answer."


def needs(messages: Sequence[Message]) -> frozenset[str]:
    """Return what a template must be able to write for these turns."""
    wanted = set()
    for turn in messages:
        if turn.tool_calls or turn.role == "tool":
            wanted.add(ONE_CALL)
        if len(turn.tool_calls) > 1:
            wanted.add(SEVERAL_CALLS)
        if turn.tool_calls and turn.content.strip():
            wanted.add(WORDS_AND_CALL)
    return frozenset(wanted)


def probe(need: str) -> list[Message]:
    """Return a conversation with exactly this need, made of the probe texts."""
    count = 2 if need == SEVERAL_CALLS else 1
    call = ToolCall(name=PROBE_TOOL, arguments=json.dumps({"probe_key": PROBE_VALUE}))
    words = PROBE_WORDS if need == WORDS_AND_CALL else ""
    results = [Message(role="tool", content=PROBE_RESULT, name=PROBE_TOOL)] * count
    return [
        Message(role="user", content=PROBE_QUESTION),
        Message(role="assistant", content=words, tool_calls=(call,) * count),
        *results,
        Message(role="assistant", content=PROBE_ANSWER),
    ]


def probe_texts(need: str) -> dict[str, int]:
    """Return the texts that must appear when ``probe`` is written out, and how often at least."""
    count = 2 if need == SEVERAL_CALLS else 1
    texts = {PROBE_TOOL: count, PROBE_VALUE: count, PROBE_RESULT: count}
    return texts | ({PROBE_WORDS: 1} if need == WORDS_AND_CALL else {})


def said(turn: Message) -> str:
    """Return what an assistant turn says, its calls written out as text."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}\n</tool_call>'
        for call in turn.tool_calls
    ]
    return "\n".join([turn.content, *calls] if turn.content else calls)


def flattened(messages: Sequence[Message]) -> list[Message]:
    """Return the same conversation without tool turns, for templates that know none.

    Calls become part of the assistant's text, the answers to them one user turn; roles alternate.
    """
    turns: list[Message] = []
    after_tool = False
    for turn in messages:
        is_tool = turn.role == "tool"
        content = f"<tool_response>\n{turn.content}\n</tool_response>" if is_tool else said(turn)
        if is_tool and after_tool:
            turns[-1] = Message(role="user", content=f"{turns[-1].content}\n{content}")
        else:
            turns.append(Message(role="user" if is_tool else turn.role, content=content))
        after_tool = is_tool
    return turns


def wire(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return turns as chat templates expect them: the shape of Hugging Face and OpenAI.

    Calls are numbered anew, in nine letters and digits as Mistral's templates demand. An answer
    without a name or a call gets those of the call at its place.
    """
    rows: list[dict[str, Any]] = []
    open_calls: list[tuple[ToolCall, str]] = []
    count = 0
    for turn in messages:
        row: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            open_calls = [(call, f"call{count + n:05d}") for n, call in enumerate(turn.tool_calls)]
            count += len(open_calls)
            row["tool_calls"] = [_wire_call(call, number) for call, number in open_calls]
        elif turn.role == "tool":
            row |= _answered(turn, open_calls)
        rows.append(row)
    return rows


def _wire_call(call: ToolCall, number: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": number, "type": "function", "function": function}


def _answered(turn: Message, open_calls: list[tuple[ToolCall, str]]) -> dict[str, str]:
    """Return name and id of the call that a tool turn answers, and take it off the open ones."""
    known = [
        n for n, (call, _) in enumerate(open_calls) if turn.tool_call_id and call.id == turn.tool_call_id
    ]
    if not open_calls:
        return {"name": turn.name} if turn.name else {}
    call, number = open_calls.pop(known[0] if known else 0)
    return {"name": turn.name or call.name, "tool_call_id": number}
