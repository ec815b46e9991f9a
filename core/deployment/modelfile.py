"""The Ollama Modelfile, with a Go template derived from the tokenizer's own chat template.

Ollama does not run Jinja, so the model would be prompted in a form it was not trained on unless
somebody translates. Here nobody types a template by hand: marked conversations are rendered with
the real one, the texts around the marks are read off, and the result is used only if it
reproduces the real template on longer conversations, character by character.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import jinja2

from core.config import Frozen
from core.errors import ConfigError, ModelError

Message: TypeAlias = Mapping[str, str]
Render: TypeAlias = Callable[[list[dict[str, str]], bool], str]
"""The tokenizer's chat template: (messages, add_generation_prompt) to text."""
Role: TypeAlias = Literal["system", "user", "assistant"]

_MARKS: dict[Role, tuple[str, ...]] = {
    "system": ("Qsysq0Z",),
    "user": ("Quserq1Z", "Quserq2Z", "Quserq3Z"),
    "assistant": ("Qassistantq1Z", "Qassistantq2Z"),
}
"""Contents no template trims, changes or contains."""

_REFUSED = (jinja2.TemplateError, ModelError)
"""How a template says no to a conversation: itself, or through the tokenizer that speaks it."""

NO_TEMPLATE = (
    "# No TEMPLATE: this model's chat template depends on more than the roles of the messages, and a Go\n"
    "# template cannot be derived from it. Ollama goes by the template in the GGUF file's metadata;\n"
    "# compare its answers with those in inference-api.md before relying on it."
)


class Turn(Frozen):
    """What stands around the content of one message."""

    prefix: str
    suffix: str


class ChatShape(Frozen):
    """A chat template as constant texts around the messages, without the runtime's own BOS."""

    opening: str = ""
    """Before everything."""
    no_system: str = ""
    """After the opening when the conversation has no system message: a default one."""
    system: Turn | None
    """None if the template refuses system messages."""
    folded: bool = False
    """The system message lies inside the user turn that follows it, as in Gemma."""
    user: Turn
    assistant: Turn
    generation: str
    """After the last message, to make the model answer."""

    def text(self, messages: Sequence[Message]) -> str:
        """Render a conversation and the generation prompt.

        Args:
            messages: With the keys role and content, in order.

        Raises:
            ValueError: On a role this shape has no text for.
        """
        roles = [message["role"] for message in messages]
        parts = [self.opening if "system" in roles else self.opening + self.no_system]
        for index, message in enumerate(messages):
            turn = self._turn(message["role"])
            inside = self.folded and index > 0 and roles[index - 1] == "system"
            parts += ["" if inside else turn.prefix, message["content"], turn.suffix]
        return "".join([*parts, self.generation])

    def _turn(self, role: str) -> Turn:
        turn = {"system": self.system, "user": self.user, "assistant": self.assistant}.get(role)
        if turn is None:
            raise ValueError(f"no text for the role {role}")
        return turn


def probe_chat(render: Render, *, bos: str = "") -> ChatShape | None:
    """Find the shape of a chat template by rendering marked conversations.

    Args:
        render: The tokenizer's chat template; raises ``jinja2.TemplateError`` or ``ModelError`` on
            a conversation it refuses.
        bos: Text the runtime puts first by itself (``bos_token`` if the GGUF file says
            ``add_bos_token``, else nothing); it is taken off the shape, or it would come twice.

    Returns:
        The shape, or None if constant texts around the messages cannot reproduce the template.
    """
    try:
        plain = _plain_shape(render, bos)
    except _REFUSED:
        return None
    if plain is None:
        return None
    try:
        shape = _with_system(plain, _opened(render, bos, "system", "user"))
        checked = (*_PLAIN_CHECKS, *_SYSTEM_CHECKS)
    except _REFUSED:
        # Templates without a system role raise on one.
        shape = plain.model_copy(update={"opening": plain.no_system, "no_system": ""})
        checked = _PLAIN_CHECKS
    return shape if shape and _reproduces(shape, render, bos, checked) else None


def _conversation(*roles: Role) -> list[dict[str, str]]:
    seen: dict[Role, int] = dict.fromkeys(_MARKS, 0)
    messages: list[dict[str, str]] = []
    for role in roles:
        messages.append({"role": role, "content": _MARKS[role][seen[role]]})
        seen[role] += 1
    return messages


