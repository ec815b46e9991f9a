import pytest

from core.data.chat import IGNORE_INDEX, ChatTokenizer
from core.data.formats import convert
from core.data.records import Conversation, Message
from core.data.templates import shipped
from core.errors import ModelError

NAMES = ("gemma-3", "llama-3", "mistral", "chatml", "zephyr")
EOT = {
    "gemma-3": "<end_of_turn>",
    "llama-3": "<|eot_id|>",
    "mistral": "</s>",
    "chatml": "<|im_end|>",
    "zephyr": "</s>",
}

# Families met in the field, written anew: what matters is how they behave.
QWEN3 = """
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}
{%- if m.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{- "<|im_start|>" + m.role + "\n" -}}
{%- if m.role == "assistant" and loop.index0 > ns.last -%}{{- "<think>\n\n</think>\n\n" -}}{%- endif -%}
{{- m.content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""
REFUSES_SYSTEM = """
{{- bos_token -}}
{%- if messages[0].role == "system" -%}{{- raise_exception("System role not supported") -}}{%- endif -%}
{%- for m in messages -%}
{%- if (m.role == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("Roles must alternate") -}}
{%- endif -%}
{{- "<start_of_turn>" + m.role + "\n" + m.content + "<end_of_turn>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<start_of_turn>assistant\n" -}}{%- endif -%}
"""
# As Mistral 7B v0.3: the system text goes into the last user turn, and only if nothing follows it.
DROPS_SYSTEM = """
{{- bos_token -}}
{%- if messages[0].role == "system" -%}{%- set s = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if m.role == "user" -%}
{%- if loop.last and s is defined -%}{{- "[INST] " + s + "\n\n" + m.content + "[/INST]" -}}
{%- else -%}{{- "[INST] " + m.content + "[/INST]" -}}{%- endif -%}
{%- else -%}{{- " " + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
# As Phi-3: the whole conversation is closed by a second token.
CLOSES_TWICE = """
{%- for m in messages -%}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- else -%}{{- eos_token -}}{%- endif -%}
"""
MARKED = """
{%- for m in messages -%}
{{- "<|im_start|>" + m.role + "\n" -}}
{%- if m.role == "assistant" -%}
{% generation %}{{- m.content + "<|im_end|>" -}}{% endgeneration %}{{- "\n" -}}
{%- else -%}{{- m.content + "<|im_end|>\n" -}}{%- endif -%}
{%- endfor -%}
"""

MARKED_PLAIN = (
    MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    + '{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}'
)


def talk(*contents, system=None):
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    head = [Message(role="system", content=system)] if system else []
    return Conversation(id="c", messages=tuple(head + turns))


def trained(chat, encoded):
    """Return the trained tokens as text, run by run."""
    runs, run = [], []
    for token, label in [*zip(encoded.input_ids, encoded.labels, strict=True), (0, IGNORE_INDEX)]:
        if label != IGNORE_INDEX:
            assert label == token
            run.append(token)
        elif run:
            runs.append(chat.tokenizer.decode(run))
            run = []
    return runs


def untrained(chat, encoded):
    return chat.tokenizer.decode(
        [t for t, label in zip(encoded.input_ids, encoded.labels, strict=True) if label == IGNORE_INDEX]
    )


def bos_count(chat, ids):
    return ids.count(chat.tokenizer.bos_token_id)


@pytest.fixture(scope="module")
def alpaca():
    """Five hundred rows with empty input, as they come out of the format phase."""
    rows = [
        {
            "instruction": f"Ɛdeɛn na {n} kyerɛ? What does {n} cost in Kumasi 😀?",
            "input": "",
            "output": f"Ɛyɛ {n} cedis, ɔse.\n\n  Line  two — “{n * 7}” 😀",
        }
        for n in range(500)
    ]
    return [Conversation(id=str(n), messages=convert(row).messages) for n, row in enumerate(rows)]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_five_hundred_rows_have_one_bos_and_train_only_the_answer(make_tokenizer, alpaca, name, adds_bos):
    chat = ChatTokenizer(make_tokenizer(adds_bos=adds_bos), shipped(name))
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.end_of_turn_ids)) == [EOT[name]]
    # Without adds_bos a tenth is enough: only the start differs.
    for conversation in alpaca if adds_bos else alpaca[::10]:
        (encoded,) = chat.encode(conversation)
        question, answer = (turn.content for turn in conversation.messages)
        assert encoded.input_ids[0] == chat.tokenizer.bos_token_id
        assert bos_count(chat, encoded.input_ids) == 1
        assert len(encoded.labels) == len(encoded.input_ids)
        assert [text.removeprefix(" ") for text in trained(chat, encoded)] == [answer + EOT[name]]
        assert question in untrained(chat, encoded)
        prompt = chat.prompt_ids(conversation.messages)
        assert encoded.input_ids[: len(prompt)] == prompt
        first = next(place for place, label in enumerate(encoded.labels) if label != IGNORE_INDEX)
        assert first == len(prompt)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_of_a_long_conversation_is_trained(make_tokenizer, name):
    chat = ChatTokenizer(make_tokenizer(), shipped(name))
    conversation = talk("Sɛn?", "ɔkay  one", "And?", "two", "Then?", "three ɛ", system="Be kind.")
    (encoded,) = chat.encode(conversation)
    assert [text.removeprefix(" ") for text in trained(chat, encoded)] == [
        answer + EOT[name] for answer in ("ɔkay  one", "two", "three ɛ")
    ]
    assert bos_count(chat, encoded.input_ids) == 1
    rest = untrained(chat, encoded)
    assert all(text in rest for text in ("Be kind.", "Sɛn?", "And?", "Then?"))
    # Every answer is trained from exactly the tokens that generation would start from.
    for cut in (3, 5, 7):
        prompt = chat.prompt_ids(conversation.messages[:cut])
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]
        assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX


