"""Borrowing a model: evaluation mode, cache on, memory that runs out, and all as it was afterwards."""

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from core.errors import ResourceError

R = TypeVar("R")


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into evaluation mode with its key-value cache on, and give it back as it was.

    The model's own generation settings are set aside: Transformers fills what a call leaves open from
    them, and a repetition penalty there would make this decoding another than llama.cpp's.
    """
    modes = [(module, module.training) for module in model.modules()]
    habits, config = model.generation_config, model.config
    cached = getattr(config, "use_cache", True)
    model.eval()
    model.generation_config, config.use_cache = GenerationConfig(), True
    try:
        yield
    finally:
        model.generation_config, config.use_cache = habits, cached
        for module, training in modes:
            module.training = training


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave every generator as it was, so that sampling in the middle of training changes nothing."""
    python, numbers, torches = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(torches)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def in_batches(
    order: Sequence[int],
    size: int,
    run: Callable[[Sequence[int]], R],
    fits: Callable[[Sequence[int]], bool] = lambda chosen: True,
) -> Iterator[tuple[Sequence[int], R]]:
    """Run items in batches, halving them when memory runs out.

    Args:
        order: Items, the largest first: if memory runs out at all, it does so at once.
        size: Items of a batch.
        run: Computes one batch.
        fits: Tells beforehand whether a batch can be afforded.

    Yields:
        The items of a batch, and what came of them.

    Raises:
        ResourceError: If memory runs out on a single item.
    """
    start = 0
    while start < len(order):
        chosen = order[start : start + size]
        while len(chosen) > 1 and not fits(chosen):
            chosen = chosen[: len(chosen) // 2]
        result = _attempt(run, chosen)
        if result is None:
            size = max(1, len(chosen) // 2)
            continue
        yield chosen, result[0]
        start += len(chosen)


def _attempt(run: Callable[[Sequence[int]], R], chosen: Sequence[int]) -> tuple[R] | None:
    """Return a batch's result, or None if there was too little memory for it."""
    try:
        return (run(chosen),)
    except torch.OutOfMemoryError as error:
        if len(chosen) == 1:
            raise ResourceError(
                "not enough GPU memory for a single question",
                where="evaluation",
                fix="lower evaluation.max_new_tokens or diversity.samples, or shorten the longest prompts",
            ) from error
    # Outside the handler: the error holds the frames, and they hold the tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
