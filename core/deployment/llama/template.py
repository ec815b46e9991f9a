"""Chat templates as a GGUF file holds them: cleaned for other engines, and rendered.

Imports nothing but the standard library and Jinja, because the worker process does.
"""

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_GENERATION = re.compile(r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})")


def without_generation_tags(template: str) -> str:
    """Replace the tags that mark trained tokens, which only transformers understands.

    They become an ``if`` that always holds, not nothing, so that the white space around
    them is trimmed exactly as before.

    Args:
        template: Jinja source.

    Returns:
        The source without ``{% generation %}`` and ``{% endgeneration %}``.
    """
    return _GENERATION.sub(lambda m: f"{m[1]} {'endif' if m[2] else 'if true'} {m[3]}", template)


def render(template: str, messages: list[dict[str, Any]], tokens: dict[str, str]) -> str:
    """Render a conversation up to where the assistant's answer starts.

    Args:
        template: Jinja source.
        messages: Role and content of each turn.
        tokens: Texts of the special tokens, such as ``bos_token``.

    Returns:
        The prompt.

    Raises:
        TemplateError: If the template is wrong or refuses the conversation.
    """
    source = _compiled(template)
    return source.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(without_generation_tags(template))


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)
