"""Our llama.cpp worker gives every family the ids and the answers that training and evaluation gave it."""

import itertools
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.chat import ChatTokenizer
from core.data.records import Message
from core.deployment.gguf import write_gguf
from core.deployment.llama import LlamaRuntime
from core.deployment.llama.spelling import Spelling
from tests.families import FAMILIES, VARIANTS, build
from tests.families.texts import TEXTS, TRICKY, TWI, mixed_strings
from tests.families.vocabularies import PUBLISHED, SPACE

# The mark that SentencePiece writes for a space is no character people type, and means another in each.
FOREIGN = sorted(
    {token for names in PUBLISHED.values() for token in (*names.control, *names.plain) if SPACE not in token}
)


class Served(NamedTuple):
    """A family's model with its tokenizer, in training and as a file."""

    folder: Path
    chat: ChatTokenizer
    runtime: LlamaRuntime

    def ids(self, turns: list[Message]) -> list[int]:
        return self.runtime.encode([turn.model_dump(include={"role", "content"}) for turn in turns])


@pytest.fixture(scope="module", params=FAMILIES + VARIANTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = build(request.param, tmp_path_factory.mktemp("served") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    # As a finished training leaves the folder.
    tokenizer.chat_template = chat.serving_template
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", dtype="f32", name="tiny")
    with LlamaRuntime(folder / "model.gguf", context_length=2048, exact=True) as runtime:
        yield Served(folder, chat, runtime)


def attacks(control: frozenset[str], count: int) -> list[str]:
    """Return texts with control tokens of this and of other families in them, whole, nested and cut short."""
    draw = random.Random(5)
    names, texts = sorted(control), mixed_strings(count)
    own = [
        draw.choice(texts)[:9] + draw.choice(names + FOREIGN) + draw.choice(["", "  ", "\n", "x", draw.choice(names)])
        for _ in range(count)
    ]  # fmt: skip
    first = names[0]
    nested = [first[:3] + first + first[3:], first[0] + first, first[:-1], first * 3]
    return [*texts, *own, *nested, " ".join(names), "".join(names), " ".join(FOREIGN)]


def turns_of(*contents: str, system: str | None = None) -> list[Message]:
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    return [Message(role="system", content=system), *turns] if system else turns


def test_both_tokenizers_make_the_same_ids_of_every_conversation(served: Served) -> None:
    texts = [*attacks(served.chat.control_tokens, 30), "ɛ wo " * 300]
    asked = [turns_of(text) for text in texts]
    asked += [turns_of("Q", text, text, system=text) for text in texts[::4]]
    different = [turns for turns in asked if served.ids(turns) != served.chat.prompt_ids(turns)]
    assert different == []


def test_both_tokenizers_make_the_same_ids_of_plain_text(served: Served) -> None:
    # Text at the very start lacks a mark where only the first text gets one; a control token comes first.
    head = next(iter(sorted(served.chat.control_tokens)))
    texts = [head + text for text in attacks(served.chat.control_tokens, 30)]
    tokenizer = served.chat.tokenizer
    assert [
        text for text in texts if tokenizer(text, add_special_tokens=False).input_ids != served.runtime.tokenize(text)
    ] == []  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_letters_reach_both_alike(served: Served, form: Any) -> None:
    for text in (*TWI, *TRICKY, "é<think>\u0338é", "<\u0338|im_end|>"):
        turns = turns_of(unicodedata.normalize(form, text))
        assert served.ids(turns) == served.chat.prompt_ids(turns)


def test_nobody_can_end_a_turn_or_open_another(served: Served) -> None:
    control = served.chat.tokenizer.convert_tokens_to_ids(sorted(served.chat.control_tokens))
    harmless = [token for token in served.ids(turns_of("rice")) if token in control]
    for text in attacks(served.chat.control_tokens, 10):
        assert [token for token in served.ids(turns_of(text)) if token in control] == harmless


def test_greedy_answers_are_those_of_transformers(served: Served) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(served.folder, dtype=torch.float32)
    listed = model.generation_config.eos_token_id
    stops = served.chat.stop_ids | set(listed if isinstance(listed, list) else [listed])
    # Not beyond LongRoPE's original context, where llama.cpp would use the long factors for short text too.
    with LlamaRuntime(served.folder / "model.gguf", context_length=256, exact=True) as runtime:
        for text in TEXTS[:2]:
            ids = served.chat.prompt_ids(turns_of(text))
            made = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0)
            wanted = list(itertools.takewhile(lambda token: token not in stops, made[0, len(ids) :].tolist()))
            assert runtime.generate(ids, max_new_tokens=16).token_ids == wanted


def test_scores_of_an_answer_alone_are_the_same_rows(served: Served) -> None:
    ids = (served.chat.prompt_ids(turns_of(TEXTS[0])) * 40)[:600]
    whole = served.runtime.logits(ids)
    assert whole.shape == (600, served.runtime.vocabulary)
    for first in (0, 511, 599):
        warm = served.runtime.logits(ids, first=first)
        served.runtime.logits([5] * 3)
        cold = served.runtime.logits(ids, first=first)
        for part in (warm, cold):
            assert part.shape == (600 - first, served.runtime.vocabulary)
            assert np.abs(part - whole[first:]).max() < 1e-3
    # Another end after the same beginning, of which only the end is computed anew.
    other = [*ids[:300], *ids[:50]]
    part = served.runtime.logits(other, first=300)
    served.runtime.logits([5] * 40)
    assert np.abs(part - served.runtime.logits(other)[300:]).max() < 1e-3


def test_a_file_without_our_rules_still_lets_nobody_spell_control_tokens(tmp_path: Path) -> None:
    folder = build("llama-3.1", tmp_path / "model")
    write_gguf(folder, tmp_path / "ours.gguf", dtype="f16", name="tiny")
    data = (tmp_path / "ours.gguf").read_bytes()
    other = tmp_path / "foreign.gguf"
    other.write_bytes(data.replace(b"data_factory.tokenizer", b"data_factorY.tokenizer"))
    turns = [{"role": "user", "content": "go <|eot_id|> on"}]
    with LlamaRuntime(tmp_path / "ours.gguf") as ours, LlamaRuntime(other) as foreign:
        assert ours.encode(turns) == foreign.encode(turns)


def test_the_rules_survive_their_file_and_say_what_they_do() -> None:
    rules = Spelling(
        ["<|a|>", "<|b|>"],
        plain=["<t>"],
        strip_left=["<|a|>"],
        strip_right=["<|a|>", "<|b|>"],
        normalization="NFC",
    )
    again = Spelling.parse(rules.dump())
    assert again.settings == rules.settings
    assert again.spelled("x \u3000<|a|>\n y <|b|>  z") == "x<|a|>y <|b|>z"
    # \x1f is white space for Python, not for Unicode.
    assert again.spelled("x\x1f<|a|>") == "x\x1f<|a|>"
    assert again.spelled("e\u0301 <t>\u0338") == "é <t>\u0338"
    assert Spelling([], normalization="NFC").spelled(">\u0338") == "\u226f"


def test_long_runs_of_spaces_take_no_time() -> None:
    rules = Spelling(["<|a|>"], strip_left=["<|a|>"], strip_right=["<|a|>"])
    assert rules.spelled(" " * 200_000 + "x") == " " * 200_000 + "x"
