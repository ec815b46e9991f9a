import re
from pathlib import Path
from typing import get_args

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.data.config import ChatTemplateName
from core.deployment import modelfile
from core.deployment.modelfile import ChatShape, Turn, go_template, probe_chat, render_modelfile
from core.errors import ConfigError, ModelError

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# A default system message, as Qwen 2.5 has it.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe {{ '{{' }}kind}}.<|im_end|>\n{% endif %}"
    + CHATML
)
HEAD = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
ANSWER = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
LLAMA3 = """{{ bos_token }}{% for m in messages -%}
{{ HEAD + m.content | trim + '<|eot_id|>' }}{% endfor %}ANSWER"""
# A system header in every conversation, as Llama 3.1 has it.
LLAMA31 = """{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nKnows all until 2023.\n\n
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}
{{- '<|eot_id|>' }}{% for m in messages %}{{ HEAD + m.content + '<|eot_id|>' }}{% endfor %}ANSWER"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}
{%- set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}
{%- for m in turns %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
ZEPHYR = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"""
QUOTES = '''{% for m in messages %}{{ '\\"""{' + m.role + '}:\\t\\u200b{' + m.content + '\\\\' + '}' }}
{%- endfor %}{% if add_generation_prompt %}{{ '"{{answer}}"{' }}{% endif %}'''
BRACES = """{% for m in messages %}{{ m.role + ':{' + m.content + '}' }}{% endfor %}
{%- if add_generation_prompt %}assistant:{{ '{' }}{% endif %}"""
# An empty thought before the last answer only, as in Qwen 3: no answer is last when one is asked for.
THOUGHT = CHATML.replace(
    "m.content +", "('<think></think>' if loop.last and m.role == 'assistant' else '') + m.content +"
)
LLAMA3, LLAMA31 = (text.replace("HEAD", HEAD).replace("ANSWER", ANSWER) for text in (LLAMA3, LLAMA31))
EXPRESSIBLE = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "llama-3": LLAMA3,
    "llama-3.1": LLAMA31,
    "gemma": GEMMA,
    "zephyr": ZEPHYR,
    "quotes": QUOTES,
    "braces": BRACES,
    "unprintable": CHATML.replace("<|im_end|>", "\u200b\t"),
    "thought": THOUGHT,
}
SHIPPED = Path(modelfile.__file__).parents[1] / "data/templates"
CONVERSATIONS = (
    [("user", "hi")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "Who? <tag>"), ("assistant", 'He said "x"\nand {{ left }}.'), ("user", "why\n\nso?")],
    [
        ("system", "S"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "4"),
        ("user", "5"),
    ],
)
KNOBS = {"system": "Be brief.", "temperature": 0.0, "context": 512}


def hugging_face(source):
    """Render as transformers does: sandboxed, blocks trimmed, raise_exception available."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    template = environment.from_string(source)

    def render(messages, add_generation_prompt):
        return template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"
        )

    return render


def go_parse(source):
    """Parse the part of Go's text/template in use into a tree of lists."""
    tokens = re.split(r'\{\{ ((?:[^"{}]|"[^"]*")*) \}\}', source)
    stack, root = [], []
    here = root
    for index, token in enumerate(tokens):
        if index % 2 == 0:
            # Go takes any two braces for the start of an action, also the first two of three.
            assert "{{" not in token and not token.endswith("{")
            if token:
                here.append(("text", token))
        elif token.startswith(("if ", "range ")):
            branches = [[token, []]]
            here.append(("block", branches))
            stack.append((here, branches))
            here = branches[-1][1]
        elif token.startswith("else"):
            stack[-1][1].append([token.removeprefix("else").strip(), []])
            here = stack[-1][1][-1][1]
        elif token == "end":
            here = stack.pop()[0]
        else:
            here.append(("action", token))
    assert not stack
    return root


def go_value(expression, dot, variables):
    if expression.startswith("not "):
        return not go_value(expression[4:], dot, variables)
    if match := re.fullmatch(r'eq (\S+) "(\w+)"', expression):
        return go_value(match[1], dot, variables) == match[2]
    if expression.startswith('"'):
        return re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), expression[1:-1])
    if expression.startswith("$"):
        return variables[expression]
    return {"true": True, "false": False}[expression] if expression[0] != "." else dot[expression[1:]]


def go_run(nodes, dot, variables):
    out = []
    for kind, content in nodes:
        if kind == "text":
            out.append(content)
        elif kind == "action" and (match := re.fullmatch(r"(\$\w+) :?= (\w+)", content)):
            variables[match[1]] = go_value(match[2], dot, variables)
        elif kind == "action":
            out.append(go_value(content, dot, variables))
        elif content[0][0].startswith("range "):
            items = go_value(content[0][0][6:], dot, variables)
            out += [go_run(content[0][1], item, variables) for item in items]
        else:
            taken = next((b for test, b in content if not test or go_value(test[3:], dot, variables)), [])
            out.append(go_run(taken, dot, variables))
    return "".join(out)


def ollama(source, messages):
    """Do what Ollama does with a template that ranges over the messages."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    dot = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    return go_run(go_parse(source), dot, {})


def ollama_instructions(text):
    """Read a Modelfile by Ollama's rules: a value ends at the first line end that closes its quotes."""
    found, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line or line.startswith("#"):
            continue
        name, value = line.split(" ", 1)
        if name == "PARAMETER":
            name, value = value.split(" ", 1)
        for quote in ('"""', '"'):
            if value.startswith(quote):
                while not (len(value) >= 2 * len(quote) and value.endswith(quote)):
                    value += "\n" + lines.pop(0)
                value = value[len(quote) : -len(quote)]
                break
        found.append((name, value))
    return found


