"""Can the model learn one batch by heart? If it cannot, no longer run will help.

A few steps on a few short examples, with the adapter, loss, optimizer and precision of the real run, show
frozen layers, a mask without answers, a learning rate out of range or numbers that overflow.
"""

import gc
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from core.data.batches import Batch, collate
from core.data.chat import Encoded
from core.data.learning_findings import UNMOVED
from core.data.learning_reports import OverfitReport
from core.errors import TrainingFailed, UserError
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_model
from core.training.config import TrainingConfig
from core.training.language import LanguageStep, autocast, mean_loss
from core.training.loop import Plan, Progress, train
from core.training.meter import Spent
from core.training.optim import build_optimizer
from core.training.sft import autocast_dtype

LEARNED_SHARE = 0.5
"""A batch counts as learned once its loss is below this share of what it was ..."""
LEARNED_LOSS = 0.1
"""... or below this, in nats per token."""
ENOUGH = 0.5
"""Training stops early at this share of the loss that counts as learned."""
FALLING = 0.95
"""Below this share the loss is on its way, and more time would have been enough."""
FASTER = 10.0
"""Factor of the learning rate in the second attempt."""
FASTEST = 1e-2
_NEVER = 1 << 30


class Limits(NamedTuple):
    """When to give up."""

    steps: int = 60
    seconds: float = 20.0
    """Of training, both attempts together."""


LIMITS = Limits()


class _Attempt(NamedTuple):
    """What one learning rate did."""

    rate: float
    losses: tuple[float, ...]
    after: float | None
    """Loss in evaluation mode; None if it was no number."""
    ran_out: bool
    """The time was up before the steps were."""


def overfit_base(
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainingConfig,
    examples: Sequence[Encoded],
    pad_id: int,
    limits: Limits = LIMITS,
) -> OverfitReport:
    """Load a copy of the base, put a fresh adapter on it, and try to learn the examples by heart.

    The copy is thrown away, and the random generators are left as they were.

    Args:
        model: The base model.
        lora: The adapter of the real run.
        training: The training block of the real run; its schedule and sizes do not matter here.
        examples: A few short ones, see ``short_examples``.
        pad_id: Fills up shorter rows.
        limits: Steps and seconds.
    """
    with kept_randomness():
        try:
            return overfit_batch(
                attach(load_model(model, trainable=True), lora), examples, pad_id, training, limits
            )
        except UserError as error:
            return OverfitReport(verdict="skipped", reason=error.what)
        except (torch.OutOfMemoryError, MemoryError):
            return OverfitReport(verdict="skipped", reason="memory ran out")
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def overfit_batch(
    model: PeftModel,
    examples: Sequence[Encoded],
    pad_id: int,
    training: TrainingConfig,
    limits: Limits = LIMITS,
) -> OverfitReport:
    """Train on one batch for a few steps; the weights and the mode are put back afterwards.

    A batch that is not learned is tried once more at ten times the learning rate, to tell a rate that is too
    low from a model that cannot learn.

    Args:
        model: Base with an adapter attached.
        examples: The batch; it runs in micro-batches of the configured size.
        pad_id: Fills up shorter rows.
        training: Learning rate, optimizer, precision.
        limits: Steps and seconds.
    """
    began = time.monotonic()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = sum(p.numel() for p in trained.values())
    if not examples:
        return OverfitReport(verdict="skipped", reason="no row has a trained token")
    if not trained:
        reason = "the model cannot learn: every parameter is frozen"
        return OverfitReport(verdict="not learned", reason=reason, examples=len(examples))
    was_training, start = model.training, {name: p.detach().clone() for name, p in trained.items()}
    with kept_randomness():
        bench = _Bench(model, _micro_batches(examples, pad_id, training), training)
        before = bench.loss()
        if not np.isfinite(before):
            reason = "the loss is no number before the first step"
            return OverfitReport(verdict="not learned", reason=reason, trainable_parameters=numbers)
        tries: list[_Attempt] = []
        for rate in _rates(training.learning_rate):
            share = limits.seconds if tries else limits.seconds * 2 / 3
            tries.append(bench.attempt(rate, limits.steps, began + share, before))
            _put_back(trained, start)
            if _is_learned(tries[-1].after, before) or _is_on_its_way(tries[-1], before):
                break
    model.train(was_training)
    verdict = _judge(tries, before)
    return verdict.model_copy(
        update={
            "examples": len(examples),
            "trainable_parameters": numbers,
            "seconds": round(time.monotonic() - began, 2),
        }
    )


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Give back every random generator as it was found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


