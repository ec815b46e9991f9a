"""How likely a model finds given tokens, in batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batches import collate
from core.data.chat import IGNORE_INDEX, Encoded

CELLS = 1 << 28
"""Most logits held at once: a gigabyte in float32."""


def predicted(examples: Sequence[Encoded]) -> list[int]:
    """Return the positions whose next token any of the examples is judged by."""
    return sorted(
        {
            place
            for example in examples
            for place, label in enumerate(example.labels[1:])
            if label != IGNORE_INDEX
        }
    )


def affordable(examples: Sequence[Encoded], vocabulary: int) -> bool:
    """Tell whether the logits of a batch stay within bounds."""
    return len(examples) * len(predicted(examples)) * vocabulary <= CELLS


@torch.no_grad()
def token_losses(model: PreTrainedModel, examples: Sequence[Encoded], pad_id: int) -> list[list[float]]:
    """Return the negative log-likelihoods, in nats, of the labelled tokens of each example.

    Rows are padded on the right, as in training. Logits are computed only where a label follows, and
    normalised in float32.

    Args:
        model: A causal language model in evaluation mode.
        examples: Tokens and labels; the first token of a row cannot be predicted.
        pad_id: Fills up shorter rows.

    Returns:
        One list per example, in the order of its labelled tokens.
    """
    batch, places = collate(examples, pad_id), predicted(examples)
    if not places:
        return [[] for _ in examples]
    device = model.device
    kept = torch.tensor(places, device=device)
    logits = _logits(model, batch.input_ids.to(device), batch.attention_mask.to(device), kept)
    labels = batch.labels.to(device)[:, kept + 1]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(labels)
    rows = zip(losses.tolist(), (labels != IGNORE_INDEX).tolist(), strict=True)
    return [[loss for loss, counts in zip(row, mask, strict=True) if counts] for row, mask in rows]


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
    """Return the logits at the kept positions, [b, k, v]."""
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    known = "logits_to_keep" in inspect.signature(inner.forward).parameters
    extra = {"logits_to_keep": kept} if known else {}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
    return logits if known else logits[:, kept]
