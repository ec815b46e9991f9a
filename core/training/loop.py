"""The one training loop: a function over batches, a step function, and listeners.

Supervised tuning and pretraining differ only in the step function and the batches they pass in.
Every random draw of a step comes from a seed made of (run seed, step), so a resumed run
draws what the uninterrupted run would have drawn.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from core.errors import TrainingFailed
from core.models.seed import seed_step
from core.sinks import MetricSink
from core.training.hints import hint
from core.training.memory import MicroBatches, until_it_fits
from core.training.meter import Spent
from core.training.stopping import best_step, is_worn_out


class StepLoss(NamedTuple):
    """What one optimizer step saw."""

    loss: Tensor
    """[] mean loss per trained token, on the model's device."""
    tokens: int
    """Trained tokens."""
    read: int
    """Tokens read, padding left out."""


class Progress(NamedTuple):
    """How far training is; everything a resumed run needs besides tensors."""

    step: int
    """Optimizer steps done."""
    tokens: int
    losses: tuple[float, ...]
    """Loss of every step so far."""
    eval_losses: tuple[tuple[int, float], ...]
    """Validation loss by step."""
    shrinks: int = 0
    """Times that the micro-batch was halved because memory ran out."""
    stopped_early: bool = False
    """Training ended before its plan because the validation loss stopped falling."""


