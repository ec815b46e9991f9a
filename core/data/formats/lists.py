"""Readers of rows that hold a list of turns."""

from typing import Any

from core.data.formats.calls import read_tools
from core.data.formats.found import Found, own_system
from core.data.formats.reasons import IMAGE, UNKNOWN_SHAPE, Rejected
from core.data.formats.turns import LIST_FIELDS, OPENAI, SHAREGPT, Spelling, read_turns, turn_list
from core.data.records import Message


def list_field(row: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """Return the field with the turns and the turns, if a row has such."""
    for field in LIST_FIELDS:
        if field in row:
            turns = turn_list(row, field)
            if turns is not None:
                return field, turns
    return None


def read_messages(row: dict[str, Any]) -> Found:
    """Read {messages: [{role, content}]}."""
    return _read(row, OPENAI)


def read_sharegpt(row: dict[str, Any]) -> Found:
    """Read {conversations: [{from, value}]} or [{role, content}]."""
    return _read(row, SHAREGPT)


def _read(row: dict[str, Any], spelling: Spelling) -> Found:
    found = list_field(row)
    if found is None:
        raise Rejected(UNKNOWN_SHAPE)
    field, items = found
    if row.get("image") or row.get("images"):
        raise Rejected(IMAGE)
    turns = read_turns(items, spelling)
    system, system_field = own_system(row)
    if system_field and not (turns and turns[0].role == "system" and turns[0].content):
        turns = [Message(role="system", content=system), *turns]
    else:
        system_field = ()
    tools, tools_field = read_tools(row)
    return Found(turns, (*system_field, field, *tools_field), extra=tools)
