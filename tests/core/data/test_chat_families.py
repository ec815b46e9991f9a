"""Every family's own template and kind of tokenizer: one BOS, the right targets, the published markers."""

import pytest

from core.data.chat import IGNORE_INDEX, ChatTokenizer
from core.data.formats import convert
from core.data.records import Conversation, Message
from core.errors import ModelError
from tests.families import FAMILIES, VARIANTS, tokenizer_for
from tests.families.vocabularies import starts_with

ALL = FAMILIES + VARIANTS
# As the model cards and the trainers of these families give them.
PUBLISHED = {
    "gemma-3": ("<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>"),
    "llama-3.1": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "mistral": ("[INST] ", "[/INST]", "</s>"),
    "qwen2.5": ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "phi-3": ("<|user|>\n", "<|assistant|>\n", "<|end|>"),
    "phi-4": ("<|im_start|>user<|im_sep|>", "<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    "phi-4-mini": ("<|user|>", "<|assistant|>", "<|end|>"),
}
PUBLISHED |= {
    "llama-3.2": PUBLISHED["llama-3.1"],
    "qwen3": PUBLISHED["qwen2.5"],
    "phi-3-128k": PUBLISHED["phi-3"],
}


def chat_of(family):
    tokenizer = tokenizer_for(family)
    return ChatTokenizer(tokenizer, tokenizer.chat_template)


@pytest.fixture(scope="module", params=ALL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def chat(family):
    return chat_of(family)


def turns_of(*contents, system=None):
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    head = [Message(role="system", content=system)] if system is not None else []
    return head + turns


def talk(*contents, system=None):
    return Conversation(id="c", messages=tuple(turns_of(*contents, system=system)))


def starts_once(chat, ids):
    """Tell whether the BOS comes first and then no more, but for a template that closes with the same token."""
    bos = chat.tokenizer.bos_token_id
    return bos is None or (ids[0] == bos and bos not in ids[1:-1])


def trained(chat, examples):
    """Return what is trained, run by run; the dummy space of SentencePiece's kind is no matter here."""
    runs = []
    for example in examples:
        before = IGNORE_INDEX
        for token, label in zip(example.input_ids, example.labels, strict=True):
            if label != IGNORE_INDEX:
                assert label == token
                if before == IGNORE_INDEX:
                    runs.append([])
                runs[-1].append(token)
            before = label
    return [chat.tokenizer.decode(run).removeprefix(" ") for run in runs]


def test_the_markers_are_those_the_family_is_published_with(family, chat):
    ask, answer, end = PUBLISHED[family]
    assert chat.markers.instruction_part == ask
    assert chat.markers.response_part == answer
    assert chat.tokenizer.convert_ids_to_tokens(list(chat.end_of_turn_ids)) == [end]


def test_five_hundred_rows_with_empty_input_have_one_bos_and_train_the_answer_only(chat):
    rows = [
        {"instruction": f"Ɛdeɛn na {n} kyerɛ 😀?", "input": "", "output": f"Ɛyɛ {n}.\n\nLine  two “{n * 7}”"}
        for n in range(500)
    ]
    talks = [Conversation(id=str(n), messages=convert(row).messages) for n, row in enumerate(rows)]
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_ids[0])
    for talked, examples in zip(talks, chat.encode_all(talks), strict=True):
        (example,) = examples
        question, answer = (turn.content for turn in talked.messages)
        assert trained(chat, examples) == [answer + end]
        assert starts_once(chat, example.input_ids)
        prompt = chat.prompt_ids(talked.messages)
        assert example.input_ids[: len(prompt)] == prompt
        assert all(label == IGNORE_INDEX for label in example.labels[: len(prompt)])
        assert example.labels[len(prompt)] != IGNORE_INDEX
        assert question in chat.tokenizer.decode(prompt)


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_every_answer_of_a_conversation_is_trained_once_whatever_the_system_turn(chat, system):
    talked = talk("q1 ɛ", "a1", "q2", "two  spaces", "q3", "a3 😀", system=system)
    examples = chat.encode(talked)
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_ids[0])
    assert trained(chat, examples) == ["a1" + end, "two  spaces" + end, "a3 😀" + end]
    for example in examples:
        read = [
            t for t, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE_INDEX
        ]
        assert "q1 ɛ" in chat.tokenizer.decode(read)
        assert ("Be kind." in chat.tokenizer.decode(read)) is (system == "Be kind.")
        assert starts_once(chat, example.input_ids)
    prompt = chat.prompt_ids(talked.messages)
    assert examples[-1].input_ids[: len(prompt)] == prompt


