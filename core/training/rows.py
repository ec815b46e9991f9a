"""What a row of a batch is: one example, or several packed end to end."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from core.data.batches import Batch, collate, collate_packed, pack_bins
from core.data.chat import Encoded
from core.models.engines import framework_of
from core.training.config import TrainingConfig
from core.training.head import causal_model
from core.training.packing import packing_obstacle, unpackable

MASKED_ATTENTION = frozenset({"sdpa", "eager"})
"""Attention implementations that Transformers gives a mask made from the positions of packed rows."""


class SftInputs(NamedTuple):
    """Tokenized examples."""

    train: Sequence[Encoded]
    val: Sequence[Encoded]
    pad_id: int
    window: int | None = None
    """Tokens of a packed row; the length of the longest example if it is not given."""


class Rows:
    """The rows that batches are made of; a function of examples and settings alone."""

    def __init__(self, inputs: SftInputs, config: TrainingConfig) -> None:
        """Choose which examples share a row, if they are packed."""
        self.inputs = inputs
        self.packed: list[list[int]] | None = None
        self.packed_val: list[list[int]] | None = None
        if config.packing:
            train, val = ([len(each.input_ids) for each in part] for part in (inputs.train, inputs.val))
            window = inputs.window or max([*train, *val], default=1)
            self.packed = pack_bins(train, window, config.seed)
            self.packed_val = pack_bins(val, window, config.seed)

    def __len__(self) -> int:
        """Return the rows of an epoch."""
        return len(self.inputs.train) if self.packed is None else len(self.packed)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest training row."""
        train = self.inputs.train
        if self.packed is None:
            return max((len(each.input_ids) for each in train), default=1)
        return max((sum(len(train[n].input_ids) for n in row) for row in self.packed), default=1)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Put training rows into a batch."""
        return self._batch(self.inputs.train, self.packed, rows)

    def validation(self, size: int) -> Iterator[Batch]:
        """Yield the validation rows in batches, always in the same order."""
        rows = range(len(self.inputs.val if self.packed_val is None else self.packed_val))
        for first in range(0, len(rows), size):
            yield self._batch(self.inputs.val, self.packed_val, rows[first : first + size])

    def _batch(
        self, examples: Sequence[Encoded], packed: list[list[int]] | None, rows: Sequence[int]
    ) -> Batch:
        if packed is None:
            return collate([examples[row] for row in rows], self.inputs.pad_id)
        return collate_packed([[examples[n] for n in packed[row]] for row in rows], self.inputs.pad_id)


def require_packable(model: nn.Module, window: int | None) -> None:
    """Make sure that documents in one row cannot see each other under this model.

    Args:
        model: With an adapter or without.
        window: Tokens of a row.

    Raises:
        ConfigError: If layers carry a state from document to document, the attention takes no mask, or the rope
            of a short document depends on the longest one beside it.
    """
    settings: Any = causal_model(model).config
    attention = getattr(settings, "_attn_implementation", None)
    obstacle = packing_obstacle(settings.to_dict(), framework_of(model), window)
    if obstacle is None and attention not in MASKED_ATTENTION:
        obstacle = unpackable(
            f"the attention implementation {attention} does not keep documents of one row apart"
        )
    if obstacle:
        raise obstacle