@pytest.mark.parametrize(
    "contents", [("a", "b"), ("Sɛn 😀", " ".join("ɛɔ😀")), ("q  q", "x   y\n\n z", "r", "é")]
)
def test_labels_agree_with_the_mask_of_transformers(byte_level, contents):
    tokenizer = byte_level(adds_bos=False)
    tokenizer.bos_token = None
    conversation = talk(*contents)
    oracle = tokenizer.apply_chat_template(
        [turn.model_dump() for turn in conversation.messages],
        chat_template=MARKED,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    (encoded,) = ChatTokenizer(tokenizer, MARKED_PLAIN).encode(conversation)
    assert encoded.input_ids == oracle["input_ids"]
    assert [int(label != IGNORE_INDEX) for label in encoded.labels] == oracle["assistant_masks"]


def test_spaces_that_open_an_answer_are_trained_although_their_offsets_are_empty(byte_level):
    chat = ChatTokenizer(byte_level(), MARKED_PLAIN)
    (encoded,) = chat.encode(talk("q", "   é"))
    assert trained(chat, encoded) == ["   é<|im_end|>"]
    # The reason not to go by offsets: here the tokenizer reports none for a token of the answer.
    text = chat.render(talk("q", "   é").messages)
    offsets = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in offsets)


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}", "{{ bos_token + bos_token }}"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_one_bos_whoever_adds_it(make_tokenizer, bos, adds_bos):
    chat = ChatTokenizer(make_tokenizer(adds_bos=adds_bos), bos + shipped("chatml"))
    for ids in (chat.encode(talk("q", "a"))[0].input_ids, chat.prompt_ids(talk("q", "a").messages)):
        assert ids[0] == chat.tokenizer.bos_token_id
        assert bos_count(chat, ids) == 1


def test_no_bos_where_the_tokenizer_has_none(byte_level):
    tokenizer = byte_level(adds_bos=False)
    tokenizer.bos_token = None
    chat = ChatTokenizer(tokenizer, shipped("chatml"))
    assert chat.tokenizer.decode(chat.prompt_ids(talk("q", "a").messages)).startswith("<|im_start|>user")


def test_a_turn_marker_that_is_also_the_bos_stays_as_it_is(byte_level):
    tokenizer = byte_level(adds_bos=False)
    tokenizer.bos_token = "<|im_start|>"
    chat = ChatTokenizer(tokenizer, shipped("chatml"))
    text = chat.tokenizer.decode(chat.encode(talk("q", "a"))[0].input_ids)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


def test_a_template_that_rewrites_history_gives_one_example_per_answer(make_tokenizer):
    chat = ChatTokenizer(make_tokenizer(), QWEN3)
    examples = chat.encode(talk("q1", "a1", "q2", "a2", "q3", "a3"))
    thinking = "<think>\n\n</think>\n\n"
    assert [trained(chat, example) for example in examples] == [[f"a{n}<|im_end|>"] for n in (1, 2, 3)]
    last = chat.tokenizer.decode(examples[2].input_ids)
    assert "assistant\na1<|im_end|>" in last
    # The empty thought is the template's, not the assistant's: it is read, and ends every prompt.
    assert last.count(thinking) == 1
    prompt = chat.prompt_ids(talk("q1", "a1").messages)
    assert chat.tokenizer.decode(prompt).endswith(thinking)
    assert all(bos_count(chat, example.input_ids) == 1 for example in examples)
    assert len(chat.encode(talk("q1", "a1"))) == 1


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_system_text_is_folded_where_the_template_loses_it(make_tokenizer, template):
    chat = ChatTokenizer(make_tokenizer(), template)
    assert chat.folds_system
    conversation = talk("q1", "a1", "q2", "a2", system="Be kind.")
    text = chat.render(conversation.messages)
    assert text.count("Be kind.\n\nq1") == 1
    (encoded,) = chat.encode(conversation)
    assert len(trained(chat, encoded)) == 2
    assert "Be kind." in untrained(chat, encoded)
    assert "Be kind." in chat.tokenizer.decode(chat.prompt_ids(conversation.messages))
    assert chat.render(talk("q1", "a1").messages).count("kind") == 0


