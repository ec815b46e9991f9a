"""Profile a few steps of a system: a trace to look at, and its time by kind of work beside the floors."""

import itertools
import statistics
import time
from pathlib import Path

import torch

from core.errors import ModelError
from core.models.loading import read_hf_config
from core.models.resources.shapes import shape_from_config
from core.training.benchmark.case import Case
from core.training.benchmark.classes import classified
from core.training.benchmark.floors import Step, linear_pairs
from core.training.benchmark.measuring import Run, milliseconds
from core.training.benchmark.reports import Profile
from core.training.benchmark.rows import document_lengths
from core.training.benchmark.trace import read_trace
from core.training.language import trained_tokens

STEPS = 3


def profile(run: Run, case: Case, target: Path) -> Profile:
    """Profile three more steps.

    Args:
        run: Already measured, so that everything is warm.
        case: What it runs.
        target: Chrome trace; open it in Perfetto.

    Raises:
        ModelError: If the base is of a family whose shape is not known.
    """
    step = work_of(run, case)
    gemm = gemm_rate(step, run.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds, record_shapes=True) as seen:
        for batches in itertools.islice(itertools.cycle(run.steps), STEPS):
            run.step(batches)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
    target.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(target))
    trace = read_trace(target)
    classes = classified(trace, step, gemm, STEPS)
    return Profile(
        step_ms=trace.span / 1e3 / STEPS, gemm_tflops=gemm / 1e12, classes=classes, trace=str(target)
    )


def work_of(run: Run, case: Case) -> Step:
    """Describe what a step of this run has to do."""
    config = read_hf_config(Path(case.model))
    shape = shape_from_config(config)
    if shape is None:
        raise ModelError(
            f"no floors are known for {config.get('model_type')}", where=case.model, fix="leave out --profile"
        )
    settings = run.prepared.model.config.get_text_config()
    kinds = getattr(settings, "layer_types", None) or ()
    return Step(
        shape=shape,
        lengths=tuple(document_lengths(run.steps[0])),
        labelled=sum(map(trained_tokens, run.steps[0])),
        rank=case.rank,
        is_packed_weight=case.storage == "nf4",
        window=getattr(settings, "sliding_window", None),
        n_sliding=sum(kind == "sliding_attention" for kind in kinds),
    )


def gemm_rate(step: Step, device: torch.device) -> float:
    """Measure the model's own products alone, on random numbers, and return the largest FLOP/s."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    best = 0.0
    for pair in linear_pairs(step.shape, is_joined=True):
        x = torch.randn(step.tokens, pair.k, device=device, dtype=dtype)
        weight = torch.randn(pair.n, pair.k, device=device, dtype=dtype) * 0.02
        for _ in range(3):
            torch.mm(x, weight.t())
        seconds = statistics.median(_timed(x, weight) for _ in range(5))
        best = max(best, 2.0 * step.tokens * pair.k * pair.n / seconds)
    return best


def _timed(x: torch.Tensor, weight: torch.Tensor) -> float:
    if x.device.type != "cuda":
        began = time.perf_counter()
        torch.mm(x, weight.t())
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.mm(x, weight.t())
    end.record()
    torch.cuda.synchronize()
    return milliseconds(start, end) / 1e3
