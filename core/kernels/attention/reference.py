"""Causal attention with grouped keys, a window, and documents that do not see each other: the definition."""

import torch
from torch import Tensor


def visible(
    tokens: int,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Say who sees whom.

    Args:
        tokens: s.
        window: A token sees itself and ``window - 1`` tokens before it; None sees all.
        documents: [b, s] number of the document of each token; None takes a row as one document.
        device: Where the result goes.

    Returns:
        [1 or b, 1, s, s] bool.
    """
    place = torch.arange(tokens, device=device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    if documents is None:
        return seen[None, None]
    same = documents[:, :, None] == documents[:, None, :]
    return (seen & same)[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Compute softmax(scale q k') v (arXiv:1706.03762, section 3.2.1).

    Args:
        q: [b, h, s, d].
        k: [b, g, s, d], h a multiple of g.
        v: [b, g, s, d].
        seen: [1 or b, 1, s, s] bool; every token sees at least itself.
        scale: Factor of the scores.

    Returns:
        [b, h, s, d] in q's dtype; softmax in float32 at least.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=exact).to(q.dtype) @ v
