"""Optimizers and learning-rate schedules by their Hugging Face names."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from transformers import get_scheduler

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


def flowing(maker: Any) -> Maker:
    """Return an optimizer of bitsandbytes that does not wait for the GPU after every tensor.

    Only paged states need that: their tensors move while the host goes on. On an H200 the 448 tensors of an 8B
    adapter cost 21 ms of an idle GPU in each step.
    """

    class Flowing(maker):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            if self.is_paged or not self.initialized:
                found: float | None = super().step(closure)
                return found
            loss = closure() if closure is not None else None
            for number, group in enumerate(self.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    self.update_step(group, parameter, number, place)
            return loss

    Flowing.__name__ = Flowing.__qualname__ = maker.__name__
    return Flowing


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
