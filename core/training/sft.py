"""Supervised fine-tuning of an adapter on conversations."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from core.artifacts import atomic_path, write_json
from core.data.batches import Batch, collate, step_batches
from core.data.chat import Encoded
from core.errors import ResourceError
from core.sinks import MetricSink
from core.training.checkpoints import TrainingCheckpoints
from core.training.config import TrainingConfig
from core.training.language import LanguageStep, autocast, mean_loss
from core.training.loop import Plan, Progress, train
from core.training.optim import build_optimizer, build_scheduler


class Tuned(NamedTuple):
    """What fine-tuning did."""

    progress: Progress
    plan: Plan
    seconds: float
    trainable_parameters: int
    parameters: int
    device: str


class SftInputs(NamedTuple):
    """Tokenized examples."""

    train: Sequence[Encoded]
    val: Sequence[Encoded]
    pad_id: int


def plan_steps(n_examples: int, config: TrainingConfig) -> Plan:
    """Turn sizes and settings into counts of optimizer steps; ``max_steps`` wins over epochs."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    per_epoch = math.ceil(n_examples / per_step)
    total = config.max_steps or max(1, round(config.num_train_epochs * per_epoch))
    return Plan(
        total,
        per_epoch,
        config.logging_steps,
        config.eval_steps,
        config.save_steps,
        config.max_grad_norm,
        config.seed,
    )


def finetune(
    model: PeftModel,
    inputs: SftInputs,
    config: TrainingConfig,
    *,
    checkpoints: Path,
    fingerprint: str,
    sink: MetricSink,
    on_checkpoint: Callable[[], None],
    on_start: Callable[[Progress], None],
) -> Tuned:
    """Train the adapter, resuming from the newest checkpoint of the same fingerprint.

    Args:
        model: Base with an adapter attached.
        inputs: Tokenized training and validation examples.
        config: The training block.
        checkpoints: Folder of resumable states.
        fingerprint: Identity of settings, data and code; another one starts afresh.
        sink: Receives the metrics of every step.
        on_checkpoint: Called after each saved state.
        on_start: Called once with the progress training continues from.

    Raises:
        TrainingFailed: If the loss stops being finite.
        ResourceError: If memory runs out.
    """
    plan = plan_steps(len(inputs.train), config)
    device = next(model.parameters()).device
    dtype = autocast_dtype(config, model)
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
    optimizer = build_optimizer(model.parameters(), config)
    scheduler = build_scheduler(optimizer, config, plan.total_steps)
    trainable: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    keeper = _Announced(
        TrainingCheckpoints(checkpoints, fingerprint, trainable, optimizer, scheduler), on_checkpoint
    )
    start = keeper.inner.restore()
    on_start(start)
    cast = autocast(device, dtype)
    began = time.monotonic()
    with _memory_message():
        progress = train(
            LanguageStep(model, device, cast, scaler),
            _micro_batches(inputs, config, start.step),
            optimizer,
            scheduler,
            plan,
            start=start,
            sink=sink,
            checkpointer=keeper,
            evaluate=(lambda: mean_loss(model, _val_batches(inputs, config), device, cast))
            if inputs.val
            else None,
            scaler=scaler,
        )
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Tuned(
        progress,
        plan,
        time.monotonic() - began,
        sum(n for n, on in sizes if on),
        sum(n for n, _ in sizes),
        name,
    )


class _Announced:
    """Saves, then tells."""

    def __init__(self, inner: TrainingCheckpoints, tell: Callable[[], None]) -> None:
        self.inner, self.tell = inner, tell

    def save(self, progress: Progress) -> None:
        self.inner.save(progress)
        self.tell()


def autocast_dtype(config: TrainingConfig, model: PreTrainedModel | PeftModel) -> torch.dtype | None:
    """Decide the autocast dtype: as asked by fp16/bf16, else the dtype of the weights."""
    if config.bf16:
        return torch.bfloat16
    if config.fp16:
        return torch.float16
    if config.bf16 is False and config.fp16 is False:
        return None
    stored = getattr(model.config, "quantization_config", None)
    if stored is not None:
        # A 4-bit base is prepared with its other weights in float32; what it computes in is written down.
        return compute_dtype(stored)
    return next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)


def compute_dtype(quantization: Any) -> torch.dtype | None:
    """Return the dtype a quantized base multiplies in; None for float32."""
    stated = quantization if isinstance(quantization, dict) else vars(quantization)
    dtype = stated.get("bnb_4bit_compute_dtype")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _micro_batches(inputs: SftInputs, config: TrainingConfig, start: int) -> Iterator[list[Batch]]:
    size, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    for step in step_batches(len(inputs.train), size, accumulation, config.seed, start):
        yield [collate([inputs.train[i] for i in micro], inputs.pad_id) for micro in step]


def _val_batches(inputs: SftInputs, config: TrainingConfig) -> Iterator[Batch]:
    size = config.per_device_train_batch_size
    for first in range(0, len(inputs.val), size):
        yield collate(inputs.val[first : first + size], inputs.pad_id)


@contextmanager
def _memory_message() -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            "memory ran out during training",
            where="training.per_device_train_batch_size",
            fix="halve it and double gradient_accumulation_steps (same result), or lower model.max_seq_length",
        ) from error


def save_adapter(model: PeftModel, target: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, atomically."""
    with atomic_path(target) as part:
        model.save_pretrained(str(part), safe_serialization=True)
        # PEFT's template card says nothing about this model; the bundle has a real one.
        (part / "README.md").unlink(missing_ok=True)
        # PEFT writes a set in an order that changes from process to process.
        settings = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
        settings["target_modules"] = sorted(settings["target_modules"])
        write_json(part / "adapter_config.json", settings)
