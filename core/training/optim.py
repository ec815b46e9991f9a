"""Optimizers and learning-rate schedules by their Hugging Face names."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter
from transformers import get_scheduler

from core.kernels.adam8 import Adam8, Codes, Rates, Slot
from core.kernels.backend import runs_fused
from core.training.config import TrainingConfig

Maker = Callable[..., torch.optim.Optimizer]


def build_optimizer(parameters: Iterable[Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimizer; weight decay applies to matrices, not to biases and norms."""
    chosen = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in chosen if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in chosen if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    on_gpu = any(p.device.type == "cuda" for p in chosen)
    return optimizer_class(config.optim, on_gpu=on_gpu)(groups, lr=config.learning_rate)


def optimizer_class(name: str, *, on_gpu: bool) -> Maker:
    """Return the class behind a name.

    Args:
        name: As in ``training.optim``.
        on_gpu: Without a GPU there is nothing to page out of: a paged optimizer is then its plain twin, which
            computes the same.
    """
    own: dict[str, Maker] = {
        "adamw_torch": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adafactor": torch.optim.Adafactor,
    }
    if name in own:
        return own[name]
    from bitsandbytes import optim

    theirs: dict[str, Any] = {
        "adamw_8bit": "AdamW8bit",
        "paged_adamw_8bit": "PagedAdamW8bit" if on_gpu else "AdamW8bit",
        "paged_adamw_32bit": "PagedAdamW32bit" if on_gpu else "AdamW32bit",
        "lion_8bit": "Lion8bit",
    }
    maker = getattr(optim, theirs[name])
    paged: Maker = maker
    return paged if name.startswith("paged") and on_gpu else flowing(maker)


def flowing(maker: Any, *, joins: Callable[[torch.device], bool] = runs_fused) -> Maker:
    """Return an optimizer of bitsandbytes that does not wait for the GPU after every tensor.

    Only paged states need that: their tensors move while the host goes on. On an H200 the 448 tensors of an 8B
    adapter cost 21 ms of an idle GPU in each step. AdamW's moments of 8 bits are updated in one launch besides.

    Args:
        maker: The class of bitsandbytes.
        joins: Tells whether a device's parameters are updated in one launch.
    """

    class Flowing(maker):  # type: ignore[misc]
        joined: Joined | None = None

        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            if self.is_paged or not self.initialized:
                found: float | None = super().step(closure)
                return found
            with torch.enable_grad():
                loss = closure() if closure is not None else None
            self.joined = self.joined or Joined(joins)
            self.joined.forget()
            may_join = self.joined.suits(self)
            for number, group in enumerate(self.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    if not state:
                        self.init_state(group, parameter, number, place)
                    if not (may_join and self.joined.takes(number, parameter, state)):
                        self.update_step(group, parameter, number, place)
                self.joined.update(group)
            return loss

    Flowing.__name__ = Flowing.__qualname__ = maker.__name__
    return Flowing


class Joined:
    """Parameters whose moments of 8 bits are updated in one launch; the state stays bitsandbytes' own.

    A GPU waits while this runs, so what is known of a parameter is kept from step to step.
    """

    def __init__(self, joins: Callable[[torch.device], bool]) -> None:
        """Remember which devices' parameters are updated so."""
        self._joins = joins
        self._queues: dict[Together, Queue] = {}
        self._known: dict[int, tuple[Slot, torch.dtype, Queue]] = {}

    def forget(self) -> None:
        """Drop what a step that failed left in the queues."""
        for queue in self._queues.values():
            queue.forget()

    def suits(self, optimizer: Any) -> bool:
        """Tell whether an optimizer is AdamW without settings for single parameters."""
        settings = optimizer.mng
        return optimizer.optimizer_name == "adam" and not (settings.pid2config or settings.index2config)

    def takes(self, group: int, parameter: Parameter, state: dict[str, Any]) -> bool:
        """Queue a parameter that has a gradient, if it can be updated with others; and count its step."""
        gradient, m = parameter.grad, state["state1"]
        if gradient is None or m.dtype != torch.uint8:
            return False
        if not (parameter.is_contiguous() and gradient.is_contiguous()):
            return False
        known = self._known.get(id(parameter))
        if known is None or known[0].m is not m or known[1] != gradient.dtype:
            if not self._joins(parameter.device):
                return False
            known = self._known[id(parameter)] = self._learn(group, parameter, gradient.dtype, state)
        state["step"] += 1
        slot, _, queue = known
        queue.slots.append(slot)
        queue.gradients.append(gradient)
        queue.steps.append(state["step"])
        return True

    def _learn(
        self, group: int, parameter: Parameter, dtype: torch.dtype, state: dict[str, Any]
    ) -> tuple[Slot, torch.dtype, "Queue"]:
        key = Together(group, parameter.device, parameter.dtype, dtype)
        if key not in self._queues:
            self._queues[key] = Queue(Adam8(Codes(state["qmap1"], state["qmap2"])), [], [], [])
        slot = Slot(
            parameter,
            m=state["state1"],
            v=state["state2"],
            m_scale=state["absmax1"],
            v_scale=state["absmax2"],
        )
        return slot, dtype, self._queues[key]

    def update(self, group: dict[str, Any]) -> None:
        """Update what waits, with the settings of its group."""
        for queue in self._queues.values():
            # One number, unless a parameter had no gradient in some step.
            for step in sorted(set(queue.steps)):
                ours = [number for number, theirs in enumerate(queue.steps) if theirs == step]
                slots, gradients = [queue.slots[n] for n in ours], [queue.gradients[n] for n in ours]
                beta1, beta2 = group["betas"]
                rates = Rates(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], step)
                queue.adam.update(slots, gradients, rates)
            queue.forget()


class Together(NamedTuple):
    """What parameters of one launch have in common, besides the number of the step."""

    group: int
    device: torch.device
    dtype: torch.dtype
    gradient: torch.dtype


class Queue(NamedTuple):
    """What waits for one launch: parameters, their gradients, and the numbers of their steps."""

    adam: Adam8
    slots: list[Slot]
    gradients: list[torch.Tensor]
    steps: list[int]

    def forget(self) -> None:
        """Drop what waits."""
        for waiting in (self.slots, self.gradients, self.steps):
            waiting.clear()


@torch.no_grad()
def page_again(optimizer: torch.optim.Optimizer) -> None:
    """Move a restored state back into paged memory; reading a state puts it on the GPU whole."""
    if not getattr(optimizer, "is_paged", False):
        return
    page: Any = optimizer.get_state_buffer  # type: ignore[attr-defined]
    for parameter, state in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in state and parameter.device.type == "cuda":
                buffer = page(parameter, dtype=state[name].dtype)
                buffer.copy_(state[name])
                state[name] = buffer


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
