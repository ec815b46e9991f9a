"""Does the file compute what the checkpoint computes? Logits of both, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.deployment.llama.runtime import LlamaRuntime
from core.quantization.distance import DistanceSum
from core.quantization.reports import Distance


def compare_logits(
    model_dir: Path,
    gguf_path: Path,
    *,
    tokens: int = 64,
    seed: int = 3407,
    threads: int = 1,
    context_length: int | None = None,
    sequences: Sequence[Sequence[int]] = (),
) -> Distance:
    """Compare a file with the checkpoint it was written from, on random tokens and on given ones.

    Conversions fail silently: a wrong rotary base or a lost norm still produces
    fluent nonsense. Logits do not lie.

    Args:
        model_dir: Checkpoint folder; run in float32 by transformers.
        gguf_path: The file; run with float32 keys and values.
        tokens: Length of the random sample; 0 for none.
        seed: Draws the sample.
        threads: Threads for llama.cpp.
        context_length: Window to open the file with; default fits the longest sequence.
        sequences: Token ids of real prompts and answers.

    Returns:
        The distances over all positions.

    Raises:
        ModelError: If llama.cpp refuses the file.
        EngineFailed: If llama.cpp dies.
        ValueError: If there is nothing to compare.
    """
    window = context_length or max([tokens, *map(len, sequences)]) + 1
    total = DistanceSum()
    model = _reference_model(model_dir)
    with LlamaRuntime(gguf_path, context_length=window, threads=threads, exact=True) as runtime:
        sample = [_sample(tokens, runtime.vocabulary, seed)] if tokens else []
        for ids in [*sample, *map(list, sequences)]:
            total.add(_reference(model, ids), runtime.logits(ids))
    return total.total()


def _sample(tokens: int, vocabulary: int, seed: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(0, vocabulary, tokens)]


def _reference_model(model_dir: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return model


def _reference(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return np.asarray(logits.float().numpy())
