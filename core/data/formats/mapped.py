"""Reader of rows whose fields the config names."""

from typing import Any

from core.data.config import FieldsConfig
from core.data.formats.calls import read_tools
from core.data.formats.found import Found, exchange
from core.data.formats.plain import whole
from core.data.formats.reasons import NO_QUESTION, NOT_TEXT, Rejected, answer, stripped
from core.data.formats.turns import ROLES, Spelling, read_turns, turn_list
from core.data.records import Message


def read_mapped(row: dict[str, Any], fields: FieldsConfig) -> Found:
    """Read a row by the names that the config gives.

    Raises:
        Rejected: If a named field is missing or holds something else.
    """
    if fields.text is not None:
        _demand(row, fields.text)
        return Found([], (fields.text,), whole(row[fields.text]))
    system, system_field = _system(row, fields)
    if fields.messages is not None:
        return _listed(row, fields, fields.messages, system, system_field)
    user, assistant = fields.user or "", fields.assistant or ""
    _demand(row, user)
    _demand(row, assistant)
    question = stripped(row[user])
    if not question:
        raise Rejected(NO_QUESTION)
    return Found(exchange(question, answer(row[assistant]), system), (*system_field, user, assistant))


def _demand(row: dict[str, Any], field: str) -> None:
    if field not in row:
        raise Rejected(f"no field {field!r}")


def _system(row: dict[str, Any], fields: FieldsConfig) -> tuple[str, tuple[str, ...]]:
    # Not every conversation has one.
    text = stripped(row.get(fields.system)) if fields.system else None
    return (text, (fields.system,)) if text and fields.system else ("", ())


def _listed(
    row: dict[str, Any], fields: FieldsConfig, field: str, system: str, system_field: tuple[str, ...]
) -> Found:
    _demand(row, field)
    items = turn_list(row, field)
    if items is None:
        raise Rejected(NOT_TEXT)
    roles = {**ROLES, **fields.roles} if fields.roles else ROLES
    turns = read_turns(items, Spelling((fields.role,), (fields.content,), roles))
    if system:
        turns = [Message(role="system", content=system), *turns]
    tools, tools_field = read_tools(row)
    return Found(turns, (*system_field, field, *tools_field), extra=tools)
