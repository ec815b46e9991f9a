"""The output head: applied to trained positions alone, and to a few of them at a time.

Logits are the largest tensor of a training step: 4 x 2048 tokens over a vocabulary of 262,144 are 8.6 GB in
float32, three times over in the backward pass. Here at most ``CHUNK_NUMBERS`` of them exist at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from core.kernels.linear_cross_entropy import summed_linear_cross_entropy

CHUNK_NUMBERS = 1 << 26
"""Logits alive at once. A chunk costs about 14 bytes for each while it is differentiated: 2 for the logits in
bfloat16, 4 for their float32 copy or gradient, 4 for the log-probabilities, 4 for the two gradients in flight."""


class Head(NamedTuple):
    """A causal language model taken apart before its output head."""

    backbone: nn.Module
    """Token ids to hidden states."""
    project: nn.Module
    """Hidden states to logits."""
    finish: Callable[[Tensor], Tensor]
    """What the family does to its logits."""
    vocabulary: int
    softcap: float | None = None
    """Bound of the logits."""
    scale: float = 1.0
    """Factor of the logits, before they are bounded."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [n, e] into logits [n, v]."""
        return self.finish(self.project(hidden))

    def fused_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy of [n, e] and [n], its gradient made on the way: no logit twice."""
        project: Any = self.project
        weight, bias = project.weight, project.bias
        rows = rows.to(weight.dtype)
        return summed_linear_cross_entropy(
            rows, weight, targets, bias=bias, softcap=self.softcap, scale=self.scale
        )

    @property
    def is_plain(self) -> bool:
        """Tell whether the head is one frozen or trained matrix, without an adapter or packing."""
        bias = self.project.bias
        return type(self.project) is nn.Linear and not (isinstance(bias, Tensor) and bias.requires_grad)


def causal_model(model: nn.Module) -> nn.Module:
    """Return the model under an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.no_grad()
def find_head(model: nn.Module, device: torch.device) -> Head | None:
    """Take a model apart, and make sure on a few tokens that the parts compute the very same logits.

    Families scale and cap their logits in ways of their own. One that is not known here gives None, and is
    then run whole: slower, never wrong.

    Args:
        model: A causal language model, with an adapter or without; its mode is restored.
        device: Where its inputs go.
    """
    whole = causal_model(model)
    if not isinstance(whole, PreTrainedModel):
        return None
    project, backbone = whole.get_output_embeddings(), whole.base_model
    if project is None or backbone is whole:
        return None
    settings = whole.config.get_text_config()
    head = Head(
        backbone,
        project,
        finishing(settings),
        settings.vocab_size,
        settings_cap(settings),
        factor_of(settings),
    )
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 9, device=device)[None] % settings.vocab_size
    expected = model(input_ids=ids, use_cache=False).logits
    found = head.logits(backbone(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(was_training)
    return head if torch.equal(expected, found) else None


def finishing(settings: Any) -> Callable[[Tensor], Tensor]:
    """Return what a family does between its output matrix and its logits.

    Gemma 2 and its kin bend them towards a cap, c tanh(x / c) (arXiv:2408.00118, section 2); Granite divides
    them, Cohere multiplies them.
    """
    cap = getattr(settings, "final_logit_softcapping", None)
    divisor, factor = getattr(settings, "logits_scaling", None), getattr(settings, "logit_scale", None)

    def finish(logits: Tensor) -> Tensor:
        logits = logits / divisor if divisor is not None else logits
        logits = logits * factor if factor is not None else logits
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    return finish


def settings_cap(settings: Any) -> float | None:
    """Return the bound of a family's logits."""
    cap = getattr(settings, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def factor_of(settings: Any) -> float:
    """Return what a family multiplies its logits by."""
    divisor, factor = getattr(settings, "logits_scaling", None), getattr(settings, "logit_scale", None)
    return (1.0 if factor is None else float(factor)) / (1.0 if divisor is None else float(divisor))


def summed_loss(
    rows: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    vocabulary: int,
    most: int = CHUNK_NUMBERS,
) -> Tensor:
    """Return the summed cross-entropy, float32, shape [], a chunk of rows at a time.

    Args:
        rows: What ``logits`` turns into logits [n, v], one row per target: [n, e].
        targets: Token ids [n].
        logits: The output head. It runs again in the backward pass unless everything fits into one chunk.
        vocabulary: v.
        most: Logits alive at once.
    """

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(logits(part).float(), wanted, reduction="sum")

    size = max(1, most // vocabulary)
    if len(targets) <= size:
        return chunk(rows, targets)
    losses = [
        checkpoint(chunk, part, wanted, use_reentrant=False)
        for part, wanted in zip(rows.split(size), targets.split(size), strict=True)
    ]
    return torch.stack(losses).sum()
