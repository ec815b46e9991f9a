"""Whole conversations in one text, told apart by the markers of chat templates."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from core.data.formats.calls import uncovered
from core.data.formats.reasons import NO_MARKERS, OUTSIDE, UNKNOWN_ROLE, Rejected
from core.data.formats.turns import ROLES
from core.data.records import Message

_START = r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*"
_EDGES = ("<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>")
_SECTION = (
    r"(?:(?<![^\n])###[ \t]*(?:Instruction|Input|Response)|###[ \t]*(?:Human|User|System|Assistant))[ \t]*:"
)
_LINE = r"(?:System|SYSTEM|Human|HUMAN|User|USER|Assistant|ASSISTANT|AI|Bot|BOT)[ \t]*:"
_NAMES = {
    **ROLES,
    "instruction": "user",
    "input": "input",
    "response": "assistant",
    "[inst]": "user",
    "[/inst]": "assistant",
    "<<sys>>": "system",
    "<</sys>>": "user",
}


class _Syntax(NamedTuple):
    """How one family of templates marks turns."""

    begins: re.Pattern[str]
    """Matches at the start of a text of this kind."""
    opens: re.Pattern[str]
    """Matches what opens a turn; its group names the speaker."""
    closer: str = ""
    """Ends a turn."""
    answers: re.Pattern[str] | None = None
    """Must also be found, where the beginning alone proves little."""
    needle: str = ""
    """Part of every marker: plain texts without it are passed over fast."""


def _tagged(before: str, after: str, closer: str, names: str = r"\w+") -> _Syntax:
    opens = rf"{re.escape(before)}[ \t]*({names})[ \t]*{after}"
    return _Syntax(re.compile(_START + opens), re.compile(opens), closer)


_SYNTAXES = (
    _tagged("<|im_start|>", r"(?:\n|$)", "<|im_end|>"),
    _tagged("<start_of_turn>", r"(?:\n|$)", "<end_of_turn>"),
    _tagged("<|start_header_id|>", re.escape("<|end_header_id|>"), "<|eot_id|>"),
    _tagged("<|", re.escape("|>"), "<|end|>", names="system|user|assistant"),
    _Syntax(
        re.compile(_START + r"\[INST\]"),
        re.compile(r"(?:\[INST\]\s*(?=<<SYS>>))?(<<SYS>>|<</SYS>>|\[INST\]|\[/INST\])"),
    ),
    _Syntax(
        re.compile(r"[^#]{0,2000}?" + _SECTION),
        re.compile(_SECTION.replace("(?:Instruction", "(Instruction").replace("(?:Human", "(Human")),
        answers=re.compile(r"(?<![^\n])###[ \t]*Response[ \t]*:|###[ \t]*Assistant[ \t]*:"),
        needle="###",
    ),
    _Syntax(
        re.compile(_START + _LINE.replace("Assistant|ASSISTANT|AI|Bot|BOT", "SYSTEM")),
        re.compile(r"(?m)^[ \t]*" + _LINE.replace("(?:", "(", 1)),
        answers=re.compile(r"(?m)^[ \t]*(?:Assistant|ASSISTANT|AI|Bot|BOT)[ \t]*:"),
    ),
)


def is_chat(text: str) -> bool:
    """Tell whether a text begins with the markers of a chat template and goes on with an answer."""
    return _syntax(text) is not None


def _syntax(text: str) -> _Syntax | None:
    for syntax in _SYNTAXES:
        begin = syntax.begins.match(text) if syntax.needle in text else None
        if begin and (syntax.answers is None or syntax.answers.search(text, begin.end())):
            return syntax
    return None


def read_chat(text: str) -> list[Message]:
    """Return the turns of a conversation written as one text.

    Words before the first marker, as in Alpaca's prompt, are the system turn.

    Raises:
        Rejected: If it has no known markers, an unknown speaker, or words between the turns.
    """
    syntax = _syntax(text)
    if syntax is None:
        raise Rejected(NO_MARKERS)
    turns: list[tuple[str, str]] = []
    for name, content in _pieces(text, syntax):
        _add(turns, name, content)
    return uncovered([_message(name, content) for name, content in turns])


def _pieces(text: str, syntax: _Syntax) -> Iterator[tuple[str, str]]:
    marks = list(syntax.opens.finditer(text))
    before = _bare(text[: marks[0].start()], "")
    if before:
        yield "system", before
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        name = next(group for group in mark.groups() if group)
        yield name.lower(), _bare(text[mark.end() : end], syntax.closer)


def _bare(text: str, closer: str) -> str:
    """Return what is said, without the tokens that open and close a text or a turn."""
    said, _, rest = text.partition(closer) if closer else (text, "", "")
    if _without_edges(rest):
        raise Rejected(OUTSIDE)
    return _without_edges(said)


def _without_edges(text: str) -> str:
    text = text.strip()
    while edge := next((e for e in _EDGES if text.endswith(e)), ""):
        text = text.removesuffix(edge).rstrip()
    while edge := next((e for e in _EDGES if text.startswith(e)), ""):
        text = text.removeprefix(edge).lstrip()
    return text


def _add(turns: list[tuple[str, str]], name: str, content: str) -> None:
    role = _NAMES.get(name)
    if role is None or role == "call":
        raise Rejected(UNKNOWN_ROLE)
    if role == "input":
        # Part of the question; below an answer it is a heading of that answer.
        role, before = turns.pop() if turns else ("user", "")
        content = f"{before}\n\n{content}".strip() if role == "user" else f"{before}\n\n### Input:\n{content}"
    turns.append((role, content))


def _message(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})
