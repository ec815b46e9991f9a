"""Examples into tensors, in an order that can be resumed at any step."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.data.chat import IGNORE_INDEX, Encoded


class Batch(NamedTuple):
    """One micro-batch, padded on the right to its longest example."""

    input_ids: Tensor
    """[b, s] int64."""
    labels: Tensor
    """[b, s] int64, -100 where nothing is trained (prompt and padding). Not shifted."""
    attention_mask: Tensor
    """[b, s] int64, 1 on tokens and 0 on padding."""
    position_ids: Tensor | None = None
    """[b, s] int64 of packed rows: it restarts at 0 with every document; None where a row is one document."""


class Truncated(NamedTuple):
    """Examples that fit, and what it cost."""

    examples: Sequence[Encoded]
    shortened: int
    """Kept examples that lost their tail."""
    dropped: int
    """Examples left out because no trained token was left of them."""


def collate(examples: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad examples to a common length.

    Args:
        examples: At least one.
        pad_id: Fills ``input_ids``; any id will do, for the mask hides it.

    Returns:
        A batch on the CPU.

    Raises:
        ValueError: Without examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    width = max(len(example.input_ids) for example in examples)
    return Batch(
        torch.tensor([_padded(example.input_ids, width, pad_id) for example in examples], dtype=torch.int64),
        torch.tensor(
            [_padded(example.labels, width, IGNORE_INDEX) for example in examples], dtype=torch.int64
        ),
        torch.tensor([_padded([1] * len(e.input_ids), width, 0) for e in examples], dtype=torch.int64),
    )


def collate_packed(rows: Sequence[Sequence[Encoded]], pad_id: int) -> Batch:
    """Lay documents end to end in rows, each to be read as if it stood alone.

    Positions restart with every document: from them a model tells which tokens may see each other. The first
    token of a document is no target, for what stands before it belongs to another one. Padding is a document
    of its own.

    Args:
        rows: The documents of every row; at least one row, and no document is empty.
        pad_id: Fills ``input_ids``.

    Raises:
        ValueError: Without rows.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    width = max(sum(len(example.input_ids) for example in row) for row in rows)
    ids, labels, mask, positions = [], [], [], []
    for row in rows:
        tokens = [token for example in row for token in example.input_ids]
        filler = width - len(tokens)
        ids.append(_padded(tokens, width, pad_id))
        targets = [label for example in row for label in (IGNORE_INDEX, *example.labels[1:])]
        labels.append(_padded(targets, width, IGNORE_INDEX))
        mask.append(_padded([1] * len(tokens), width, 0))
        lengths = [*(len(example.input_ids) for example in row), filler]
        positions.append([place for length in lengths for place in range(length)])
    return Batch(*(torch.tensor(values, dtype=torch.int64) for values in (ids, labels, mask, positions)))


def pack_bins(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Choose which documents share a row: best fit decreasing (Johnson 1974, Fast algorithms for bin packing).

    The longest document comes first, and each goes where it leaves the least room. No document is cut. The
    number of rows depends on the lengths alone; the seed decides which of equally long documents goes where.

    Args:
        lengths: Tokens of each document.
        capacity: Most tokens of a row.
        seed: Breaks ties.

    Returns:
        Rows of document numbers; every document is in exactly one.

    Raises:
        ValueError: If a document is longer than a row.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    # Bit n is set while a row with room for n more tokens exists: the lowest one from a length on is the best fit.
    rooms = 0
    for document in sorted(example_order(len(lengths), 0, seed), key=lambda n: -lengths[n]):
        length = lengths[document]
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        left = room - length
        by_room.setdefault(left, []).append(row)
        rooms |= 1 << left
    return rows


def _padded(values: list[int], width: int, filler: int) -> list[int]:
    return values + [filler] * (width - len(values))


def truncate(encoded: Iterable[Encoded], max_length: int) -> Truncated:
    """Cut examples to their first tokens.

    An example whose answer lies wholly behind the cut would teach nothing and make the mean loss
    of an all-masked batch undefined, so it is dropped and counted.

    Args:
        encoded: Examples of any length.
        max_length: Most tokens an example may have.
    """
    examples: list[Encoded] = []
    shortened = dropped = 0
    for example in encoded:
        cut = Encoded(example.input_ids[:max_length], example.labels[:max_length])
        # The first position predicts nothing: its label is shifted away.
        if all(label == IGNORE_INDEX for label in cut.labels[1:]):
            dropped += 1
            continue
        shortened += len(cut.input_ids) < len(example.input_ids)
        examples.append(cut)
    return Truncated(examples, shortened, dropped)


def example_order(n: int, epoch: int, seed: int) -> list[int]:
    """Return the order of ``n`` examples in one epoch; a function of its arguments alone."""
    order = list(range(n))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order


def steps_per_epoch(n_examples: int, micro_batch: int, accumulation: int) -> int:
    """Return the optimizer steps of one epoch, the last one perhaps smaller."""
    return math.ceil(n_examples / (micro_batch * accumulation))


def step_batches(
    n_examples: int, micro_batch: int, accumulation: int, seed: int, start_step: int = 0
) -> Iterator[list[list[int]]]:
    """Yield the micro-batches of every optimizer step, without end.

    Starting at step k gives exactly what an uninterrupted run would have seen from step k on.
    The last step of an epoch holds what is left; no step crosses into the next epoch.

    Args:
        n_examples: Examples in an epoch.
        micro_batch: Examples per forward pass.
        accumulation: Forward passes per optimizer step.
        seed: Decides the order of each epoch.
        start_step: Steps already done.

    Raises:
        ValueError: Without examples.
    """
    if n_examples < 1:
        raise ValueError("there are no examples to train on")
    per_epoch = steps_per_epoch(n_examples, micro_batch, accumulation)
    size = micro_batch * accumulation
    epoch, done = divmod(start_step, per_epoch)
    while True:
        order = example_order(n_examples, epoch, seed)
        for first in range(done * size, n_examples, size):
            step = order[first : first + size]
            yield [step[i : i + micro_batch] for i in range(0, len(step), micro_batch)]
        epoch, done = epoch + 1, 0


def pack(token_streams: Iterable[Sequence[int]], length: int, eos_id: int) -> Iterator[list[int]]:
    """Join documents into rows of one length, for pretraining.

    Every document ends with EOS and may continue in the next row. A remainder shorter than a row
    is left out.

    Args:
        token_streams: Tokens of each document, without EOS.
        length: Tokens per row.
        eos_id: Closes each document.

    Returns:
        Rows of exactly ``length`` ids.
    """
    buffer: list[int] = []
    for tokens in token_streams:
        buffer.extend(tokens)
        buffer.append(eos_id)
        full = len(buffer) - len(buffer) % length
        for first in range(0, full, length):
            yield buffer[first : first + length]
        del buffer[:full]
