"""Random rows, the same for every system."""

import math
import random
from collections.abc import Sequence

import torch

from core.data.batches import Batch
from core.data.chat import IGNORE_INDEX
from core.training.benchmark.case import Case

TOKENS = 50_000
"""Ids are drawn below this, so that vocabularies of different sizes get like work."""
DOCUMENT, SPREAD, SHORTEST = 600, 0.7, 8
"""Mean length of packed documents, the sigma of its logarithm, and the least."""


def optimizer_step(case: Case, vocabulary: int, step: int, micro_batch: int) -> list[Batch]:
    """Return one step on the CPU in micro-batches; its rows are a function of the case's load and the step alone."""
    return split(draw(case, vocabulary, case.rows, case.length, f"{case.seed}:{step}"), micro_batch)


def parity_batch(case: Case, vocabulary: int) -> Batch:
    """Return the two rows that gradients are compared on."""
    return draw(case, vocabulary, 2, case.parity_length, f"{case.seed}:parity")


def draw(case: Case, vocabulary: int, rows: int, length: int, seed: str) -> Batch:
    """Draw rows without padding.

    Args:
        case: Says whether rows are packed and what is learned.
        vocabulary: Ids lie below it.
        rows: How many.
        length: Tokens of each.
        seed: Of tokens and document lengths.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    ids = torch.randint(3, min(vocabulary, TOKENS), (rows, length), generator=generator)
    documents = [lengths(rng, length) if case.packed else [length] for _ in range(rows)]
    positions = torch.tensor([[place for n in row for place in range(n)] for row in documents])
    sizes = torch.tensor([[n for n in row for _ in range(n)] for row in documents])
    labels = ids.clone()
    if case.labels == "half":
        labels[positions < sizes // 2] = IGNORE_INDEX
    if not case.packed:
        return Batch(ids, labels, torch.ones_like(ids))
    # The token before it belongs to another document.
    labels[positions == 0] = IGNORE_INDEX
    return Batch(ids, labels, torch.ones_like(ids), positions)


def lengths(rng: random.Random, length: int) -> list[int]:
    """Draw log-normal document lengths that fill a row exactly."""
    mean = min(DOCUMENT, length / 3)
    centre = math.log(mean) - SPREAD**2 / 2
    found: list[int] = []
    left = length
    while left:
        wanted = max(SHORTEST, round(rng.lognormvariate(centre, SPREAD)))
        # What would be left over goes with the last one.
        found.append(left if left - wanted < SHORTEST else wanted)
        left -= found[-1]
    return found


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into micro-batches of so many rows."""
    ids, labels, mask = (tensor.split(size) for tensor in batch[:3])
    places = [None] * len(ids) if batch.position_ids is None else batch.position_ids.split(size)
    return [Batch(*parts) for parts in zip(ids, labels, mask, places, strict=True)]


def documents_of(batch: Batch) -> list[Batch]:
    """Return every document as a batch of its own."""
    found: list[Batch] = []
    for row in split(batch, 1):
        starts = [0]
        if row.position_ids is not None:
            starts = torch.nonzero(row.position_ids[0] == 0).flatten().tolist()
        ends = [*starts[1:], row.input_ids.shape[1]]
        for start, end in zip(starts, ends, strict=True):
            found.append(Batch(*(t[:, start:end] for t in (row.input_ids, row.labels, row.attention_mask))))
    return found


def document_lengths(batches: Sequence[Batch]) -> list[int]:
    """Return the tokens of every document."""
    return [doc.input_ids.shape[1] for batch in batches for doc in documents_of(batch)]
