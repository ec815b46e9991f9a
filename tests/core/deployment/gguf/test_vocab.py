"""llama.cpp splits text exactly as the Hugging Face tokenizer does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from core.deployment.gguf import write_gguf
from core.deployment.gguf.vocab import read_vocab
from core.deployment.llama import LlamaRuntime
from core.errors import ModelError
from tests.core.deployment.gguf import tiny

STRINGS = tiny.mixed_strings(400)
BYTE_LEVEL: dict[str, dict[str, Any]] = {
    "llama-bpe": {"kind": "llama-3", "ignore_merges": True, "adds_bos": True},
    "smaug-bpe": {"kind": "llama-3"},
    "qwen2": {"kind": "qwen2"},
    "gpt-2": {"kind": "gpt-2"},
    "smollm": {"kind": "smollm"},
}


@contextmanager
def opened(tokenizer: Any, folder: Path, name: str = "tiny") -> Iterator[tuple[Any, LlamaRuntime]]:
    tiny.save(folder, "Llama", tokenizer, num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    write_gguf(folder, folder / "model.gguf", dtype="f32", name=name)
    with LlamaRuntime(folder / "model.gguf", context_length=64) as runtime:
        yield AutoTokenizer.from_pretrained(folder), runtime


def different(tokenizer: Any, runtime: LlamaRuntime, texts: list[str]) -> list[str]:
    return [t for t in texts if tokenizer(t, add_special_tokens=False).input_ids != runtime.tokenize(t)]


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_text_is_split_identically(pre: str, tmp_path: Path) -> None:
    special = ["<|bos|><|user|>hi <|end|> there<|assistant|>\n", "<|user |> <|bos", "a<|end|>\n\n b"]
    with opened(tiny.byte_level(**BYTE_LEVEL[pre]), tmp_path) as (tokenizer, runtime):
        assert different(tokenizer, runtime, STRINGS + special) == []
        for text in STRINGS[:20]:
            assert tokenizer(text).input_ids == runtime.tokenize(text, add_special=True)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == pre
    assert fields["tokenizer.ggml.add_bos_token"].contents() is (pre == "llama-bpe")


def test_digits_are_single_tokens(tmp_path: Path) -> None:
    with opened(tiny.byte_level("qwen2"), tmp_path) as (tokenizer, runtime):
        assert [tokenizer.decode([token]) for token in runtime.tokenize("1234567890")] == list("1234567890")


@pytest.mark.parametrize("kind", ["gemma", "prepend", "llama", "legacy"])
def test_sentencepiece_text_is_split_identically(kind: str, tmp_path: Path) -> None:
    with opened(tiny.sentencepiece(kind), tmp_path) as (tokenizer, runtime):
        # A chat prompt starts with a control token: that is where all four must agree.
        texts = ["<s>" + text for text in STRINGS]
        if kind == "legacy":
            texts = [text for text in texts if not text.startswith(("<s> ", f"<s>{tiny.SPACE}"))]
        texts += ["<s>one</s><s>two", "<s>[INST] GH₵17? [/INST]"]
        assert different(tokenizer, runtime, texts) == []
        if kind in ("gemma", "prepend"):
            assert different(tokenizer, runtime, STRINGS) == []
            assert tokenizer("a b").input_ids == runtime.tokenize("a b", add_special=True)


@pytest.mark.parametrize("name", ["tutor", "my-Phi-3-tutor"])
def test_phi3_drops_white_space_after_control_tokens(name: str, tmp_path: Path) -> None:
    texts = ["<s><|user|>\nhello<|end|>\n<|assistant|>\n", "<s> hello</s>  there", "<|user|>  two"]
    with opened(tiny.sentencepiece("phi-3"), tmp_path, name) as (tokenizer, runtime):
        assert different(tokenizer, runtime, texts) == []


@pytest.mark.parametrize("name", ["my-phi-3", "Phi3 mini phi", "phi-3phi3"])
def test_a_name_with_phi3_does_not_break_other_tokenizers(name: str, tmp_path: Path) -> None:
    with opened(tiny.byte_level(), tmp_path, name) as (tokenizer, runtime):
        assert different(tokenizer, runtime, ["<|user|>\nhello"]) == []


def test_token_types_and_padding(tmp_path: Path) -> None:
    tokenizer = tiny.byte_level()
    tokenizer.add_tokens(["kɔkɔɔ"])
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = read_vocab(spec, len(tokenizer) + 3)
    assert vocab.types[0] == TokenType.CONTROL
    assert vocab.types[10] == TokenType.NORMAL
    assert vocab.types[len(tokenizer) - 1] == TokenType.USER_DEFINED
    assert vocab.tokens[-1] == f"[PAD{len(tokenizer) + 2}]"
    assert vocab.types[-3:] == [TokenType.UNUSED] * 3


def test_earlier_merges_score_higher_and_unmade_tokens_lowest() -> None:
    spec = json.loads(tiny.sentencepiece("prepend").backend_tokenizer.to_str())
    vocab = read_vocab(spec, len(spec["model"]["vocab"]))
    assert vocab.scores is not None
    score = dict(zip(vocab.tokens, vocab.scores, strict=True))
    first, last = ("".join(spec["model"]["merges"][at]) for at in (0, -1))
    assert score[first] > score[last] > score["<s>"]
    # unknown, two controls, <pad> that this tokenizer does not declare special, the first byte
    assert vocab.types[:5] == [2, 3, 3, 1, 6]


def changed(**parts: Any) -> dict[str, Any]:
    tokenizer = tiny.byte_level().backend_tokenizer
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    return dict(json.loads(tokenizer.to_str()))


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "Whitespace"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "ByteLevel"),
        ({"pre_tokenizer": tiny.split(r"\p{N}{1,2}")}, "1,2"),
        ({"normalizer": normalizers.Lowercase()}, "Lowercase"),
    ],
)
def test_tokenizers_without_an_equal_are_refused(parts: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        read_vocab(changed(**parts), 400)
    assert "Qwen 2" in str(caught.value)


def test_unigram_and_incomplete_byte_fallback_are_refused() -> None:
    spec = changed()
    with pytest.raises(ModelError, match="Unigram"):
        read_vocab(spec | {"model": {"type": "Unigram", "vocab": []}}, 400)
    spec = json.loads(tiny.sentencepiece("prepend").backend_tokenizer.to_str())
    spec["model"]["vocab"]["<0xZZ>"] = spec["model"]["vocab"].pop("<0x41>")
    with pytest.raises(ModelError, match="<0x41>"):
        read_vocab(spec, 500)