@pytest.mark.parametrize("name", ["llama-3", "chatml", "gemma-3"])
def test_system_text_is_left_to_templates_that_take_it(byte_level, name):
    assert not ChatTokenizer(byte_level(), shipped(name)).folds_system


def test_only_the_first_closing_token_is_trained(make_tokenizer):
    chat = ChatTokenizer(make_tokenizer(), CLOSES_TWICE)
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.end_of_turn_ids)) == ["<|im_end|>"]
    examples = chat.encode(talk("q1", "a1", "q2", "a2"))
    assert [trained(chat, example) for example in examples] == [["a1<|im_end|>"], ["a2<|im_end|>"]]
    assert chat.tokenizer.convert_ids_to_tokens(examples[0].input_ids)[-1] == "</s>"
    assert examples[0].labels[-1] == IGNORE_INDEX


def test_prompt_ids_leave_out_only_a_final_answer(byte_level):
    chat = ChatTokenizer(byte_level(), shipped("chatml"))
    messages = talk("q1", "a1", "q2", "a2").messages
    assert chat.prompt_ids(messages) == chat.prompt_ids(messages[:-1])
    text = chat.tokenizer.decode(chat.prompt_ids(messages))
    assert text.endswith("q2<|im_end|>\n<|im_start|>assistant\n")
    assert "a1" in text


def test_an_answer_merged_with_its_prompt_is_trained_from_the_prompts_own_tokens(byte_level):
    # GPT-2 splitting makes one token of two line feeds at the end of a text, two before a letter.
    tokenizer = byte_level(special=("<unk>", "<s>", "</s>"))
    tokenizer.add_tokens(["\n\n"])
    tokenizer.add_tokens(["\n\nsta"])
    template = (
        '{%- for m in messages -%}{{- m.role + ":\n\n" + m.content -}}'
        '{%- if m.role == "assistant" -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}'
        '{%- if add_generation_prompt -%}{{- "assistant:\n\n" -}}{%- endif -%}'
    )
    chat = ChatTokenizer(tokenizer, template)
    (encoded,) = chat.encode(talk("q", "start", "r", "stay"))
    assert trained(chat, encoded) == ["start</s>", "stay</s>"]
    assert tokenizer.decode(encoded.input_ids) == "<s>" + chat.render(
        talk("q", "start", "r", "stay").messages
    )
    prompt = chat.prompt_ids(talk("q", "start").messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert chat.tokenizer("assistant:\n\nstart", add_special_tokens=False)["input_ids"] != [
        *chat.tokenizer("assistant:\n\n", add_special_tokens=False)["input_ids"],
        *chat.tokenizer("start", add_special_tokens=False)["input_ids"],
    ]


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "ends no answer"),
        ("{{ raise_exception('never') }}", "refuses a conversation: never"),
        ("{% for m in messages %}{{ m.content.text + eos_token }}{% endfor %}", "refuses a conversation"),
        ("{{ messages[0].content }}", "ends no answer"),
    ],
)
def test_unusable_templates_are_refused_at_the_door(byte_level, template, what):
    with pytest.raises(ModelError, match=what) as error:
        ChatTokenizer(byte_level(), template)
    assert error.value.fix


def test_answers_that_do_not_continue_the_generation_prompt_are_refused(byte_level):
    opens_thinking = shipped("chatml").replace('assistant\\n" -}}', 'assistant\\n<think>\\n" -}}')
    assert opens_thinking != shipped("chatml")
    with pytest.raises(ModelError, match="generation could never produce"):
        ChatTokenizer(byte_level(), opens_thinking).encode(talk("q", "a"))


def test_an_end_token_missing_from_the_vocabulary_is_refused(byte_level):
    with pytest.raises(ModelError, match="ends no answer with a special token"):
        ChatTokenizer(byte_level(special=("<unk>", "<s>", "</s>")), shipped("chatml"))


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_template_alone_gives_the_trained_prompt(make_tokenizer, name, adds_bos):
    chat = ChatTokenizer(make_tokenizer(adds_bos=adds_bos), shipped(name))
    turns = [Message(role="user", content="Convert 7 m to cm.")]
    served = chat.tokenizer.apply_chat_template(
        [turn.model_dump() for turn in turns], chat_template=chat.serving_template, add_generation_prompt=True,
        tokenize=False,
    )  # fmt: skip
    assert chat.tokenizer(served, add_special_tokens=False)["input_ids"] == chat.prompt_ids(turns)
