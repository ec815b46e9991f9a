"""Does the file compute what the checkpoint computes? Logits of both, side by side."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from core.deployment.llama.runtime import LlamaRuntime


@dataclass(frozen=True)
class ParityReport:
    """How far the file's logits are from the checkpoint's."""

    max_abs: float
    """Largest difference of any logit."""
    kl: float
    """Mean divergence of the next-token distributions from the checkpoint's, in nats."""
    argmax_agreement: float
    """Share of positions with the same likeliest token."""
    tokens: int


def compare_logits(
    model_dir: Path,
    gguf_path: Path,
    *,
    tokens: int = 64,
    seed: int = 3407,
    threads: int = 1,
    context_length: int | None = None,
) -> ParityReport:
    """Compare a file with the checkpoint it was written from, on random tokens.

    Conversions fail silently: a wrong rotary base or a lost norm still produces
    fluent nonsense. Logits do not lie.

    Args:
        model_dir: Checkpoint folder; run in float32 by transformers.
        gguf_path: The file; run with float32 keys and values.
        tokens: Length of the random sample.
        seed: Draws the sample.
        threads: Threads for llama.cpp.
        context_length: Window to open the file with; default fits the sample.

    Returns:
        The distances.

    Raises:
        ModelError: If llama.cpp refuses the file.
        EngineFailed: If llama.cpp dies.
    """
    window = context_length or tokens + 1
    with LlamaRuntime(gguf_path, context_length=window, threads=threads, exact=True) as runtime:
        ids = _sample(tokens, runtime.vocabulary, seed)
        found = runtime.logits(ids)
    return _distances(_reference(model_dir, ids), found)


def _sample(tokens: int, vocabulary: int, seed: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(0, vocabulary, tokens)]


def _reference(model_dir: Path, ids: list[int]) -> NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return np.asarray(logits.float().numpy())


def _distances(reference: NDArray[np.float32], found: NDArray[np.float32]) -> ParityReport:
    wanted, given = _log_softmax(reference), _log_softmax(found)
    divergence = (np.exp(wanted) * (wanted - given)).sum(axis=-1)
    return ParityReport(
        max_abs=float(np.abs(reference.astype(np.float64) - found).max()),
        kl=float(divergence.mean()),
        argmax_agreement=float((reference.argmax(-1) == found.argmax(-1)).mean()),
        tokens=len(reference),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
