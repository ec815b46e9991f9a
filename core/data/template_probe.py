"""What a chat template does, found by rendering probes with it; no family's markers are written here."""

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.data.records import Message

Write = Callable[[Sequence[Message], bool], str]
"""A chat template: (turns, add_generation_prompt) to text."""

SYSTEM, QUESTION, ANSWER, AGAIN = "Probe system text.", "Probe question?", "Probe answer.", "Probe again?"
_ASKED = (Message(role="user", content=QUESTION),)
ANSWERED = (*_ASKED, Message(role="assistant", content=ANSWER))

# Plain tags without dashes: other engines than Jinja read them too, and no white space is eaten.
_FOLD = (
    "{% if messages[0]['role'] == 'system' and messages | length > 1 %}"
    "{% set messages = [{'role': messages[1]['role'],"
    " 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)


class Markers(NamedTuple):
    """What a template writes right before a question and before an answer."""

    instruction_part: str
    """Before what the user says, from the second turn on."""
    response_part: str
    """Before what the assistant says."""


def find_markers(write: Write, end_of_turn: str) -> Markers:
    """Return the texts that open a user turn and an assistant turn.

    Args:
        write: The template.
        end_of_turn: Token that ends an answer; it belongs to the turn before.
    """
    text = write([*ANSWERED, Message(role="user", content=AGAIN)], True)
    between, _, tail = text.partition(ANSWER)[2].partition(AGAIN)
    ended = re.compile(rf"{re.escape(end_of_turn)}\s*")
    return Markers(
        *(part[match.end() :] if (match := ended.match(part)) else part for part in (between, tail))
    )


def find_opening(write: Write) -> str:
    """Return what the template writes between its generation prompt and an answer; white space is nothing.

    Qwen3 writes an empty thought there. It is the template's, not the assistant's: prompts end with it.
    """
    prompt, text = write(_ASKED, True), write(ANSWERED, False)
    between = text.removeprefix(prompt).partition(ANSWER)[0] if text.startswith(prompt) else ""
    return between if between.strip() else ""


def writes_bos(write: Write, bos: str) -> bool:
    """Tell whether the template puts the BOS first."""
    return write(_ASKED, True).startswith(bos)


def self_sufficient(template: str, *, adds_bos: bool, folds_system: bool, opening: str) -> str:
    """Return a template that does by itself what was done around it, so that every runtime does it.

    Args:
        template: Jinja source.
        adds_bos: Write the BOS first.
        folds_system: Put the system text before the first user turn, and take the system turn away.
        opening: Text after the generation prompt.
    """
    head = _FOLD * folds_system + "{{ bos_token }}" * adds_bos
    if not opening:
        return head + template
    tail = f"{{% if add_generation_prompt %}}{{{{ {json.dumps(opening)} }}}}{{% endif %}}"
    # Jinja drops one line break at the end of a source, which would no longer be the end.
    return head + template.removesuffix("\n") + tail


def folded(messages: Sequence[Message]) -> list[Message]:
    """Return turns whose system text opens the first user turn."""
    if len(messages) < 2 or messages[0].role != "system":
        return list(messages)
    system, first, *rest = messages
    return [Message(role=first.role, content=f"{system.content}\n\n{first.content}"), *rest]
