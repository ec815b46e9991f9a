"""Read a split and turn it into tokenized training examples."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from core.artifacts import file_digest, fingerprint, source_digest
from core.data.batches import Truncated, truncate
from core.data.chat import ChatTokenizer, Encoded
from core.data.records import Conversation, Document, Message, Record, read_records
from core.data.token_store import in_memory, load, save
from core.errors import DataError

_ROOT = Path(__file__).parents[2]
# Code that decides what a row becomes; the cache must not outlive a change of it.
_CODE = (
    "core.data.batches",
    "core.data.chat",
    "core.data.control_text",
    "core.data.examples",
    "core.data.records",
    "core.data.template_probe",
    "core.data.templates",
    "core.data.token_store",
    "core.data.tool_turns",
)
_BATCH_RECORDS, _BATCH_CHARACTERS = 512, 1 << 20


def encode_file(path: Path, chat: ChatTokenizer, max_length: int, *, cache: Path | None = None) -> Truncated:
    """Tokenize every conversation and plain text of a split.

    Args:
        path: A JSONL file as ``split`` writes it.
        chat: Tokenizer and template.
        max_length: Most tokens of an example; longer conversations are cut and counted, longer texts
            become several examples.
        cache: Folder for what was tokenized. The same rows with the same tokenizer, template, length
            and code are read from there, memory-mapped, instead of being tokenized again.

    Raises:
        DataError: If rows exist but none keeps a trained token.
    """
    result = (
        in_memory(_parts(path, chat, max_length)) if cache is None else _cached(path, chat, max_length, cache)
    )
    if result.dropped and not result.examples:
        raise DataError(
            f"no row keeps a trained token within {max_length} tokens",
            where=str(path),
            fix="raise model.max_seq_length, or shorten the prompts",
        )
    return result


def _cached(path: Path, chat: ChatTokenizer, max_length: int, cache: Path) -> Truncated:
    target = cache / f"{cache_key(path, chat, max_length)}.arrow"
    found = load(target)
    if found is None:
        save(_parts(path, chat, max_length), target)
        found = load(target)
    if found is None:
        raise DataError(
            "what was just tokenized cannot be read back",
            where=str(target),
            fix="free some space, or set another folder for the cache",
        )
    return found


def cache_key(path: Path, chat: ChatTokenizer, max_length: int) -> str:
    """Return a key that changes with anything that decides the tokens of a file.

    Args:
        path: The split.
        chat: Tokenizer and template.
        max_length: Most tokens of an example.

    Returns:
        64 hexadecimal digits.
    """
    tokenizer = chat.tokenizer
    backend = tokenizer.backend_tokenizer
    # Leftovers of an earlier call, which ours overrides.
    backend.no_truncation()
    backend.no_padding()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts: tuple[Any, ...] = (
        file_digest(path),
        backend.to_str(),
        special,
        bool(tokenizer.split_special_tokens),
        chat.template,
        max_length,
        source_digest(_CODE, _ROOT),
        (tokenizers.__version__, transformers.__version__),
    )
    return fingerprint(*parts).removeprefix("sha256:")


def _parts(path: Path, chat: ChatTokenizer, max_length: int) -> Iterator[Truncated]:
    for records in _batches(read_records(path)):
        yield truncate(_encoded(records, chat, max_length), max_length)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += _characters(record)
        if len(batch) >= _BATCH_RECORDS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _characters(record: Record) -> int:
    if isinstance(record, Document):
        return len(record.text)
    return sum(len(turn.content) for turn in record.messages)


def _encoded(records: Sequence[Record], chat: ChatTokenizer, max_length: int) -> Iterator[Encoded]:
    talks = iter(chat.encode_all([record for record in records if isinstance(record, Conversation)]))
    texts = [record.text for record in records if isinstance(record, Document)]
    documents = iter(chat.encode_documents(texts, max_length))
    for record in records:
        yield from next(documents if isinstance(record, Document) else talks)


def as_messages(turns: Sequence[dict[str, Any]]) -> list[Message]:
    """Make messages of the turns of a row."""
    return [Message.model_validate(turn) for turn in turns]
