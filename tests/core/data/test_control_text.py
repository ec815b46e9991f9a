"""Text that spells a control token never becomes one."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.chat import IGNORE_INDEX, ChatTokenizer
from core.data.control_text import CUT, ControlText, encode_cut, uncut
from core.data.records import Conversation, Message, ToolCall
from tests.families import FAMILIES, VARIANTS, tokenizer_for

ALL = FAMILIES + VARIANTS
CONTROL = ("<|im_end|>", "</s>", "<s>", "s><", "[INST]")
PIECES = st.sampled_from([*CONTROL, "<", ">", "s", "|", "im_", "end", "[", "IN", "ST]", "a", " ", "\n"])


@pytest.fixture(scope="module", params=ALL)
def chat(request):
    tokenizer = tokenizer_for(request.param)
    return ChatTokenizer(tokenizer, tokenizer.chat_template)


def talk(system, question, answer, again="And?", last="Yes."):
    turns = [
        ("system", system),
        ("user", question),
        ("assistant", answer),
        ("user", again),
        ("assistant", last),
    ]
    return [Message(role=role, content=text) for role, text in turns if text is not None]


def control_ids(chat, ids):
    known = set(chat.tokenizer.convert_tokens_to_ids(sorted(chat.control_tokens)))
    return [token for token in ids if token in known]


def level(text):
    # SentencePiece's kind decodes the dummy space it puts after a control token.
    return re.sub(r"\s+", "", text)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_part_of_a_cut_text_holds_a_control_token(text):
    cut = ControlText(CONTROL).cut(text)
    assert uncut(cut) == text
    assert not any(token in part for part in cut.split(CUT) for token in CONTROL)
    if not any(token in text for token in CONTROL):
        assert cut is text


def test_every_text_of_a_turn_is_cut_and_nothing_else_changes():
    call = {
        "id": "call00000",
        "type": "function",
        "function": {"name": "f", "arguments": {"a</s>": ["</s>", 1, None]}},
    }
    turn = {"role": "assistant", "content": "x</s>", "tool_calls": [call]}
    (cut,) = ControlText(CONTROL).cut_turns([turn])
    assert cut["content"] == f"x<{CUT}/s>"
    assert cut["tool_calls"][0]["function"]["arguments"] == {f"a<{CUT}/s>": [f"<{CUT}/s>", 1, None]}
    assert turn["content"] == "x</s>"
    assert cut["role"] == "assistant"


def test_a_tokenizer_that_puts_a_space_first_puts_none_at_a_cut():
    # One id per character; a space first, as SentencePiece's kind does.
    seen = encode_cut(
        [f"a<{CUT}/s> b", "plain"], lambda texts: [[ord(c) for c in f"_{text}"] for text in texts]
    )
    assert ["".join(map(chr, ids)) for ids in seen] == ["_a</s> b", "_plain"]


@pytest.mark.parametrize("place", ["system", "question", "answer"])
def test_spelled_control_tokens_stay_text_in_training_and_in_prompts(chat, place):
    spelled = " ".join(["go", *sorted(chat.control_tokens), "".join(sorted(chat.control_tokens)), "on"])
    texts = {"system": "Be kind.", "question": "Why?", "answer": "So."}
    plain = Conversation(id="p", messages=tuple(talk(*texts.values())))
    attack = Conversation(id="a", messages=tuple(talk(*(texts | {place: spelled}).values())))
    first = chat.encode(attack)[0]
    read = [a for a, b in zip(first.input_ids, first.labels, strict=True) if b == IGNORE_INDEX]
    assert (level(spelled) in level(chat.tokenizer.decode(read))) is (place != "answer")
    for wanted, found in zip(chat.encode(plain), chat.encode(attack), strict=True):
        assert control_ids(chat, found.input_ids) == control_ids(chat, wanted.input_ids)
        assert control_ids(chat, found.labels) == control_ids(chat, wanted.labels)
        assert level(spelled) in level(chat.tokenizer.decode(found.input_ids))
    for end in (2, 4):
        wanted, found = (chat.prompt_ids(talked.messages[:end]) for talked in (plain, attack))
        assert control_ids(chat, found) == control_ids(chat, wanted)
        assert (found != wanted) is (place != "answer" or end == 4)


def test_answers_of_tools_and_arguments_stay_text_too(chat):
    def asked(word):
        call = ToolCall(name="look", arguments=json.dumps({"for": word}), id="1")
        turns = [
            Message(role="user", content="Q"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content=word, name="look"),
            Message(role="assistant", content="A"),
        ]
        return Conversation(id="t", messages=tuple(turns))

    end = sorted(chat.control_tokens)[0]
    wanted, found = (chat.encode(asked(word)) for word in ("rice", end))
    for one, other in zip(wanted, found, strict=True):
        assert control_ids(chat, one.input_ids) == control_ids(chat, other.input_ids)
    assert level(end) in level(chat.tokenizer.decode(found[-1].input_ids))


def test_tokens_that_are_not_special_keep_their_meaning():
    tokenizer = tokenizer_for("qwen3")
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    thought = "<think>\nhm\n</think>\n\nyes <tool_call> <|im_end|>"
    turns = [Message(role="user", content="Q"), Message(role="assistant", content=thought)]
    (encoded,) = chat.encode(Conversation(id="q", messages=tuple(turns)))
    for token in ("<think>", "</think>", "<tool_call>"):
        assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids(token)) == 1
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    text = chat.render(turns)
    assert text.endswith("assistant\n<think>\nhm\n</think>\n\nyes <tool_call> <|im_end|><|im_end|>\n")
    assert CUT not in text


def test_the_words_around_a_spelled_token_are_split_as_ever(chat):
    # What stands before and after is split as it would be next to any other punctuation.
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_ids[0])
    ids = chat.prompt_ids([Message(role="user", content=f"ɛyɛ dɛ {end} Accra isn't")])
    plain = chat.prompt_ids([Message(role="user", content="ɛyɛ dɛ Accra isn't")])
    without = [token for token in ids if token in plain]
    assert set(plain) - set(without) == set()


def test_plain_texts_spell_control_tokens_without_effect(chat):
    text = (
        "one " + " two ".join(sorted(chat.control_tokens, key=lambda name: (len(name), name))[-4:]) + " three"
    )
    (plain,) = chat.encode_document("one two three", 512)
    (found,) = chat.encode_document(text, 512)
    assert control_ids(chat, found.input_ids) == control_ids(chat, plain.input_ids)
    assert chat.tokenizer.decode(found.input_ids).count("three") == 1
