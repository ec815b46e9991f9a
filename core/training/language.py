"""The language-modelling step: next-token loss, normalised over the whole optimizer step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.data.batches import Batch
from core.data.chat import IGNORE_INDEX
from core.models.fused.gathering import Gathering
from core.models.fused.state import fused_state
from core.training.head import CHUNK_NUMBERS, find_head, summed_loss
from core.training.loop import StepLoss

Autocast = Callable[[], AbstractContextManager[object]]
NEARLY_ALL = 0.99
"""Share of labelled positions from which on the head multiplies all of them: the others cost less than a gather of the
rows, and a scatter of their gradients (0.9 ms of 893 on 8B, all but 8 of 16,384 labelled)."""


def autocast(device: torch.device, dtype: torch.dtype | None) -> Autocast:
    """Return a factory of autocast blocks; a plain block for float32."""
    if dtype in (None, torch.float32):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


class Targets(NamedTuple):
    """Where a batch carries loss."""

    places: Tensor
    """[n] int64, positions of the flattened batch [b * s] whose logits are scored."""
    tokens: Tensor
    """[n] int64, the token that follows each."""


def targets_of(batch: Batch) -> Targets:
    """Find the trained positions; on the CPU, so that a GPU need not wait to be asked how many there are."""
    following = batch.labels[:, 1:]
    wanted = following != IGNORE_INDEX
    rows, columns = torch.nonzero(wanted, as_tuple=True)
    return Targets(rows * batch.labels.shape[1] + columns, following[wanted])


def trained_tokens(batch: Batch) -> int:
    """Count the labels that carry loss."""
    return int((batch.labels[:, 1:] != IGNORE_INDEX).sum())


class NextToken:
    """The summed next-token loss of a batch under one model."""

    def __init__(
        self, model: nn.Module, device: torch.device, cast: Autocast = nullcontext, most: int = CHUNK_NUMBERS
    ) -> None:
        """Look for the model's output head.

        Args:
            model: A causal language model.
            device: Where it lies.
            cast: How it is run.
            most: Logits alive at once.
        """
        self.model, self.device, self.most = model, device, most
        with cast():
            self.head = find_head(model, device)
        self.is_fused = fused_state(model) is not None

    def __call__(self, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of a batch that lies on the CPU; float32, shape []."""
        places, tokens = self._targets(batch)
        inputs: dict[str, Any] = {
            name: to_device(value, self.device) for name, value in inputs_of(batch).items()
        }
        if self.is_fused:
            inputs |= self._documents(batch)
        if self.head:
            hidden = self.head.backbone(**inputs, use_cache=False).last_hidden_state  # [b, s, e]
            rows = rows_at(hidden.flatten(0, 1), places)
            if self.is_loss_fused:
                return self.head.fused_loss(rows, tokens)
            return summed_loss(rows, tokens, self.head.logits, self.head.vocabulary, self.most)
        logits = self.model(**inputs, use_cache=False).logits  # [b, s, v]
        rows = rows_at(logits.flatten(0, 1), places)
        return summed_loss(rows, tokens, lambda part: part, rows.shape[1], self.most)

    @property
    def is_loss_fused(self) -> bool:
        """Tell whether the loss of the fused engine is taken."""
        return self.is_fused and self.head is not None and self.head.is_plain

    @property
    def may_take_all(self) -> bool:
        """Tell whether the head may be given positions without a label, which this loss passes over.

        A head that is trained may not: of what is not finite there, nothing times it would be no number.
        """
        project: Any = self.head.project if self.head is not None else None
        return self.is_loss_fused and not project.weight.requires_grad

    def _targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return the positions that are scored, None for all, and the token that follows each."""
        places, tokens = targets_of(batch)
        total = batch.labels.numel()
        if self.may_take_all and len(places) >= NEARLY_ALL * total:
            tokens = torch.full((total,), IGNORE_INDEX).index_copy(0, places, tokens)
            return None, to_device(tokens, self.device)
        return to_device(places, self.device), to_device(tokens, self.device)

    def _documents(self, batch: Batch) -> dict[str, Any]:
        """Say where documents begin, found on the CPU so that the GPU need not be asked."""
        if batch.position_ids is None:
            return {}
        starts = torch.nonzero(batch.position_ids.flatten() == 0).flatten()
        starts = torch.cat([starts, starts.new_tensor([batch.position_ids.numel()])]).to(torch.int32)
        longest = int(starts.diff().max())
        starts = to_device(starts, self.device)
        return {
            "cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip


def rows_at(rows: Tensor, places: Tensor | None) -> Tensor:
    """Return some rows of [t, e], or all."""
    return rows if places is None else rows.index_select(0, places)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Choose what a model is told about a batch.

    Packed rows are told apart by their positions, which Transformers only looks at without a mask. Padding on
    the right needs no mask either: no token of a causal model sees what comes after it, and without a mask
    the fast attention kernels can be used. A mask with padding elsewhere is passed on.
    """
    if batch.position_ids is not None:
        return {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    if bool((batch.attention_mask[:, 1:] <= batch.attention_mask[:, :-1]).all()):
        return {"input_ids": batch.input_ids}
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting for a GPU."""
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class LanguageStep:
    """Accumulates one optimizer step over its micro-batches.

    Dividing by the tokens of the *whole* step makes 1 x 16, 4 x 4 and 16 x 1 give the same gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        cast: Autocast,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Remember the model and how to run it."""
        self.model, self.device, self.cast, self.scaler = model, device, cast, scaler
        self.loss = NextToken(model, device, cast)

    def __call__(self, micro_batches: Sequence[object]) -> StepLoss:
        """Leave the step's gradient in the parameters and return its mean loss per token."""
        if not all(each.training for each in self.model.modules()):
            # Asked first: to tell the 2,665 modules of an 8B model with adapters takes 11 ms, in which a GPU may wait.
            self.model.train()
        batches = [b for b in micro_batches if isinstance(b, Batch)]
        counts = [trained_tokens(batch) for batch in batches]
        total = sum(counts)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        trained = [batch for batch, count in zip(batches, counts, strict=True) if count]
        with gathered(self.model, len(trained)) as begin:
            for batch in trained:
                begin()
                with self.cast():
                    share = self.loss(batch) / total
                (self.scaler.scale(share) if self.scaler else share).backward()  # type: ignore[no-untyped-call]
                # Added up where it lies: reading it would make the GPU wait for every micro-batch.
                loss += share.detach()
                # Its graph holds what the layers kept in main memory; the next micro-batch may have that.
                del share
        return StepLoss(loss, total, sum(int(batch.attention_mask.sum()) for batch in batches))


@contextmanager
def gathered(model: nn.Module, micro_batches: int) -> Iterator[Callable[[], None]]:
    """Let the layers of a fused model add up the gradients of a step's micro-batches; others leave it to autograd.

    Args:
        model: Any model.
        micro_batches: How many there will be.

    Yields:
        What is to be called before each of them. After the last one all gradients are in ``.grad``; if an error ends
        the step sooner, what was gathered is gone.
    """
    state = fused_state(model)
    if state is None or micro_batches < 2:
        yield lambda: None
        return
    state.gathering = gathering = Gathering(micro_batches)
    try:
        yield gathering.begin
        gathering.settle()
    finally:
        state.gathering = None


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    cast: Autocast,
    loss: NextToken | None = None,
) -> float:
    """Return the loss per trained token over batches, in evaluation mode; the mode is restored.

    Args:
        model: The model.
        batches: At least one token of theirs carries loss.
        device: Where the model lies.
        cast: How it is run.
        loss: The model's loss, if it was prepared before.
    """
    loss = loss or NextToken(model, device, cast)
    was_training = model.training
    model.eval()
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches:
        with cast():
            total += loss(batch)
        tokens += trained_tokens(batch)
    model.train(was_training)
    return float(total) / tokens
