"""Tokenizers built on the spot, of the two kinds in use, and small helpers to lay out files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
]
TEXTS = [
    "What is the price of a bag of rice in Kumasi market today?",
    "Wo ho te sɛn? Me ho yɛ, medaase. Ɛyɛ anigye sɛ yɛahyia wɔ ha.",
    "The answer is 42. user assistant system model",
    "One two three four five six seven eight nine ten",
]

Make = Callable[..., PreTrainedTokenizerFast]


def _finish(
    tokenizer: Tokenizer, adds_bos: bool, base: Any, special: Iterable[str]
) -> PreTrainedTokenizerFast:
    if adds_bos:
        bos = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
        tokenizer.post_processor = processors.Sequence([base, bos]) if base else bos
    elif base:
        tokenizer.post_processor = base
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def byte_level() -> Make:
    """Byte-level BPE, as in Llama 3 and Qwen; few merges, so letters beyond ASCII are several tokens."""

    def make(adds_bos: bool = True, special: Iterable[str] = tuple(SPECIAL)) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        return _finish(tokenizer, adds_bos, processors.ByteLevel(trim_offsets=True), special)

    return make


@pytest.fixture(scope="session")
def sentence_piece() -> Make:
    """BPE over text with visible spaces and byte fallback, as in Llama 2, Mistral and Gemma."""

    def make(adds_bos: bool = True, special: Iterable[str] = tuple(SPECIAL)) -> PreTrainedTokenizerFast:
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        trained = Tokenizer(models.BPE(unk_token="<unk>"))
        trained.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*special, *bytes_], show_progress=False)
        trained.train_from_iterator([text.replace("?", "") for text in TEXTS[:1]] + TEXTS[2:], trainer)
        state = json.loads(trained.to_str())["model"]
        merges = [tuple(merge) for merge in state["merges"]]
        tokenizer = Tokenizer(
            models.BPE(state["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return _finish(tokenizer, adds_bos, None, special)

    return make


@pytest.fixture(params=["byte_level", "sentence_piece"])
def make_tokenizer(request: pytest.FixtureRequest) -> Make:
    return request.getfixturevalue(request.param)


def lay_out(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines with the standard library alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def dataset_row(number: int, question: str, answer: str = "yes", **metadata: Any) -> dict[str, Any]:
    """Return a row as the format phase writes it."""
    return {
        "id": f"r{number}",
        "conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "metadata": metadata,
        "origin": {"file": "rows.jsonl", "line": number + 1},
    }


@pytest.fixture
def jsonl() -> Callable[[Path, Iterable[Any]], Path]:
    return lay_out


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    return dataset_row
