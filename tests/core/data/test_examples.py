import ast
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from core.data import examples
from core.data.batches import collate, truncate
from core.data.chat import IGNORE_INDEX, ChatTokenizer, Encoded
from core.data.examples import as_messages, encode_file
from core.data.records import Conversation, Document, Message, ToolCall, from_row, to_row
from core.data.templates import shipped
from core.data.token_store import StoredExamples, in_memory, load, save, to_columns
from core.errors import DataError

WORDS = ["rice", "bag", "price", "market", "Kumasi", "yɛ", "ɔkay", "seven", "one", "two", "42"]


def row(number, length=8):
    chance = random.Random(number)
    if number % 4 == 3:
        return to_row(Document(id=f"d{number}", text=" ".join(chance.choices(WORDS, k=6 * length))), {})
    turns = [
        Message(role=("user", "assistant")[place % 2], content=" ".join(chance.choices(WORDS, k=length)))
        for place in range(2 + 2 * (number % 2))
    ]
    return to_row(Conversation(id=f"c{number}", messages=tuple(turns)), {})


@pytest.fixture
def split(tmp_path, jsonl):
    return jsonl(tmp_path / "train.jsonl", [row(number) for number in range(40)])


@pytest.fixture
def chat(byte_level):
    return ChatTokenizer(byte_level(), shipped("chatml"))


class Refusing(PreTrainedTokenizerFast):
    """The same tokenizer, worn out: it can be looked at but not used."""

    @property
    def backend_tokenizer(self):
        return Unusable(super().backend_tokenizer)

    def __call__(self, *texts, **settings):
        raise AssertionError("tokenized")


class Unusable:
    def __init__(self, inner):
        self._inner = inner
        self.no_truncation, self.no_padding, self.to_str = inner.no_truncation, inner.no_padding, inner.to_str

    def encode_batch_fast(self, texts, add_special_tokens):
        raise AssertionError("tokenized")


def refusing(chat, template=None):
    tokenizer = Refusing(
        tokenizer_object=chat.tokenizer.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    return ChatTokenizer(tokenizer, template or chat.template)


def test_a_file_gives_what_its_records_give_one_by_one(split, chat):
    one_by_one = []
    for line in split.read_text().splitlines():
        record = from_row(json.loads(line))
        one_by_one += (
            chat.encode_document(record.text, 64) if isinstance(record, Document) else chat.encode(record)
        )
    expected = truncate(one_by_one, 64)
    result = encode_file(split, chat, 64)
    assert list(result.examples) == expected.examples
    assert (result.shortened, result.dropped) == (expected.shortened, expected.dropped)
    assert result.shortened > 0
    assert len(result.examples) > 40


def test_a_second_call_reads_what_the_first_one_tokenized(split, chat, tmp_path):
    cache = tmp_path / "cache"
    first = encode_file(split, chat, 64, cache=cache)
    with pytest.raises(AssertionError, match="tokenized"):
        encode_file(split, refusing(chat), 64)
    second = encode_file(split, refusing(chat), 64, cache=cache)
    assert list(second.examples) == list(first.examples) == list(encode_file(split, chat, 64).examples)
    assert second[1:] == first[1:] == encode_file(split, chat, 64)[1:]
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow", ".json"]


def test_moving_the_file_is_no_change(split, chat, tmp_path):
    encode_file(split, chat, 64, cache=tmp_path / "cache")
    moved = tmp_path / "elsewhere.jsonl"
    split.rename(moved)
    assert encode_file(moved, refusing(chat), 64, cache=tmp_path / "cache").examples


def test_an_earlier_calls_truncation_is_no_change(split, chat, tmp_path):
    encode_file(split, chat, 64, cache=tmp_path)
    worn = refusing(chat)
    for tokenizer in (chat.tokenizer, super(Refusing, worn.tokenizer)):
        tokenizer.backend_tokenizer.enable_truncation(5)
        tokenizer.backend_tokenizer.enable_padding(length=9)
    assert encode_file(split, worn, 64, cache=tmp_path).examples
    assert max(len(example.input_ids) for example in encode_file(split, chat, 64).examples) == 64


@pytest.mark.parametrize("change", ["row", "template", "length", "vocabulary", "special token"])
def test_whatever_decides_the_tokens_misses_the_cache(split, chat, tmp_path, change):
    encode_file(split, chat, 64, cache=tmp_path)
    asked = refusing(chat)
    length = 64
    if change == "row":
        split.write_text(split.read_text().replace("rice", "beans", 1))
    elif change == "template":
        asked = refusing(chat, shipped("zephyr"))
    elif change == "length":
        length = 63
    elif change == "vocabulary":
        asked.tokenizer.add_tokens(["market"])
    else:
        asked.tokenizer.eos_token = "<unk>"
    with pytest.raises(AssertionError, match="tokenized"):
        encode_file(split, asked, length, cache=tmp_path)


DAMAGES = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another byte": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    "another token": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "junk": lambda data: b"\x00junk",
}


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(split, chat, tmp_path, suffix, damage):
    cache = tmp_path / "cache"
    expected = [Encoded(*example) for example in encode_file(split, chat, 64, cache=cache).examples]
    (file,) = cache.glob(f"*{suffix}")
    file.write_bytes(DAMAGES[damage](file.read_bytes().ljust(201, b" ")))
    assert list(encode_file(split, chat, 64, cache=cache).examples) == expected
    assert list(encode_file(split, refusing(chat), 64, cache=cache).examples) == expected


