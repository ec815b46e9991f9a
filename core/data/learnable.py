"""Will it learn? A look at the tokens of a sample of rows before anything is trained.

The mask token by token, what the window cuts off, whether answers end, whether tokens lead back to text:
what otherwise shows up as a model that never stops, or a loss that is fine and a model that is not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.data.chat import IGNORE_INDEX, ChatTokenizer, Encoded
from core.data.learning_findings import find, rounded_window
from core.data.learning_reports import LearnReport, MaskCounts, MaskedExample, Token
from core.data.records import Conversation, Document, Record
from core.data.reports import Histogram, LengthProfile
from core.data.round_trip import EncodedRow, check_round_trip
from core.data.token_text import TokenText
from core.errors import DataError, ModelError

ROUND_TRIPS = 300
"""Rows that are decoded and compared; it takes as long as encoding them."""
SHOWN = (160, 240)
"""Tokens shown from the start and from the end of a long example."""
IDS = 20
BINS = 20
WORDS = 20_000
"""Different words looked up, the most frequent ones."""

# Han, kana: a letter is about a word. Thai, Lao, Khmer, Burmese: about four letters are.
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f]|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{1,4}"
    r"|(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0dff'’])+"
)


class _Looked(NamedTuple):
    """A row and its training examples."""

    row: Record
    examples: list[Encoded]


class _Measures(NamedTuple):
    """One number per example."""

    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    """Trained tokens within the window."""
    rows: npt.NDArray[np.int64]
    """Number of the row that each example is of."""


class _Vocabulary(NamedTuple):
    words: int
    tokens: int
    hard: tuple[str, ...]


def look(
    rows: Sequence[Record],
    chat: ChatTokenizer,
    max_length: int,
    *,
    of_rows: int | None = None,
    model: str = "",
) -> LearnReport:
    """Encode rows as training would, and report what it would learn from them.

    Args:
        rows: A sample of the rows.
        chat: Tokenizer and template of the base model.
        max_length: Most tokens of an example in training.
        of_rows: Rows there are, if known.
        model: Name of the base model, for people.

    Raises:
        DataError: Without rows.
    """
    if not rows:
        raise DataError("there are no rows to look at", where="sources", fix="give rows with answers")
    looked, refused = _encode_all(rows, chat, max_length)
    measures = _measure(looked, max_length)
    counts = _count(looked, measures, chat, max_length)
    counts = counts.model_copy(update={"refused_rows": len(refused)})
    lengths = profile(measures.lengths)
    p99 = int(np.percentile(measures.lengths, 99, method="higher")) if looked else 0
    trip = check_round_trip(_evenly(_conversations(looked), ROUND_TRIPS), chat)
    return LearnReport(
        sampled=len(rows),
        of_rows=of_rows,
        model=model,
        counts=counts,
        lengths=lengths,
        p99=p99,
        suggested_max_length=rounded_window(p99),
        round_trip=trip,
        examples=tuple(_shown_examples(looked, measures, chat, max_length)),
        findings=find(counts, lengths, p99, trip, refused[0] if refused else ""),
    )


def short_examples(rows: Iterable[Record], chat: ChatTokenizer, max_length: int, n: int = 8) -> list[Encoded]:
    """Return the shortest examples that differ in their prompts: one batch to learn by heart.

    Args:
        rows: A sample of the rows.
        chat: Tokenizer and template.
        max_length: Longer examples are left out.
        n: Examples at most.
    """
    shortest = sorted(rows, key=lambda row: (_n_characters(row), row.id))
    looked, _ = _encode_all(shortest[: 4 * n], chat, max_length)
    chosen: dict[tuple[int, ...], Encoded] = {}
    for example in sorted((e for each in looked for e in each.examples), key=lambda e: len(e.input_ids)):
        mask = _trained(example)
        if mask.any() and len(mask) <= max_length:
            # Two answers to one question could not both be learned by heart.
            prompt = () if mask[1:].all() else tuple(example.input_ids[: int(mask.argmax())])
            chosen.setdefault(prompt or tuple(example.input_ids), example)
    return list(chosen.values())[:n]


def profile(lengths: npt.NDArray[np.int64]) -> LengthProfile:
    """Summarise the lengths of examples in tokens; a long tail shares the last bin of the histogram."""
    if not len(lengths):
        return LengthProfile(
            unit="tokens",
            n=0,
            mean=0,
            median=0,
            p95=0,
            largest=0,
            histogram=Histogram(edges=(0, 1), counts=(0,)),
        )
    first, last, body = (
        int(lengths.min()),
        int(lengths.max()),
        int(np.percentile(lengths, 99, method="higher")),
    )
    width = max(1, -(-(min(body, last) - first + 1) // BINS))
    edges = list(range(first, body + width + 1, width))
    edges = edges if edges[-1] > last else [*edges, last + 1]
    counts, _ = np.histogram(lengths, bins=edges)
    return LengthProfile(
        unit="tokens",
        n=len(lengths),
        mean=float(lengths.mean()),
        median=float(np.median(lengths)),
        p95=float(np.percentile(lengths, 95)),
        largest=last,
        histogram=Histogram(edges=tuple(edges), counts=tuple(int(count) for count in counts)),
    )


# Encoding


def _encode_all(
    rows: Sequence[Record], chat: ChatTokenizer, max_length: int
) -> tuple[list[_Looked], list[str]]:
    """Return the encoded rows, and in words those that the template refuses."""
    try:
        return list(_encoded(rows, chat, max_length)), []
    except ModelError:
        looked: list[_Looked] = []
        refused: list[str] = []
        # Together is faster, but tells nobody which of them it was.
        for row in rows:
            try:
                looked += _encoded([row], chat, max_length)
            except ModelError as error:
                refused.append(f"row {row.id}: {error.what}")
        return looked, refused


def _encoded(rows: Sequence[Record], chat: ChatTokenizer, max_length: int) -> Iterator[_Looked]:
    talks = iter(chat.encode_all([row for row in rows if isinstance(row, Conversation)]))
    texts = [row.text for row in rows if isinstance(row, Document)]
    documents = iter(chat.encode_documents(texts, max_length))
    for row in rows:
        yield _Looked(row, next(documents if isinstance(row, Document) else talks))


def _conversations(looked: Iterable[_Looked]) -> list[EncodedRow]:
    return [EncodedRow(row, examples) for row, examples in looked if isinstance(row, Conversation)]


def _evenly(rows: list[EncodedRow], n: int) -> list[EncodedRow]:
    """Return at most n rows, spread over all of them."""
    taken = min(n, len(rows))
    return [rows[k * (len(rows) - 1) // max(1, taken - 1)] for k in range(taken)]


def _contents(row: Record) -> Iterator[str]:
    if isinstance(row, Document):
        yield row.text
    else:
        yield from (turn.content for turn in row.messages)


def _n_characters(row: Record) -> int:
    return sum(len(text) for text in _contents(row))


# Numbers


def _trained(example: Encoded) -> npt.NDArray[np.bool_]:
    """Return the mask, [s]; the first token is never predicted, so it is never trained."""
    mask: npt.NDArray[np.bool_] = np.not_equal(np.asarray(example.labels), IGNORE_INDEX)
    mask[:1] = False
    return mask


def _measure(looked: Sequence[_Looked], max_length: int) -> _Measures:
    masks = [(number, _trained(e)) for number, each in enumerate(looked) for e in each.examples]
    columns = [
        (len(mask), np.count_nonzero(mask), np.count_nonzero(mask[:max_length]), number)
        for number, mask in masks
    ]
    table = np.array(columns, dtype=np.int64).reshape(-1, 4).T
    return _Measures(*table)


def _count(
    looked: Sequence[_Looked], measures: _Measures, chat: ChatTokenizer, max_length: int
) -> MaskCounts:
    lengths, trained, kept, rows = measures
    kept_by_row = np.bincount(rows, weights=kept, minlength=len(looked))
    untrained = [each.row.id for each, left in zip(looked, kept_by_row, strict=True) if not left]
    examples = [example for each in looked for example in each.examples]
    answers, closed = _count_ends(looked, chat)
    vocabulary = _count_words([text for each in looked for text in _contents(each.row)], chat)
    return MaskCounts(
        rows=len(looked),
        examples=len(examples),
        tokens=int(lengths.sum()),
        trained_tokens=int(trained.sum()),
        max_length=max_length,
        lost_tokens=int(np.maximum(lengths - max_length, 0).sum()),
        lost_trained_tokens=int((trained - kept).sum()),
        cut_examples=int((lengths > max_length).sum()),
        hurt_examples=int((kept < trained).sum()),
        untrained_rows=len(untrained),
        untrained_ids=tuple(untrained[:IDS]),
        answers=answers,
        closed_answers=closed,
        marked_rows=_count_marked(looked, chat),
        doubled_bos=_count_doubled_bos(examples, chat),
        unknown_tokens=_count_unknown(examples, chat),
        words=vocabulary.words,
        word_tokens=vocabulary.tokens,
        hard_words=vocabulary.hard,
    )


def _count_ends(looked: Iterable[_Looked], chat: ChatTokenizer) -> tuple[int, int]:
    """Count stretches of trained tokens, and those whose last token is one that generation stops at."""
    stops = np.array(sorted(chat.stop_ids))
    answers = closed = 0
    for row, examples in looked:
        # Of a plain text cut into windows, only the last one ends it.
        for example in examples[-1:] if isinstance(row, Document) else examples:
            mask = _trained(example)
            lasts = np.flatnonzero(mask & ~np.append(mask[1:], [False]))
            answers += len(lasts)
            closed += int(np.isin(np.asarray(example.input_ids)[lasts], stops).sum())
    return answers, closed


def _count_marked(looked: Iterable[_Looked], chat: ChatTokenizer) -> int:
    special = [str(token) for token in chat.tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return 0
    pattern = re.compile("|".join(re.escape(token) for token in special))
    return sum(any(pattern.search(text) for text in _contents(each.row)) for each in looked)


def _count_doubled_bos(examples: Iterable[Encoded], chat: ChatTokenizer) -> int:
    bos = chat.tokenizer.bos_token_id
    return sum(example.input_ids[:2] == [bos, bos] for example in examples)


def _count_unknown(examples: Iterable[Encoded], chat: ChatTokenizer) -> int:
    tokenizer = chat.tokenizer
    unknown = tokenizer.unk_token_id
    # GPT-2 calls its only special token unknown, too; it then says nothing.
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *chat.stop_ids}
    if unknown is None or unknown in used:
        return 0
    return sum(example.input_ids.count(unknown) for example in examples)


def _count_words(texts: Iterable[str], chat: ChatTokenizer) -> _Vocabulary:
    """Count words and their tokens; every different word is tokenized once."""
    found = Counter(word for text in texts for word in _WORDS.findall(text)).most_common(WORDS)
    if not found:
        return _Vocabulary(0, 0, ())
    alone, inside = (
        chat.tokenizer([space + word for word, _ in found], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        for space in ("", " ")
    )
    # As a word stands in a text, with its space, or without where a tokenizer adds one itself.
    sizes = [min(len(a), len(b)) for a, b in zip(alone, inside, strict=True)]
    hardest = sorted(range(len(found)), key=lambda n: (-sizes[n] / len(found[n][0]), -sizes[n], found[n][0]))
    return _Vocabulary(
        sum(count for _, count in found),
        sum(count * size for (_, count), size in zip(found, sizes, strict=True)),
        tuple(f"{found[n][0][:30]}: {sizes[n]}" for n in hardest[:5] if sizes[n] > 1),
    )


# The mask view


def _shown_examples(
    looked: Sequence[_Looked], measures: _Measures, chat: ChatTokenizer, max_length: int
) -> Iterator[MaskedExample]:
    if not looked:
        return
    speller = TokenText(chat.tokenizer)
    marks = {number for number, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    marks |= chat.stop_ids | set(chat.tokenizer.all_special_ids)
    longest = np.zeros(len(looked), dtype=np.int64)
    np.maximum.at(longest, measures.rows, measures.lengths)
    order = np.lexsort((np.arange(len(looked)), longest))
    median = int(order[(len(order) - 1) // 2])
    yield _shown(looked[median], "a row of median length", speller, marks, max_length)
    for label, is_one in _KINDS:
        others = [int(n) for n in order if is_one(looked[n].row)]
        if others and not is_one(looked[median].row):
            yield _shown(looked[others[(len(others) - 1) // 2]], label, speller, marks, max_length)
            return


def _has_role(row: Record, role: str) -> bool:
    return isinstance(row, Conversation) and any(turn.role == role for turn in row.messages)


def _has_turns(row: Record) -> bool:
    return isinstance(row, Conversation) and sum(turn.role == "assistant" for turn in row.messages) > 1


_KINDS = (
    ("a row with tool turns", lambda row: _has_role(row, "tool")),
    ("a row with several answers", _has_turns),
    ("a row with a system turn", lambda row: _has_role(row, "system")),
)


def _shown(each: _Looked, label: str, speller: TokenText, marks: set[int], max_length: int) -> MaskedExample:
    example = each.examples[-1]
    ids, mask = example.input_ids, _trained(example)
    tokens = [
        Token(text=text, id=token, trained=bool(on), special=token in marks)
        for text, token, on in zip(speller.spell(ids), ids, mask, strict=True)
    ]
    head, tail = SHOWN
    omitted = max(0, len(ids) - head - tail)
    shown = tokens[:head] + tokens[head + omitted :]
    cut = max_length if max_length <= head else max(head, max_length - omitted)
    return MaskedExample(
        label=label,
        id=each.row.id,
        tokens=tuple(shown),
        n_tokens=len(ids),
        n_trained=int(mask.sum()),
        omitted=omitted,
        omitted_at=head if omitted else 0,
        lost_from=cut if len(ids) > max_length else None,
    )