def conversation(turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=len)
@pytest.mark.parametrize("source", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_go_template_prompts_like_the_tokenizer(source, turns):
    render = hugging_face(source)
    shape = probe_chat(render, bos="<s>")
    expected = render(conversation(turns), True).removeprefix("<s>")
    assert shape is not None
    assert shape.text(conversation(turns)) == expected
    assert ollama(go_template(shape), conversation(turns)) == expected


@pytest.mark.parametrize("name", get_args(ChatTemplateName))
def test_every_template_the_project_brings_can_be_expressed(name):
    render = hugging_face((SHIPPED / f"{name}.jinja").read_text(encoding="utf-8"))
    shape = probe_chat(render, bos="<s>")
    for turns in CONVERSATIONS:
        expected = render(conversation(turns), True).removeprefix("<s>")
        assert ollama(go_template(shape), conversation(turns)) == expected
    assert "<s>" not in go_template(shape)


def test_bos_stays_when_the_runtime_adds_none():
    shape = probe_chat(hugging_face(LLAMA3), bos="")
    assert shape.opening == "<s>"
    assert ollama(go_template(shape), conversation(CONVERSATIONS[1])).count("<s>") == 1


def test_shape_of_gemma_puts_the_system_message_inside_the_user_turn():
    assert probe_chat(hugging_face(GEMMA), bos="<s>") == ChatShape(
        system=Turn(prefix="<start_of_turn>user\n", suffix="\n\n"),
        folded=True,
        user=Turn(prefix="<start_of_turn>user\n", suffix="<end_of_turn>\n"),
        assistant=Turn(prefix="<start_of_turn>model\n", suffix="<end_of_turn>\n"),
        generation="<start_of_turn>model\n",
    )


@pytest.mark.parametrize(
    "source",
    [
        # Older answers look different from the latest one.
        CHATML.replace("m.content +", "('' if m.role == 'assistant' and loop.revindex > 2 else m.content) +"),
        # Turns are numbered.
        CHATML.replace("m.role +", "m.role ~ loop.index +"),
        # The system message moves to the last question, as in later Mistral templates.
        """{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and
messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% elif
m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}""",
        # The system message is dropped.
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        # Every conversation is refused.
        "{{ raise_exception('tools only') }}",
    ],
    ids=["history", "numbered", "moving system", "lost system", "refusing"],
)
def test_templates_that_depend_on_more_than_roles_are_left_to_ollama(source):
    shape = probe_chat(hugging_face(source), bos="<s>")
    text = render_modelfile("model.gguf", shape, stops=(), **KNOBS)
    assert shape is None
    assert "TEMPLATE" not in [name for name, _ in ollama_instructions(text)]
    assert "# No TEMPLATE" in text


def test_a_renderer_may_refuse_in_the_words_of_the_project():
    plain = hugging_face(CHATML)

    def render(messages, add_generation_prompt):
        if messages[0]["role"] == "system":
            raise ModelError("the chat template refuses a conversation")
        return plain(messages, add_generation_prompt)

    assert probe_chat(render).system is None


def test_a_template_without_a_system_role_refuses_a_system_prompt():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    shape = probe_chat(hugging_face(refusing), bos="<s>")
    assert shape.system is None
    asked = conversation(CONVERSATIONS[2])
    assert ollama(go_template(shape), asked) == hugging_face(refusing)(asked, True)
    with pytest.raises(ConfigError, match=r"deployment\.system_prompt"):
        render_modelfile("model.gguf", shape, stops=(), **KNOBS)


def test_modelfile_holds_what_it_was_given():
    shape = probe_chat(hugging_face(LLAMA3), bos="<s>")
    system = 'Answer "briefly"\nAlways.'
    stops = ("<|eot_id|>", "\nUser:", 'say "stop"')
    text = render_modelfile(
        "model-Q4_K_M.gguf", shape, stops=stops, system=system, temperature=0.7, context=2048
    )
    assert ollama_instructions(text) == [
        ("FROM", "./model-Q4_K_M.gguf"),
        ("TEMPLATE", go_template(shape)),
        ("SYSTEM", system),
        ("temperature", "0.7"),
        ("num_ctx", "2048"),
        ("repeat_penalty", "1"),
        *(("stop", stop) for stop in stops),
    ]


@pytest.mark.parametrize("source", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_every_template_survives_the_modelfile(source):
    shape = probe_chat(hugging_face(source), bos="<s>")
    text = render_modelfile("model.gguf", shape, stops=(), **KNOBS)
    assert ("TEMPLATE", go_template(shape)) in ollama_instructions(text)
    # Ollama drops what is neither printable nor a line end.
    assert all(char.isprintable() or char == "\n" for char in text)


def test_no_system_prompt_no_instruction():
    text = render_modelfile("m.gguf", None, stops=(), system=None, temperature=0, context=128)
    assert [name for name, _ in ollama_instructions(text)] == [
        "FROM",
        "temperature",
        "num_ctx",
        "repeat_penalty",
    ]


@pytest.mark.parametrize(("system", "stop"), [('a """ b', "x"), (None, '"""')])
def test_what_a_modelfile_cannot_hold_is_refused(system, stop):
    with pytest.raises(ConfigError, match="three double quotes"):
        render_modelfile("m.gguf", None, stops=(stop,), system=system, temperature=0, context=128)


def test_shape_has_no_text_for_unknown_roles():
    shape = probe_chat(hugging_face(CHATML))
    with pytest.raises(ValueError, match="tool"):
        shape.text([{"role": "tool", "content": "x"}])
