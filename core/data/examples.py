"""Read a split and turn it into tokenized training examples."""

from pathlib import Path

from core.data.batches import Truncated, truncate
from core.data.chat import ChatTokenizer
from core.data.records import Message, read_conversations
from core.errors import DataError


def encode_file(path: Path, chat: ChatTokenizer, max_length: int) -> Truncated:
    """Tokenize every conversation of a split.

    Args:
        path: A JSONL file as ``split`` writes it.
        chat: Tokenizer and template.
        max_length: Most tokens of an example; longer ones are cut and counted.

    Raises:
        DataError: If rows exist but none keeps a trained token.
    """
    encoded = [item for conversation in read_conversations(path) for item in chat.encode(conversation)]
    result = truncate(encoded, max_length)
    if encoded and not result.examples:
        raise DataError(
            f"no row keeps a trained token within {max_length} tokens",
            where=str(path),
            fix="raise model.max_seq_length, or shorten the prompts",
        )
    return result


def as_messages(turns: list[dict[str, str]]) -> list[Message]:
    """Make messages of role/content pairs."""
    return [Message.model_validate(turn) for turn in turns]
