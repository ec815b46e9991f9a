"""The language-modelling step: next-token loss, normalised over the whole optimizer step."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from core.data.batches import Batch
from core.data.chat import IGNORE_INDEX
from core.training.loop import StepLoss

Autocast = Callable[[], AbstractContextManager[object]]


def autocast(device: torch.device, dtype: torch.dtype | None) -> Autocast:
    """Return a factory of autocast blocks; a plain block for float32."""
    if dtype in (None, torch.float32):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Return the summed next-token cross-entropy of one batch, float32, shape [].

    Logits of a position are scored against the next token's label; IGNORE_INDEX is not trained.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits  # [b, s, v]
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORE_INDEX
    # Only trained positions reach the float32 copy: prompts often outnumber answers.
    scores = logits[:, :-1][wanted].float()
    return cross_entropy(scores, targets[wanted], reduction="sum")


def trained_tokens(batch: Batch) -> int:
    """Count the labels that carry loss."""
    return int((batch.labels[:, 1:] != IGNORE_INDEX).sum())


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

    def __call__(self, micro_batches: Sequence[object]) -> StepLoss:
        """Leave the step's gradient in the parameters and return its mean loss per token."""
        self.model.train()
        batches = [b for b in micro_batches if isinstance(b, Batch)]
        total = sum(trained_tokens(b) for b in batches)
        loss = 0.0
        for batch in batches:
            with self.cast():
                share = loss_sum(self.model, to_device(batch, self.device)) / total
            (self.scaler.scale(share) if self.scaler else share).backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
        return StepLoss(loss, total)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device."""
    return Batch(*(tensor.to(device) for tensor in batch))


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch], device: torch.device, cast: Autocast) -> float:
    """Return the loss per trained token over batches, in evaluation mode; the mode is restored."""
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        with cast():
            total += float(loss_sum(model, to_device(batch, device)))
        tokens += trained_tokens(batch)
    model.train(was_training)
    return total / tokens
