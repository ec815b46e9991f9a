"""Pretraining: next-token loss on every token of packed rows, through the one loop."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batches import Batch, step_batches
from core.sinks import MetricSink
from core.training.checkpoints import TrainingCheckpoints
from core.training.config import TrainingConfig
from core.training.language import LanguageStep, autocast, mean_loss
from core.training.loop import Progress, Validation, train
from core.training.optim import build_optimizer, build_scheduler
from core.training.sft import autocast_dtype, plan_steps


def pretrain(
    model: PreTrainedModel,
    rows: Tensor,
    held_out: Tensor,
    config: TrainingConfig,
    *,
    checkpoints: Path,
    fingerprint: str,
    sink: MetricSink,
) -> Progress:
    """Train all parameters on packed rows, resuming like any other training.

    Args:
        model: On its device, in float32; ``config.bf16`` casts the matrix products.
        rows: Token ids [n, s], documents packed end to end.
        held_out: Token ids [m, s] for the evaluation loss.
        config: Batch, steps, rate.
        checkpoints: Folder of resumable states.
        fingerprint: Identity of settings and data.
        sink: Receives the metrics of every logged step.
    """
    plan = plan_steps(len(rows), config)
    optimizer = build_optimizer(model.parameters(), config)
    scheduler = build_scheduler(optimizer, config, plan.total_steps)
    # Tied weights appear once: a tensor stored under two names cannot be saved as safetensors.
    keeper = TrainingCheckpoints(
        checkpoints, fingerprint, dict(model.named_parameters()), optimizer, scheduler
    )
    start, spent = keeper.restore()
    device = model.device
    cast = autocast(device, autocast_dtype(config, model))
    return train(
        LanguageStep(model, device, cast),
        _batches(rows, config, start.step),
        optimizer,
        scheduler,
        plan,
        start=start,
        sink=sink,
        checkpointer=keeper,
        validation=Validation(lambda: mean_loss(model, _whole(held_out, config), device, cast)),
        spent=spent,
    )


def _batch(ids: Tensor) -> Batch:
    return Batch(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))


def _batches(rows: Tensor, config: TrainingConfig, start: int) -> Iterator[list[Batch]]:
    size, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    for step in step_batches(len(rows), size, accumulation, config.seed, start):
        yield [_batch(rows[micro]) for micro in step]


def _whole(rows: Tensor, config: TrainingConfig) -> Iterator[Batch]:
    for part in rows.split(config.per_device_train_batch_size):
        yield _batch(part)
