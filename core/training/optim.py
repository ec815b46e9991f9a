"""Optimizers and learning-rate schedules by their Hugging Face names."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from transformers import get_scheduler

from core.training.config import TrainingConfig


def build_optimizer(parameters: Iterable[Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimizer; weight decay applies to matrices, not to biases and norms."""
    chosen = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in chosen if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in chosen if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate
    match config.optim:
        case "adamw_torch":
            return torch.optim.AdamW(groups, lr=rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate)
        case "adamw_8bit":
            from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]

            optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=rate)
            return optimizer


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build warm-up and decay over ``total_steps`` optimizer steps."""
    kind = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    warmup = min(config.warmup_steps, total_steps)
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    return scheduler
