"""Steps on a clock, and what they held."""

import gc
import itertools
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from core.data.batches import Batch
from core.training.benchmark.case import Case
from core.training.benchmark.reports import Memory, Speed
from core.training.benchmark.rows import optimizer_step
from core.training.benchmark.systems import Prepared
from core.training.config import TrainingConfig
from core.training.language import trained_tokens
from core.training.meter import peak_memory, start_peak
from core.training.optim import build_optimizer

PINNED = ("allocated_bytes.peak", "reserved_bytes.peak", "active_bytes.peak")
"""What PyTorch has called page-locked bytes; the largest is what it holds."""
Mark = float | torch.cuda.Event
"""A moment: seconds, or an event that the GPU passes."""


class Run:
    """A prepared system with its optimizer and rows; the same for every system."""

    def __init__(self, prepared: Prepared, case: Case) -> None:
        """Draw the rows of all steps, so that no step waits for them."""
        self.prepared, self.case, self.device = prepared, case, prepared.device
        vocabulary = prepared.model.config.get_text_config().vocab_size
        self.steps = [
            optimizer_step(case, vocabulary, i, prepared.micro_batch) for i in range(case.warmup + case.steps)
        ]
        # AdamW in 8 bits, no weight decay, no clipping: for all systems the same.
        settings = TrainingConfig(optim="adamw_8bit", learning_rate=2e-4, weight_decay=0.0)
        self.optimizer = build_optimizer(prepared.model.parameters(), settings)
        self.losses: list[Tensor] = []

    def step(self, batches: Sequence[Batch]) -> None:
        """Run one optimizer step; nothing is read back from the GPU."""
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(self.prepared.step(batches))
        self.optimizer.step()

    def measure(self) -> tuple[Speed, Memory]:
        """Run the warm-up, then the timed steps."""
        loaded = self._held()
        for batches in self.steps[: self.case.warmup]:
            self._survived(batches)
        self._wait()
        first = peak_memory(self.device)
        self._restart_peaks()
        speed = self._timed(self.steps[self.case.warmup :])
        return speed, Memory(loaded=loaded, first=first, **self._peaks())

    def _survived(self, batches: Sequence[Batch]) -> None:
        """Run a step; where the fused engine runs out of memory, it plans with less and tries again."""
        while True:
            try:
                return self.step(batches)
            except torch.OutOfMemoryError:
                if not self._gives_way():
                    raise

    def _gives_way(self) -> bool:
        if self.case.system != "fused":
            return False
        from core.models.fused.state import fused_state

        state = fused_state(self.prepared.model)
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        return state is not None and bool(state.give_way())

    def _timed(self, steps: Sequence[Sequence[Batch]]) -> Speed:
        marks = [self._mark()]
        began = time.perf_counter()
        for batches in steps:
            self.step(batches)
            marks.append(self._mark())
        self._wait()
        wall = (time.perf_counter() - began) * 1e3
        return Speed(
            step_ms=tuple(milliseconds(a, b) for a, b in itertools.pairwise(marks)),
            wall_ms=wall / len(steps),
            tokens=sum(batch.input_ids.numel() for batch in steps[0]),
            labelled=round(statistics.mean(sum(map(trained_tokens, batches)) for batches in steps)),
        )

    def _mark(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _held(self) -> int:
        self._wait()
        start_peak(self.device)
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else peak_memory(self.device)

    def _restart_peaks(self) -> None:
        start_peak(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_host_memory_stats()

    def _peaks(self) -> dict[str, int]:
        allocated = peak_memory(self.device)
        if self.device.type != "cuda":
            return {"allocated": allocated, "reserved": allocated, "pinned": 0}
        stats = torch.cuda.host_memory_stats()
        pinned = max(int(stats.get(name, 0)) for name in PINNED)
        return {
            "allocated": allocated,
            "reserved": torch.cuda.max_memory_reserved(),
            "pinned": max(pinned, self._own()),
        }

    def _own(self) -> int:
        """Return the page-locked bytes that the fused engine counts itself."""
        if self.case.system != "fused":
            return 0
        from core.models.fused.state import fused_state

        return int(getattr(fused_state(self.prepared.model), "host_bytes", 0) or 0)


def milliseconds(start: Mark, end: Mark) -> float:
    """Return the time between two marks."""
    if isinstance(start, float) and isinstance(end, float):
        return (end - start) * 1e3
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return float(start.elapsed_time(end))