def test_an_empty_system_turn_is_dropped_from_rows_and_harmless_in_questions(chat):
    turns = [("system", ""), ("user", "q1"), ("assistant", "a1")]
    row = convert({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert [turn.role for turn in row.messages] == ["user", "assistant"]
    asked = chat.prompt_ids(turns_of("q1", system=""))
    assert starts_once(chat, asked)
    assert "q1" in chat.tokenizer.decode(asked)


@pytest.mark.parametrize("in_template", [True, False])
@pytest.mark.parametrize("in_tokenizer", [True, False])
@pytest.mark.parametrize("family", [name for name in FAMILIES if tokenizer_for(name).bos_token])
def test_one_bos_whoever_writes_it(family, in_template, in_tokenizer):
    tokenizer = tokenizer_for(family)
    bos = tokenizer.bos_token
    template = tokenizer.chat_template.replace("{{- bos_token }}", "").replace("{{ bos_token }}", "")
    backend = tokenizer.backend_tokenizer
    backend.post_processor = starts_with(backend, bos) if in_tokenizer else starts_with_nothing()
    chat = ChatTokenizer(tokenizer, "{{ bos_token }}" * in_template + template)
    for ids in (chat.encode(talk("q", "a"))[0].input_ids, chat.prompt_ids(turns_of("q"))):
        assert starts_once(chat, ids)


def starts_with_nothing():
    from tokenizers import processors

    return processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])


def served_ids(chat, messages):
    text = chat.tokenizer.apply_chat_template(
        [turn.model_dump(include={"role", "content"}) for turn in messages],
        chat_template=chat.serving_template, add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_the_shipped_template_alone_gives_the_trained_prompt(chat, system):
    for turns in (turns_of("q1", system=system), turns_of("q1", "a1", "q2", system=system)):
        assert served_ids(chat, turns) == chat.prompt_ids(turns)
    # What is shipped is what the next run starts from.
    again = ChatTokenizer(chat.tokenizer, chat.serving_template)
    talked = talk("q1", "a1", "q2", "a2", system=system)
    assert [e.input_ids for e in again.encode(talked)] == [e.input_ids for e in chat.encode(talked)]
    assert again.serving_template == chat.serving_template


def test_mistral_loses_no_system_turn():
    chat = chat_of("mistral")
    assert chat.folds_system
    ids = chat.encode(talk("q1", "a1", "q2", "a2", system="Be kind."))[0].input_ids
    assert chat.tokenizer.decode(ids).count("[INST] Be kind.\n\nq1[/INST]") == 1


def test_gemma_refuses_turns_out_of_order_with_its_own_words():
    with pytest.raises(ModelError, match="roles must alternate"):
        chat_of("gemma-3").prompt_ids(turns_of("q") * 2)


def test_an_empty_thought_belongs_to_the_prompt_and_a_real_one_to_the_answer():
    chat = chat_of("qwen3")
    empty = "<think>\n\n</think>\n\n"
    plain, thought = talk("q", "yes"), talk("q", "<think>\nhm\n</think>\n\nyes")
    assert chat.tokenizer.decode(chat.prompt_ids(plain.messages)).endswith("assistant\n" + empty)
    assert trained(chat, chat.encode(plain)) == ["yes<|im_end|>"]
    assert trained(chat, chat.encode(thought)) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]
    assert chat.tokenizer.decode(chat.prompt_ids(thought.messages)).endswith("assistant\n")
    assert chat.parts(thought.messages)[1] == "<think>\nhm\n</think>\n\nyes<|im_end|>\n"
    assert chat.parts(plain.messages) == (
        chat.render(plain.messages[:1], add_generation_prompt=True),
        "yes<|im_end|>\n",
    )
    # Exactly what the family's own switch for answers without thoughts gives.
    own = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    assert chat.render(plain.messages[:1], add_generation_prompt=True) == own
