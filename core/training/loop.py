"""The one training loop: a function over batches, a step function, and listeners.

Supervised tuning and pretraining differ only in the step function and the batches they pass in.
Every random draw of a step comes from a seed made of (run seed, step), so a resumed run
draws what the uninterrupted run would have drawn.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from core.errors import TrainingFailed
from core.models.seed import seed_step
from core.sinks import MetricSink


class StepLoss(NamedTuple):
    """What one optimizer step saw."""

    loss: float
    """Mean loss per trained token."""
    tokens: int
    """Trained tokens."""


class Progress(NamedTuple):
    """How far training is; everything a resumed run needs besides tensors."""

    step: int
    """Optimizer steps done."""
    tokens: int
    losses: tuple[float, ...]
    """Loss of every step so far."""
    eval_losses: tuple[tuple[int, float], ...]
    """Validation loss by step."""


class Plan(NamedTuple):
    """When to do what, in optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    logging_steps: int
    eval_steps: int
    save_steps: int
    max_grad_norm: float
    seed: int


class Checkpointer(Protocol):
    """Keeps resumable states."""

    def save(self, progress: Progress) -> None:
        """Store the state after ``progress.step`` steps, atomically."""
        ...


Step = Callable[[Sequence[object]], StepLoss]
"""Accumulates the gradient of one optimizer step over its micro-batches."""


def train(
    step: Step,
    batches: Iterable[Sequence[object]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    plan: Plan,
    *,
    start: Progress,
    sink: MetricSink,
    checkpointer: Checkpointer,
    evaluate: Callable[[], float] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Run optimizer steps ``start.step + 1`` to ``plan.total_steps``.

    Args:
        step: Computes the loss of one step and leaves its gradient in the parameters.
        batches: For every remaining step, its micro-batches.
        optimizer: Holds the trainable parameters.
        scheduler: Stepped once per optimizer step.
        plan: Totals and intervals.
        start: State to continue from; zeros for a fresh run.
        sink: Receives loss, learning_rate, grad_norm, epoch, tokens_per_second, eval_loss.
        checkpointer: Asked to save every ``plan.save_steps`` and at the end.
        evaluate: Returns the validation loss, or None without a validation split.
        scaler: Loss scaler of float16 training; the step function scales with the same one.

    Raises:
        TrainingFailed: If a loss or gradient is not finite.
    """
    if start.step >= plan.total_steps:
        return start
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses, eval_losses, tokens = list(start.losses), list(start.eval_losses), start.tokens
    clock, since = time.monotonic(), 0
    number = start.step
    for number, micro_batches in enumerate(batches, start.step + 1):
        seed_step(plan.seed, number)
        seen = step(micro_batches)
        _require_finite(seen.loss, number, "loss")
        rate = float(scheduler.get_last_lr()[0])
        norm = _update(parameters, optimizer, scheduler, plan.max_grad_norm, scaler)
        losses.append(seen.loss)
        tokens, since = tokens + seen.tokens, since + seen.tokens
        if number % plan.logging_steps == 0 or number == plan.total_steps:
            now = time.monotonic()
            sink.log(number, {
                "loss": seen.loss, "learning_rate": rate, "grad_norm": norm,
                "epoch": number / plan.steps_per_epoch,
                "tokens_per_second": since / max(now - clock, 1e-9),
            })  # fmt: skip
            clock, since = now, 0
        if evaluate and (number % plan.eval_steps == 0 or number == plan.total_steps):
            eval_losses.append((number, evaluate()))
            sink.log(number, {"eval_loss": eval_losses[-1][1]})
        if number % plan.save_steps == 0 or number == plan.total_steps:
            checkpointer.save(Progress(number, tokens, tuple(losses), tuple(eval_losses)))
        if number >= plan.total_steps:
            break
    return Progress(number, tokens, tuple(losses), tuple(eval_losses))


def _update(
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    max_grad_norm: float,
    scaler: torch.amp.GradScaler | None,
) -> float:
    """Clip, step, decay; return the gradient's norm before clipping."""
    if scaler:
        scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if scaler:
        # An overflow is part of float16 training: the scaler skips the step and lowers its scale.
        scaler.step(optimizer)
        scaler.update()
    else:
        _require_finite(norm, scheduler.last_epoch + 1, "gradient")
        optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return norm if math.isfinite(norm) else max_grad_norm


def _require_finite(value: float, step: int, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingFailed(
            f"the {what} became {value} at step {step}; lower training.learning_rate (1e-4 is a safe start), "
            "check the data for extreme rows, or train in bfloat16 instead of float16"
        )
