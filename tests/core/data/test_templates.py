import pytest

from core.data.templates import shipped, template_for
from core.errors import ModelError

EXPECTED = {
    "gemma-3": (
        "<s><start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n"
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] S\n\nQ1[/INST] A1</s>[INST] Q2[/INST]",
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "zephyr": "<|system|>\nS</s>\n<|user|>\nQ1</s>\n<|assistant|>\nA1</s>\n<|user|>\nQ2</s>\n<|assistant|>\n",
}
TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": " Q1 "},
    {"role": "assistant", "content": "A1\n"},
    {"role": "user", "content": "Q2"},
]


@pytest.mark.parametrize("name", EXPECTED)
def test_each_template_writes_the_published_structure(byte_level, name):
    text = byte_level().apply_chat_template(
        TALK, chat_template=shipped(name), tokenize=False, add_generation_prompt=True
    )
    assert text == EXPECTED[name]


def test_an_own_template_wins(byte_level):
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ 'own' }}"
    assert template_for(tokenizer, "chatml") == "{{ 'own' }}"
    tokenizer.chat_template = {"default": "d", "tool_use": "t"}
    assert template_for(tokenizer, "chatml") == "d"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_named_template_otherwise(byte_level, name):
    assert template_for(byte_level(), name) == shipped(name)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gemma-3", "<start_of_turn>, <end_of_turn>"),
        ("llama-3", "<|eot_id|>"),
        ("chatml", "<|im_start|>, <|im_end|>"),
    ],
)
def test_missing_tokens_are_named_with_templates_that_fit(byte_level, name, missing):
    with pytest.raises(ModelError) as error:
        template_for(byte_level(special=("<unk>", "<s>", "</s>")), name)
    assert missing in error.value.what
    assert error.value.where == "dataset.chat_template"
    assert "mistral or zephyr" in error.value.fix


def test_a_tokenizer_without_eos_fits_nothing(byte_level):
    tokenizer = byte_level(special=("<unk>", "<s>", "</s>"))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="choose a base model whose tokenizer has an eos_token"):
        template_for(tokenizer, "zephyr")
