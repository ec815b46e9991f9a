import pytest

from core.data.formats import Rejected, convert
from core.data.templates import shipped

QA = [("user", "Q one\ntwo"), ("assistant", "A")]
SQA = [("system", "S"), *QA]
TALK = [*SQA, ("user", "Q2"), ("assistant", "A2: yes")]

TEXTS = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ one\ntwo<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2: yes<|im_end|>\n",
        TALK,
    ),
    "chatml without a last end": ("<|im_start|>user\nQ one\ntwo<|im_end|>\n<|im_start|>assistant\nA", QA),
    "human and assistant": (
        "\n\nHuman: Q one\ntwo\n\nAssistant: A\n\nHuman: Q2\n\nAssistant: A2: yes",
        TALK[1:],
    ),
    "user and assistant": ("System: S\nUser: Q one\ntwo\nAssistant: A</s>", SQA),
    "capitals": ("USER: Q one\ntwo\nASSISTANT: A", QA),
    "guanaco": ("### Human: Q one\ntwo### Assistant: A### Human: Q2### Assistant: A2: yes", TALK[1:]),
    "instruction and response": (
        "Below is a task.\n\n### Instruction:\nQ one\ntwo\n\n### Response:\nA",
        [("system", "Below is a task."), *QA],
    ),
    "instruction, input and response": (
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3\n\n### Input:\nis a heading",
        [("user", "Add.\n\n1 and 2"), ("assistant", "3\n\n### Input:\nis a heading")],
    ),
    "blank input": ("### Instruction:\nAdd.\n\n### Input:\n\n### Response:\n3", [("user", "Add."), ("assistant", "3")]),
    "llama 2": (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ one\ntwo [/INST] A </s><s>[INST] Q2 [/INST] A2: yes </s>",
        TALK,
    ),
    "mistral": ("<s>[INST] Q one\ntwo[/INST] A</s>", QA),
    "gemma": (
        "<bos><start_of_turn>user\nQ one\ntwo<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n",
        QA,
    ),
    "llama 3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nQ one\ntwo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
        SQA,
    ),
    "zephyr": ("<|system|>\nS</s>\n<|user|>\nQ one\ntwo</s>\n<|assistant|>\nA</s>\n", SQA),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("field", ["text", "content", "conversation"])
def test_a_conversation_in_one_text_is_told_apart(name, field):
    text, expected = TEXTS[name]
    converted = convert({field: text, "n": 1})
    assert [(turn.role, turn.content) for turn in converted.messages] == expected
    assert (converted.format, converted.used, converted.metadata) == ("chat_text", (field,), {"n": 1})
    assert convert({field: text, "n": 1}, "chat_text") == converted


@pytest.mark.parametrize("name", ["gemma-3", "llama-3", "mistral", "chatml", "zephyr"])
def test_what_our_own_templates_write_is_read_back(byte_level, name):
    talk = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
    text = byte_level().apply_chat_template(
        [{"role": role, "content": content} for role, content in talk],
        chat_template=shipped(name),
        tokenize=False,
    )
    assert [(turn.role, turn.content) for turn in convert({"text": text}).messages] == talk


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no markers at all", "no chat markers"),
        ("<|im_start|>user\nQ<|im_end|>\nloose words\n<|im_start|>assistant\nA<|im_end|>", "text between the turns"),
        ("<|im_start|>narrator\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>", "unknown role"),
        ("<|im_start|>user\nQ<|im_end|>\n", "no answer"),
        ("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nA<|im_end|>", "empty turn"),
        ("Human: Q\nHuman: again\nAssistant: A", "roles do not alternate"),
        (" ", "empty text"),
        (7, "content is not text"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_conversation_is_refused(text, reason):
    with pytest.raises(Rejected) as refusal:
        convert({"text": text}, "chat_text")
    assert str(refusal.value) == reason


def test_tool_calls_inside_the_text_become_tool_turns():
    text = (
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\nLet me see.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Kumasi"}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\nRain.<|im_end|>\n"
    )
    asked, calls, result, said = convert({"text": text}).messages
    assert (asked.content, calls.content, result.role, result.content) == (
        "Weather?",
        "Let me see.",
        "tool",
        "rain",
    )
    assert [(call.name, call.arguments) for call in calls.tool_calls] == [("weather", '{"city": "Kumasi"}')]
    assert said.content == "Rain."