class Plan(NamedTuple):
    """When to do what, in optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    logging_steps: int
    eval_steps: int
    save_steps: int
    max_grad_norm: float
    seed: int
    patience: int | None = None
    """Validation losses in a row without improvement that end training."""
    threshold: float = 0.0
    """Smallest fall of the validation loss that counts as improvement."""


class Checkpointer(Protocol):
    """Keeps resumable states."""

    def save(self, progress: Progress, spent: Spent) -> None:
        """Store the state after ``progress.step`` steps, atomically."""
        ...


class Validation(NamedTuple):
    """The look at the validation split."""

    loss: Callable[[], float]
    """Mean loss per trained token."""
    keep: Callable[[int], None] | None = None
    """Called with the step when the loss is the lowest so far."""


Step = Callable[[Sequence[object]], StepLoss]
"""Accumulates the gradient of one optimizer step over its micro-batches."""


def may_lag(device: torch.device) -> bool:
    """Tell whether a step's numbers are read one step late: a GPU that is asked at once has nothing to do afterwards.

    Until the host has launched the next step's first layers, an H200 was seen to wait for 4 to 14 ms.
    """
    return device.type == "cuda"


class Numbers:
    """Loss and norm of a step, on their way from the device."""

    def __init__(self, step: int, rate: float, values: Tensor) -> None:
        """Begin to copy.

        Args:
            step: Whose they are.
            rate: The learning rate that it took.
            values: [2] float64, the loss and the norm.
        """
        self.step, self.rate, self._there, self._arrival = step, rate, values, None
        if values.device.type == "cuda":
            self._there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._there.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.current_stream(values.device).record_event()

    def wait(self) -> None:
        """Wait until they are there, which is after the gradient and before the update."""
        if self._arrival is not None:
            self._arrival.synchronize()

    def read(self) -> tuple[float, float]:
        """Wait for them, and return them."""
        self.wait()
        loss, norm = self._there.tolist()
        return loss, norm


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
    validation: Validation | None = None,
    scaler: torch.amp.GradScaler | None = None,
    micro: MicroBatches | None = None,
    spent: Spent = Spent(),  # noqa: B008 - immutable
) -> Progress:
    """Run optimizer steps ``start.step + 1`` to ``plan.total_steps``, or until the validation loss stops falling.

    Args:
        step: Computes the loss of one step and leaves its gradient in the parameters. Where memory runs out it
            is called again on the same items, with the same random numbers, after ``micro`` has given way.
        batches: For every remaining step, what ``step`` takes.
        optimizer: Holds the trainable parameters.
        scheduler: Stepped once per optimizer step.
        plan: Totals and intervals.
        start: State to continue from; zeros for a fresh run.
        sink: Receives loss, learning_rate, grad_norm, epoch, tokens_per_second, eval_loss.
        checkpointer: Asked to save every ``plan.save_steps`` and at the end.
        validation: How to look at the validation split; None without one.
        scaler: Loss scaler of float16 training; the step function scales with the same one.
        micro: Size of the micro-batches, shared with the step function; None never shrinks.
        spent: What the interrupted parts of this run have cost.

    Raises:
        TrainingFailed: If a loss or gradient is not finite. On a GPU that is noticed one step late, but before anything is
            saved or validated.
        ResourceError: If memory runs out with micro-batches of one.
    """
    run = _Run(step, optimizer, scheduler, plan, start, sink, checkpointer, validation, scaler, micro, spent)
    if not run.is_over():
        for items in batches:
            run.one_step(items)
            if run.is_over():
                break
        run.settle()
    return run.progress()


class _Run:
    """One training under way."""

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        plan: Plan,
        start: Progress,
        sink: MetricSink,
        checkpointer: Checkpointer,
        validation: Validation | None,
        scaler: torch.amp.GradScaler | None,
        micro: MicroBatches | None,
        spent: Spent,
    ) -> None:
        self.step, self.plan, self.sink, self.checkpointer = step, plan, sink, checkpointer
        self.optimizer, self.scheduler, self.scaler = optimizer, scheduler, scaler
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.validation = validation
        self.micro = micro or MicroBatches(1, 1, may_shrink=False)
        self.number, self.tokens = start.step, start.tokens
        self.losses, self.evals = list(start.losses), list(start.eval_losses)
        self.spent, self.began = spent, time.monotonic() - spent.total
        self.logged = spent
        self.unread: Numbers | None = None

    def progress(self) -> Progress:
        """Return how far this run is."""
        evals = tuple(self.evals)
        return Progress(
            self.number, self.tokens, tuple(self.losses), evals, self.micro.shrinks, self._gave_up()
        )

    def is_over(self) -> bool:
        """Tell whether no step is left."""
        return self.number >= self.plan.total_steps or self._gave_up()

    def _gave_up(self) -> bool:
        worn = is_worn_out(self.evals, self.plan.patience, self.plan.threshold)
        return worn and self.number < self.plan.total_steps

    def one_step(self, items: Sequence[object]) -> None:
        """Take one optimizer step, and log, look and save where it is time."""
        began = time.monotonic()
        number = self.number + 1
        try:
            seen = until_it_fits(
                functools.partial(self._gradient, number, items), functools.partial(self._give_way, number)
            )
        except Exception as error:
            self._settle_after(error)
            raise
        self.settle()
        self.unread = self._update(seen, number)
        self.number, self.tokens = number, self.tokens + seen.tokens
        is_last = number == self.plan.total_steps
        looks = self.validation is not None and (number % self.plan.eval_steps == 0 or is_last)
        saves = number % self.plan.save_steps == 0 or is_last
        settles = looks or saves or not self._lags(seen)
        if settles:
            self.unread.wait()
        self._count(seen.read, time.monotonic() - began)
        if settles:
            self.settle()
        if self.validation and looks:
            self._look(self.validation)
        if saves or self.is_over():
            self.checkpointer.save(self.progress(), self._spent())

    def settle(self) -> None:
        """Read and log the numbers of the last step, unless that was done."""
        numbers, self.unread = self.unread, None
        if numbers is None:
            return
        loss, norm = self._finite(numbers)
        self.losses.append(loss)
        if numbers.step % self.plan.logging_steps == 0 or numbers.step == self.plan.total_steps:
            norm = norm if math.isfinite(norm) else self.plan.max_grad_norm
            self._log({"loss": loss, "learning_rate": numbers.rate, "grad_norm": norm})

    def _settle_after(self, error: Exception) -> None:
        """Log the step before one that failed; if that was not finite, it is the reason."""
        try:
            self.settle()
        except TrainingFailed as reason:
            raise reason from error
        except Exception:  # noqa: BLE001 - a device that has failed can tell no more, and the error itself is on its way
            return

    def _lags(self, seen: StepLoss) -> bool:
        """Tell whether a step's numbers may wait; a scaler's step depends on them."""
        return self.scaler is None and may_lag(seen.loss.device)

    def _finite(self, numbers: Numbers) -> tuple[float, float]:
        loss, norm = numbers.read()
        _require_finite(loss, numbers.step, "loss")
        if not self.scaler:
            _require_finite(norm, numbers.step, "gradient")
        return loss, norm

    def _gradient(self, number: int, items: Sequence[object]) -> StepLoss:
        seed_step(self.plan.seed, number)
        return self.step(items)

    def _give_way(self, number: int, *, trains: bool = True) -> None:
        """Forget a half-made gradient, and take less memory."""
        self.settle()
        self.optimizer.zero_grad(set_to_none=True)
        self.sink.log(number, self.micro.give_way(trains=trains))

    def _update(self, seen: StepLoss, number: int) -> Numbers:
        """Clip, step, decay; return the loss and the gradient's norm before clipping."""
        rate = float(self.scheduler.get_last_lr()[0])
        if self.scaler and seen.tokens:
            self.scaler.unscale_(self.optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
        values = torch.stack([seen.loss.double(), length.to(seen.loss.device).double()])
        numbers = Numbers(number, rate, values)
        if not self._lags(seen):
            self._finite(numbers)
        if self.scaler and seen.tokens:
            # An overflow is part of float16 training: the scaler skips the step and lowers its scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif not self.scaler:
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _look(self, validation: Validation) -> None:
        loss = until_it_fits(validation.loss, functools.partial(self._give_way, self.number, trains=False))
        _require_finite(loss, self.number, "validation loss")
        self.evals.append((self.number, loss))
        self.sink.log(self.number, {"eval_loss": loss})
        if validation.keep and best_step(self.evals) == self.number:
            validation.keep(self.number)

    def _count(self, read: int, seconds: float) -> None:
        self.spent = self.spent._replace(
            tokens=self.spent.tokens + read, training=self.spent.training + seconds
        )

    def _spent(self) -> Spent:
        return self.spent._replace(total=time.monotonic() - self.began)

    def _log(self, metrics: dict[str, float]) -> None:
        now, before = self.spent, self.logged
        speed = Spent(now.tokens - before.tokens, now.training - before.training).tokens_per_second
        epoch = self.number / self.plan.steps_per_epoch
        self.sink.log(self.number, {**metrics, "epoch": epoch, "tokens_per_second": speed})
        self.logged = now


def _require_finite(value: float, step: int, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingFailed(f"the {what} became {value} at step {step}; {hint('diverged')}")