_PLAIN_CHECKS: tuple[tuple[Role, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)
_SYSTEM_CHECKS: tuple[tuple[Role, ...], ...] = tuple(("system", *roles) for roles in _PLAIN_CHECKS)


def _plain_shape(render: Render, bos: str) -> ChatShape | None:
    """Read off everything but the system message; no_system holds all that comes first."""
    asked, answered = _opened(render, bos, "user"), _opened(render, bos, "user", "assistant")
    longer = _opened(render, bos, "user", "assistant", "user")
    prompted = render(_conversation("user"), True).removeprefix(bos)
    unprompted = render(_conversation("user"), False).removeprefix(bos)
    if not (asked and answered and longer and prompted.startswith(unprompted)):
        return None
    user_suffix, assistant_suffix = asked[-1], answered[-1]
    between, again = longer[1], longer[2]
    if not between.startswith(user_suffix) or not again.startswith(assistant_suffix):
        return None
    user_prefix = again.removeprefix(assistant_suffix)
    if not longer[0].endswith(user_prefix):
        return None
    return ChatShape(
        no_system=longer[0].removesuffix(user_prefix),
        system=None,
        user=Turn(prefix=user_prefix, suffix=user_suffix),
        assistant=Turn(prefix=between.removeprefix(user_suffix), suffix=assistant_suffix),
        generation=prompted.removeprefix(unprompted),
    )


def _opened(render: Render, bos: str, *roles: Role) -> list[str] | None:
    """Render a conversation and cut it at its marks: one text before, between and after each."""
    rest, parts = render(_conversation(*roles), False).removeprefix(bos), []
    for message in _conversation(*roles):
        if rest.count(message["content"]) != 1:
            return None
        before, rest = rest.split(message["content"])
        parts.append(before)
    return [*parts, rest]


def _with_system(plain: ChatShape, parts: list[str] | None) -> ChatShape | None:
    if parts is None:
        return None
    before, between = parts[0], parts[1]
    user = plain.user.prefix
    shape = plain
    if before.startswith(plain.no_system):
        # What comes first without a system message comes first with one too: not a default message.
        shape = plain.model_copy(update={"opening": plain.no_system, "no_system": ""})
    prefix = before.removeprefix(shape.opening)
    folded = not between.endswith(user)
    suffix = between if folded else between.removesuffix(user)
    return shape.model_copy(update={"system": Turn(prefix=prefix, suffix=suffix), "folded": folded})


def _reproduces(shape: ChatShape, render: Render, bos: str, checked: Sequence[tuple[Role, ...]]) -> bool:
    conversations = [_conversation(*roles) for roles in checked]
    return all(render(messages, True).removeprefix(bos) == shape.text(messages) for messages in conversations)


def go_template(shape: ChatShape) -> str:
    """Write a shape in Go's text/template language, over Ollama's ``.Messages`` and ``.System``.

    Args:
        shape: As ``probe_chat`` found it.

    Returns:
        The text of the TEMPLATE instruction; it needs no trimming marks, so none can eat content.
    """
    head = _literal(shape.opening)
    if shape.no_system:
        head += "{{ if not .System }}" + _literal(shape.no_system) + "{{ end }}"
    turns = [("user", _user_case(shape)), ("assistant", _around(shape.assistant))]
    if shape.system:
        mark = "{{ $inside = true }}" if shape.folded else ""
        turns.append(("system", _around(shape.system) + mark))
    words = ("if", "else if", "else if")
    cases = [
        f'{{{{ {word} eq .Role "{role}" }}}}{text}' for word, (role, text) in zip(words, turns, strict=False)
    ]
    state = "{{ $inside := false }}" if shape.folded else ""
    loop = "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}"
    return head + state + loop + _literal(shape.generation)


def _user_case(shape: ChatShape) -> str:
    if not shape.folded:
        return _around(shape.user)
    prefix = "{{ if not $inside }}" + _literal(shape.user.prefix) + "{{ end }}"
    return prefix + "{{ .Content }}" + _literal(shape.user.suffix) + "{{ $inside = false }}"


def _around(turn: Turn) -> str:
    return _literal(turn.prefix) + "{{ .Content }}" + _literal(turn.suffix)


def _literal(text: str) -> str:
    """Write constant text so that neither Go nor the Modelfile's parser alters it."""
    printable = all(char.isprintable() or char == "\n" for char in text)
    if printable and "{{" not in text and '"' not in text and not text.endswith("{"):
        return text
    # Ollama drops unprintable characters and ends a value at three quotes; escapes avoid both.
    return '{{ "' + "".join(_escaped(char) for char in text) + '" }}'


def _escaped(char: str) -> str:
    if char.isprintable() and char not in '"\\':
        return char
    return f"\\U{ord(char):08x}"


def render_modelfile(
    gguf_name: str,
    template: ChatShape | None,
    *,
    stops: Sequence[str],
    system: str | None,
    temperature: float,
    context: int,
) -> str:
    """Write the Modelfile that makes Ollama prompt and sample as the evaluation did.

    Args:
        gguf_name: Name of the model file beside the Modelfile.
        template: The chat template's shape, or None to leave it to Ollama.
        stops: Texts that end an answer.
        system: System prompt for conversations that bring none.
        temperature: Sampling temperature.
        context: Context window in tokens.

    Returns:
        The text of ``Modelfile``.

    Raises:
        ConfigError: If the system prompt or a stop text cannot be written in a Modelfile, or the
            chat template refuses system messages.
    """
    if system and template and template.system is None:
        raise ConfigError(
            "this model's chat template has no place for a system prompt",
            where="deployment.system_prompt",
            fix="leave it out, or choose a base model whose template knows the system role",
        )
    lines = [f"FROM ./{gguf_name}"]
    lines += [NO_TEMPLATE if template is None else f'TEMPLATE """{go_template(template)}"""']
    if system:
        lines.append("SYSTEM " + _quoted(system, "deployment.system_prompt"))
    lines += _parameters(temperature, context)
    lines += ["PARAMETER stop " + _quoted(stop, "stop tokens") for stop in stops]
    return "\n".join(lines) + "\n"


def _parameters(temperature: float, context: int) -> list[str]:
    # Ollama's own defaults penalise repetition; the scores were measured without.
    values = {"temperature": f"{temperature:g}", "num_ctx": str(context), "repeat_penalty": "1"}
    return [f"PARAMETER {name} {value}" for name, value in values.items()]


def _quoted(text: str, where: str) -> str:
    if '"""' in text:
        raise ConfigError(
            "three double quotes in a row cannot be written in an Ollama Modelfile",
            where=where,
            fix="use single quotes instead",
        )
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
