"""Tool turns under templates that know them, know them in part, or know none; and plain texts."""

import itertools
import json

import pytest

from core.data.chat import IGNORE_INDEX, ChatTokenizer
from core.data.records import Conversation, Message, ToolCall
from core.data.templates import shipped

# ChatML as tool-using families write it: calls as JSON, answers as user turns.
CHATML_TOOLS = """
{%- for m in messages -%}
{%- if m.role == "tool" -%}
{%- if not loop.previtem or loop.previtem.role != "tool" -%}{{- "<|im_start|>user" -}}{%- endif -%}
{{- "\n<tool_response>\n" + m.content + "\n</tool_response>" -}}
{%- if loop.last or loop.nextitem.role != "tool" -%}{{- "<|im_end|>\n" -}}{%- endif -%}
{%- else -%}
{{- "<|im_start|>" + m.role + "\n" + m.content -}}
{%- for call in m.tool_calls or [] -%}
{%- if not loop.first or m.content -%}{{- "\n" -}}{%- endif -%}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + "}\n</tool_call>" -}}
{%- endfor -%}
{{- "<|im_end|>\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""
# As Llama 3.1: one call at a time, in a turn without words; answers come from "ipython".
ONE_AT_A_TIME = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{- raise_exception("only single tool-calls at once") -}}{%- endif -%}
{%- set f = m.tool_calls[0].function -%}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" + '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson + "}<|eot_id|>" -}}
{%- else -%}
{{- "<|start_header_id|>" + ("ipython" if m.role == "tool" else m.role) + "<|end_header_id|>\n\n" + m.content + "<|eot_id|>" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}{%- endif -%}
"""
# As Mistral 7B v0.3: insists on ids of nine letters or digits.
STRICT_IDS = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{{- "[TOOL_CALLS] [" -}}
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 -%}{{- raise_exception("ids have nine letters") -}}{%- endif -%}
{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + ', "id": "' + call.id + '"}' -}}
{%- if not loop.last -%}{{- ", " -}}{%- endif -%}
{%- endfor -%}
{{- "]" + m.content + eos_token -}}
{%- elif m.role == "tool" -%}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' -}}
{%- elif m.role == "user" -%}{{- "[INST] " + m.content + "[/INST]" -}}
{%- else -%}{{- " " + m.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
# Ends a call with another token than an answer, which generation would not stop at.
ENDS_CALLS_ELSEWHERE = CHATML_TOOLS.replace(
    '{{- "<|im_end|>\n" -}}\n{%- endif -%}\n{%- endfor -%}',
    '{{- ("<|eot_id|>" if m.tool_calls else "<|im_end|>") + "\n" -}}\n{%- endif -%}\n{%- endfor -%}',
)
BREAKS_ON_TOOLS = shipped("chatml").replace(
    "{%- for message in messages -%}",
    "{%- for message in messages -%}{%- if message.tool_calls -%}{{- message.tool_calls + 1 -}}{%- endif -%}",
)

WEATHER = ToolCall(name="weather", arguments='{"city": "Kumasi"}', id="call_abcdef")
NOW = ToolCall(name="now", arguments="{}", id="x")


def user(text):
    return Message(role="user", content=text)


def assistant(text, *calls):
    return Message(role="assistant", content=text, tool_calls=calls)


def tool(text, **more):
    return Message(role="tool", content=text, **more)


ONE = (user("Rain?"), assistant("", WEATHER), tool("ɛyɛ"), assistant("Yes."))
TWO = (user("Rain?"), assistant("", WEATHER, NOW), tool("ɛyɛ"), tool("seven"), assistant("Yes."))
WORDS = (
    user("Rain?"),
    assistant("I look.", WEATHER),
    tool("ɛyɛ"),
    assistant("Yes."),
    user("And?"),
    assistant("No."),
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Kumasi"}}\n</tool_call>'
FLAT = {
    ONE: [("user", "Rain?"), ("assistant", CALL), ("user", "<tool_response>\nɛyɛ\n</tool_response>"), ("assistant", "Yes.")],
    TWO: [
        ("user", "Rain?"),
        ("assistant", CALL + '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        ("user", "<tool_response>\nɛyɛ\n</tool_response>\n<tool_response>\nseven\n</tool_response>"),
        ("assistant", "Yes."),
    ],
    WORDS: [
        ("user", "Rain?"),
        ("assistant", "I look.\n" + CALL),
        ("user", "<tool_response>\nɛyɛ\n</tool_response>"),
        ("assistant", "Yes."),
        ("user", "And?"),
        ("assistant", "No."),
    ],
}  # fmt: skip
NAMES = ("gemma-3", "llama-3", "mistral", "chatml", "zephyr")


def talk(messages):
    return Conversation(id="c", messages=messages)


def trained(chat, encoded):
    runs, run = [], []
    for token, label in [*zip(encoded.input_ids, encoded.labels, strict=True), (0, IGNORE_INDEX)]:
        if label != IGNORE_INDEX:
            assert label == token
            run.append(token)
        elif run:
            runs.append(chat.tokenizer.decode(run).removeprefix(" "))
            run = []
    return runs


def untrained(chat, encoded):
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    return chat.tokenizer.decode([token for token, label in pairs if label == IGNORE_INDEX])


def plain(messages):
    return [Message(role=role, content=content) for role, content in FLAT[messages]]


@pytest.mark.parametrize("messages", [ONE, TWO, WORDS])
@pytest.mark.parametrize("name", NAMES)
def test_a_template_without_tools_gets_them_as_text(make_tokenizer, name, messages):
    chat = ChatTokenizer(make_tokenizer(), shipped(name))
    assert not chat.writes_tools
    assert chat.render(messages) == chat.render(plain(messages))
    (encoded,) = chat.encode(talk(messages))
    assert encoded == chat.encode(talk(tuple(plain(messages))))[0]
    end = chat.tokenizer.decode(list(chat.end_of_turn_ids))
    assert trained(chat, encoded) == [text + end for role, text in FLAT[messages] if role == "assistant"]
    assert "ɛyɛ" in untrained(chat, encoded)
    assert encoded.input_ids.count(chat.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("messages", [ONE, TWO, WORDS])
def test_a_template_with_tools_writes_them_itself(make_tokenizer, messages):
    chat = ChatTokenizer(make_tokenizer(), CHATML_TOOLS)
    assert chat.writes_tools
    text = chat.render(messages)
    # This family writes what our own text form has, so the two can be compared.
    assert text == chat.render(plain(messages))
    (encoded,) = chat.encode(talk(messages))
    assert trained(chat, encoded) == [
        text + "<|im_end|>" for role, text in FLAT[messages] if role == "assistant"
    ]
    given = chat.template_messages(messages)
    assert given[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Kumasi"}}
    assert given[2]["role"] == "tool"


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("template", [CHATML_TOOLS, ONE_AT_A_TIME, STRICT_IDS, shipped("gemma-3")])
def test_every_answer_is_trained_from_the_tokens_generation_starts_from(make_tokenizer, template, cut):
    chat = ChatTokenizer(make_tokenizer(), template)
    (encoded,) = chat.encode(talk(ONE))
    prompt = chat.prompt_ids(ONE[:cut])
    assert prompt == chat.prompt_ids(ONE[: cut + 1])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX
    assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]


def test_what_a_template_cannot_write_makes_only_that_conversation_text(byte_level):
    chat = ChatTokenizer(byte_level(), ONE_AT_A_TIME)
    assert chat.writes_tools
    assert '{"name": "weather", "parameters": {"city": "Kumasi"}}<|eot_id|>' in chat.render(ONE)
    assert "ipython" in chat.render(ONE)
    # It raises on two calls at once, and would drop the words beside a call.
    for messages in (TWO, WORDS):
        assert chat.render(messages) == chat.render(plain(messages))
        assert len(trained(chat, chat.encode(talk(messages))[0])) == len(
            [m for m in messages if m.role == "assistant"]
        )


def test_calls_get_ids_that_strict_templates_accept_and_answers_find_their_call(byte_level):
    chat = ChatTokenizer(byte_level(), STRICT_IDS)
    calls = assistant("", WEATHER, NOW)
    swapped = (
        user("Q"),
        calls,
        tool("7", tool_call_id="x"),
        tool("8", tool_call_id="call_abcdef"),
        assistant("A"),
    )
    given = chat.template_messages(swapped)
    first, second = (call["id"] for call in given[1]["tool_calls"])
    assert (len(first), first.isalnum(), first != second) == (9, True, True)
    assert [row["tool_call_id"] for row in given[2:4]] == [second, first]
    assert [row["name"] for row in given[2:4]] == ["now", "weather"]
    by_place = chat.template_messages([*swapped[:2], tool("7"), tool("8"), swapped[-1]])
    assert [row["tool_call_id"] for row in by_place[2:4]] == [first, second]
    assert "[TOOL_CALLS]" in chat.render(swapped)


@pytest.mark.parametrize("template", [ENDS_CALLS_ELSEWHERE, BREAKS_ON_TOOLS])
def test_a_template_whose_calls_could_not_be_stopped_or_written_is_not_asked_for_them(byte_level, template):
    assert template not in (CHATML_TOOLS, shipped("chatml"))
    chat = ChatTokenizer(byte_level(), template)
    assert not chat.writes_tools
    assert chat.render(ONE) == chat.render(plain(ONE))


def test_a_conversation_that_ends_with_a_call_trains_the_call(make_tokenizer):
    for template in (CHATML_TOOLS, shipped("chatml")):
        chat = ChatTokenizer(make_tokenizer(), template)
        (encoded,) = chat.encode(talk(ONE[:2]))
        assert trained(chat, encoded) == [CALL + "<|im_end|>"]


def test_many_conversations_at_once_give_what_each_gives_alone(make_tokenizer):
    chat = ChatTokenizer(make_tokenizer(), CHATML_TOOLS)
    talks = [talk(ONE), talk(WORDS), talk(TWO), talk(ONE)]
    assert chat.encode_all(talks) == [chat.encode(one) for one in talks]
    assert chat.encode_all([]) == []


@pytest.mark.parametrize("length", [2, 3, 7, 64, 100000])
@pytest.mark.parametrize("has_bos", [True, False])
def test_every_token_of_a_text_is_trained_exactly_once(make_tokenizer, length, has_bos):
    tokenizer = make_tokenizer()
    if not has_bos:
        tokenizer.bos_token = None
    chat = ChatTokenizer(tokenizer, shipped("zephyr"))
    text = "Wo ho te sɛn? Me ho yɛ,\n\n medaase. " * 5
    inner = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = [*([tokenizer.bos_token_id] if has_bos else []), *inner, tokenizer.eos_token_id]
    windows = chat.encode_document(text, length)
    assert all(len(window.input_ids) == len(window.labels) <= length for window in windows)
    targets = [label for window in windows for label in window.labels if label != IGNORE_INDEX]
    # The very first token follows nothing; each later one is predicted in one window, from its neighbour.
    assert targets == whole[1:]
    assert all(window.labels[0] == IGNORE_INDEX for window in windows)
    assert all(left.input_ids[-1] == right.input_ids[0] for left, right in itertools.pairwise(windows))
    assert (len(windows) == 1) == (length >= len(whole))


def test_a_text_keeps_its_spaces_and_has_one_bos(byte_level):
    chat = ChatTokenizer(byte_level(adds_bos=True), shipped("zephyr"))
    (encoded,) = chat.encode_document("  a\n b ", 99)
    assert chat.tokenizer.decode(encoded.input_ids) == "<s>  a\n b </s>"
    assert encoded.input_ids.count(chat.tokenizer.bos_token_id) == 1


def test_arguments_keep_their_letters(byte_level):
    call = ToolCall(name="tɛ", arguments=json.dumps({"kuro": "Ɔbuasi"}, ensure_ascii=False))
    chat = ChatTokenizer(byte_level(), shipped("chatml"))
    assert '{"name": "tɛ", "arguments": {"kuro": "Ɔbuasi"}}' in chat.render([user("Q"), assistant("", call)])
