"""Settings that suit a card: the product owner's tables, and a search with the estimates of this package."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from core.models.config import LoraConfig
from core.models.resources.shapes import PUBLISHED, ModelShape
from core.models.resources.training import Memory, TrainingLoad, estimate_training

SHORTEST = 256
"""Smallest model.max_seq_length."""
MOST_ROWS = 64
"""Largest training.per_device_train_batch_size."""
ENOUGH_TOKENS = 16_384
"""Tokens of a micro-batch beyond which a step gets no faster per token (measured on an H200)."""


class VramRow(NamedTuple):
    """Settings that fit a card, as the product owner's table gives them."""

    vram_gb: int
    r: Literal[8, 16, 32]
    batch: tuple[int, int]
    """Smallest and largest micro-batch."""
    grad_accum: int
    window: int


VRAM_TABLE = (
    VramRow(8, 8, (1, 2), 8, 1024),
    VramRow(16, 16, (2, 4), 4, 2048),
    VramRow(24, 32, (4, 8), 2, 4096),
)


def recommended_settings(vram_gb: float) -> dict[str, int]:
    """Suggest settings for a card of so much memory, as dotted config keys, with the lower micro-batch."""
    row = next((row for row in reversed(VRAM_TABLE) if vram_gb >= row.vram_gb), VRAM_TABLE[0])
    return {
        "lora.r": row.r,
        "training.per_device_train_batch_size": row.batch[0],
        "training.gradient_accumulation_steps": row.grad_accum,
        "model.max_seq_length": row.window,
    }


class HardwareRow(NamedTuple):
    """What a model asks for when it is trained in 4 bits, as the product owner's table gives it."""

    min_gb: int
    recommended_gb: int


HARDWARE: dict[str, HardwareRow] = {
    "google/gemma-3-4b-it": HardwareRow(8, 12),
    "google/gemma-3-12b-it": HardwareRow(16, 24),
    "google/gemma-3-27b-it": HardwareRow(24, 48),
    "meta-llama/Llama-3.1-8B-Instruct": HardwareRow(10, 10),
    "mistralai/Mistral-7B-Instruct-v0.3": HardwareRow(8, 8),
    "Qwen/Qwen2.5-7B-Instruct": HardwareRow(10, 10),
}


def hardware_row(shape: ModelShape) -> HardwareRow | None:
    """Look a shape up in the table; None for a model it does not name."""
    return next((row for name, row in HARDWARE.items() if PUBLISHED[name] == shape), None)


class Advice(NamedTuple):
    """Settings that fit, and what they take."""

    overrides: dict[str, Any]
    """Changed settings by dotted key; empty if nothing needs to change."""
    load: TrainingLoad
    need: Memory

    @property
    def line(self) -> str:
        """The overrides as options of the command line."""
        return " ".join(f"-o {key}={str(value).lower()}" for key, value in self.overrides.items())


def fit(
    shape: ModelShape, lora: LoraConfig, load: TrainingLoad, accumulation: int, free: int
) -> Advice | None:
    """Find the largest micro-batch and window that fit, and keep the examples of an optimizer step.

    What costs nothing is given up first: a larger micro-batch, then speed (checkpointing), then precision of
    the frozen base (4 bits), and only then the length of the examples.

    Args:
        shape: The base.
        lora: The adapter; keeps its rank.
        load: What the config asks for.
        accumulation: Micro-batches of an optimizer step, as configured.
        free: Bytes there are for everything counted by ``estimate_training``.

    Returns:
        The settings, None if not even the lightest fit.
    """
    examples = load.micro_batch * accumulation
    for lighter, changed in _ways(load):
        for size in _sizes(examples, lighter):
            chosen = lighter._replace(micro_batch=size)
            need = estimate_training(shape, lora, chosen)
            if need.total <= free:
                return Advice(changed | _batch(load, size, examples), chosen, need)
    return None


def _ways(load: TrainingLoad) -> Iterator[tuple[TrainingLoad, dict[str, Any]]]:
    """Yield lighter and lighter loads with the settings that make them so."""
    changed: dict[str, Any] = {}
    yield load, changed
    if not load.is_checkpointed:
        load = load._replace(is_checkpointed=True)
        changed = {**changed, "lora.use_gradient_checkpointing": True}
        yield load, changed
    # A base in 4 bits cannot be rounded in training as a file's type rounds.
    if not load.storage.startswith("4bit") and not load.is_aware:
        eight = {"model.load_in_8bit": False} if load.storage == "8bit" else {}
        load, changed = load._replace(storage="4bit+double"), {**changed, **eight, "model.load_in_4bit": True}
        yield load, changed
    while load.window // 2 >= SHORTEST:
        load = load._replace(window=load.window // 2)
        changed = {**changed, "model.max_seq_length": load.window}
        yield load, changed


def _sizes(examples: int, load: TrainingLoad) -> Iterator[int]:
    """Yield micro-batches that divide an optimizer step's examples, largest first; none longer than is useful."""
    useful = max(load.micro_batch, ENOUGH_TOKENS // load.window)
    for size in range(min(examples, useful, MOST_ROWS), 0, -1):
        if examples % size == 0:
            yield size


def _batch(load: TrainingLoad, size: int, examples: int) -> dict[str, Any]:
    if size == load.micro_batch:
        return {}
    return {
        "training.per_device_train_batch_size": size,
        "training.gradient_accumulation_steps": examples // size,
    }