def test_a_missing_label_makes_it_anew_and_leaves_no_parts(split, chat, tmp_path):
    cache = tmp_path / "cache"
    encode_file(split, chat, 64, cache=cache)
    next(cache.glob("*.json")).unlink()
    assert encode_file(split, chat, 64, cache=cache).examples
    assert len(list(cache.iterdir())) == 2


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path):
    def killed():
        yield truncate([Encoded([1, 2], [IGNORE_INDEX, 2])], 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(killed(), tmp_path / "x.arrow")
    assert list(tmp_path.iterdir()) == []
    assert load(tmp_path / "x.arrow") is None


def test_ids_are_kept_as_int32_and_examples_behave_as_a_list(split, chat):
    examples = encode_file(split, chat, 64).examples
    listed = list(examples)
    assert examples[-1] == listed[-1]
    assert examples[2:5] == listed[2:5]
    assert all(type(token) is int for token in examples[0].input_ids)
    with pytest.raises(IndexError):
        examples[len(listed)]
    assert collate(examples[:3], 0).labels.shape[0] == 3
    assert str(to_columns(listed).schema.field("input_ids").type) == "list<element: int32>".replace(
        "element", "item"
    )


example = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=12).map(
    lambda pairs: Encoded([t for t, _ in pairs], [t if kept else IGNORE_INDEX for t, kept in pairs])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(example, max_size=4), max_size=4))
def test_columns_give_back_every_example(tmp_path, batches):
    flat = [one for batch in batches for one in batch]
    stored = StoredExamples(to_columns(batch) for batch in batches)
    assert list(stored) == flat
    assert len(stored) == len(flat)
    parts = [truncate(batch, 99) for batch in batches]
    save(parts, tmp_path / "x.arrow")
    found = load(tmp_path / "x.arrow")
    assert found is not None
    assert list(found.examples) == list(in_memory(parts).examples)


def test_no_trained_token_left_is_an_error_cached_or_not(tmp_path, jsonl, chat):
    path = jsonl(tmp_path / "t.jsonl", [row(0, 50)])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(DataError, match="no row keeps a trained token within 9 tokens"):
            encode_file(path, chat, 9, cache=cache)


def test_an_empty_split_gives_no_examples(tmp_path, jsonl, chat):
    path = jsonl(tmp_path / "t.jsonl", [])
    assert list(encode_file(path, chat, 9).examples) == []
    assert list(encode_file(path, chat, 9, cache=tmp_path / "cache").examples) == []


def test_turns_of_a_row_become_messages_tools_included():
    messages = (
        Message(role="user", content="Q"),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments="{}"),)),
        Message(role="tool", content="1", name="f"),
        Message(role="assistant", content="A"),
    )
    turns = to_row(Conversation(id="a", messages=messages), {})["conversations"]
    assert as_messages(turns) == list(messages)


def test_every_module_that_decides_a_token_belongs_to_the_caches_key():
    seen, ahead = set(), ["core.data.examples"]
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            source = Path(module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            found = (node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
            ahead += [name for name in found if name and name.startswith("core.data.")]
    assert seen - {"core.data.config"} == set(examples._CODE)