class _Bench:
    """A model, a batch, and how the real run would train on it."""

    def __init__(self, model: PeftModel, batches: list[Batch], training: TrainingConfig) -> None:
        self.model, self.batches, self.training = model, batches, training
        self.device = next(model.parameters()).device
        self.dtype = autocast_dtype(training, model)
        self.cast = autocast(self.device, self.dtype)

    def loss(self) -> float:
        return mean_loss(self.model, self.batches, self.device, self.cast)

    def attempt(self, rate: float, steps: int, deadline: float, before: float) -> _Attempt:
        """Train at one constant rate until it is learned, the steps are done or the time is up."""
        config = self.training.model_copy(update={"learning_rate": rate})
        optimizer = build_optimizer(self.model.parameters(), config)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        log = _Losses(ENOUGH * max(LEARNED_LOSS, LEARNED_SHARE * before), deadline)
        try:
            train(
                LanguageStep(self.model, self.device, self.cast, scaler),
                log.until_enough(self.batches),
                optimizer,
                scheduler,
                Plan(steps, 1, 1, _NEVER, _NEVER, config.max_grad_norm, config.seed),
                start=Progress(0, 0, (), ()),
                sink=log,
                checkpointer=log,
                scaler=scaler,
            )
        except TrainingFailed:
            return _Attempt(rate, tuple(log.losses), None, ran_out=False)
        finally:
            self.model.zero_grad(set_to_none=True)
        after = self.loss()
        ran_out = len(log.losses) < steps and time.monotonic() > deadline
        return _Attempt(rate, tuple(log.losses), after if np.isfinite(after) else None, ran_out)


class _Losses:
    """Hears the loss of every step and ends training when it has heard enough; saves nothing."""

    def __init__(self, enough: float, deadline: float) -> None:
        self.enough, self.deadline = enough, deadline
        self.losses: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember a loss."""
        self.losses.append(metrics["loss"])

    def save(self, progress: Progress, spent: Spent) -> None:
        """Save nothing: the state is thrown away."""

    def until_enough(self, batches: list[Batch]) -> Iterator[list[Batch]]:
        """Yield the one batch again and again."""
        while not self.losses or (self.losses[-1] > self.enough and time.monotonic() < self.deadline):
            yield batches


def _micro_batches(examples: Sequence[Encoded], pad_id: int, training: TrainingConfig) -> list[Batch]:
    size = training.per_device_train_batch_size
    return [collate(examples[n : n + size], pad_id) for n in range(0, len(examples), size)]


def _rates(rate: float) -> list[float]:
    faster = min(FASTEST, FASTER * rate)
    return [rate, faster] if faster > rate else [rate]


def _put_back(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])


def _is_learned(after: float | None, before: float) -> bool:
    return after is not None and (after < LEARNED_SHARE * before or after < LEARNED_LOSS)


def _is_on_its_way(attempt: _Attempt, before: float) -> bool:
    """Tell whether only the time kept an attempt from learning: then nothing speaks against its rate."""
    return attempt.ran_out and attempt.after is not None and attempt.after < FALLING * before


def _judge(tries: Sequence[_Attempt], before: float) -> OverfitReport:
    """Turn the attempts into a verdict; the losses shown are those of the attempt that decided."""
    first, last = tries[0], tries[-1]
    if _is_learned(last.after, before):
        slow = last is not first
        reason = (
            f"one batch is not learned in {len(first.losses)} steps at a learning rate of {first.rate:g}, "
        )
        reason += f"but in {len(last.losses)} at {last.rate:g}"
        return _report("slow" if slow else "learned", last, before, reason if slow else "")
    if first.after is None:
        return _report(
            "not learned", first, before, f"the loss stops being a number at step {len(first.losses) + 1}"
        )
    steps = f"{len(first.losses)} steps on {first.rate:g}"
    change = f"its loss goes from {before:.2f} to {first.after:.2f} in {len(first.losses)} steps"
    if _is_on_its_way(first, before):
        return _report("undecided", first, before, f"the time was up before one batch was learned: {change}")
    if abs(first.after - before) <= (1 - UNMOVED) * before:
        return _report(
            "not learned", first, before, f"the model does not change: {steps} leave the loss at {before:.2f}"
        )
    return _report("not learned", first, before, f"the model does not learn one batch by heart: {change}")


def _report(verdict: str, attempt: _Attempt, before: float, reason: str) -> OverfitReport:
    return OverfitReport.model_validate(
        {
            "verdict": verdict,
            "reason": reason,
            "loss_before": before,
            "loss_after": attempt.after,
            "steps": len(attempt.losses),
            "learning_rate": attempt.rate,
            "losses": attempt.losses,
        }
    )
