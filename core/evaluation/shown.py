"""Answers that a model is shown instead of asked for, as tokens: what its likelihoods are computed on."""

from collections.abc import Sequence

from core.data.chat import IGNORE_INDEX, ChatTokenizer, Encoded
from core.data.examples import as_messages
from core.data.records import Conversation
from core.evaluation.responders import Message


def shown_examples(
    chat: ChatTokenizer, prompts: Sequence[list[Message]], references: Sequence[Message], window: int
) -> list[list[Encoded]]:
    """Return the training examples of each reference, with labels on its own tokens alone.

    Args:
        chat: Tokenizer and template.
        prompts: Conversations up to the answer; an empty one means that the reference is a plain text.
        references: The assistant turns.
        window: Tokens of a plain text that are read together.
    """
    pairs = list(zip(prompts, references, strict=True))
    talks = [Conversation(id="shown", messages=tuple(as_messages([*p, r]))) for p, r in pairs if p]
    texts = [str(r["content"]) for p, r in pairs if not p]
    encoded = iter([[_last_answer(group[-1])] for group in chat.encode_all(talks)])
    windows = iter(chat.encode_documents(texts, window))
    return [next(encoded if prompt else windows) for prompt in prompts]


def _last_answer(example: Encoded) -> Encoded:
    end = max(place for place, label in enumerate(example.labels) if label != IGNORE_INDEX) + 1
    start = end
    while start > 0 and example.labels[start - 1] != IGNORE_INDEX:
        start -= 1
    labels = [IGNORE_INDEX] * start + example.labels[start:end] + [IGNORE_INDEX] * (len(example.labels) - end)
    return Encoded(example.input_ids, labels)
