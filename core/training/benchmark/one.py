"""One system from loading to its figures."""

import math
import platform
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from core.data.batches import Batch
from core.kernels.attention import KernelNotice
from core.models.frameworks import FrameworkNotice
from core.models.fused.state import FusedNotice
from core.models.quantized import base_format
from core.training.benchmark.adapter import gradients
from core.training.benchmark.case import Case
from core.training.benchmark.measuring import Run
from core.training.benchmark.parity import compare
from core.training.benchmark.profiling import profile
from core.training.benchmark.reports import Measured, Parity, worse
from core.training.benchmark.rows import parity_batch, split
from core.training.benchmark.systems import Prepared, grant, prepare

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "bitsandbytes",
    "unsloth",
    "unsloth-zoo",
    "liger-kernel",
    "flash-attn-4",
)
SMI = ("nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active",
       "--format=csv,noheader")  # fmt: skip


def measure_one(case: Case) -> Measured:
    """Load, compare with the reference, time, and profile if the case asks for it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        prepared = prepare(case)
        parity = against_reference(prepared, case) if case.reference else None
        run = Run(prepared, case)
        speed, memory = run.measure()
    hot = gpu_state()
    losses = [finite(loss) for loss in (run.losses[0], run.losses[-1])]
    return Measured(
        system=case.system,
        parity=parity,
        speed=speed,
        memory=memory,
        first_loss=losses[0],
        last_loss=losses[1],
        profile=profile(run, case, Path(case.trace)) if case.trace else None,
        notes=notices(told, prepared, case),
        machine=machine() | {"base": base_format(prepared.model), "gpu after the steps": hot},
    )


def against_reference(prepared: Prepared, case: Case) -> Parity:
    """Run the parity batch and compare; the gradients are gone afterwards.

    The fused engine keeps everything of a batch as small as this one, which proves nothing about what it computes again
    or fetches from main memory: it also runs row by row with nothing kept, and the worse loss and the worse cosine of the two count.
    """
    batch = parity_batch(case, prepared.model.config.get_text_config().vocab_size)
    found = compared(prepared, [batch], case)
    if case.system == "fused" and case.checkpointing:
        grant(prepared.model, 0.0)
        frugal = compared(prepared, split(batch, 1), case)
        grant(prepared.model, case.budget)
        found = worse(found, frugal)
    return found


def compared(prepared: Prepared, batches: list[Batch], case: Case) -> Parity:
    """Run micro-batches and compare their loss and gradients with the reference's."""
    assert case.reference is not None
    loss = float(prepared.step(batches))
    found = compare(Path(case.reference), loss, gradients(prepared.model))
    prepared.model.zero_grad(set_to_none=True)
    return found


def notices(told: list[warnings.WarningMessage], prepared: Prepared, case: Case) -> tuple[str, ...]:
    """Return what an engine said about itself, and the micro-batch that it chose."""
    kinds = (FrameworkNotice, FusedNotice, KernelNotice)
    said = [str(each.message) for each in told if issubclass(each.category, kinds)]
    if prepared.micro_batch != (case.micro_batch or case.rows):
        said.append(f"micro-batch of {prepared.micro_batch}, its own choice")
    return tuple(dict.fromkeys(said))


def finite(loss: Tensor) -> float | None:
    """Return a loss, or None if it is not a number."""
    value = float(loss)
    return value if math.isfinite(value) else None


def machine() -> dict[str, str]:
    """Name what the figures were taken on."""
    on_gpu = torch.cuda.is_available()
    found = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | ({"cuda": str(torch.version.cuda)} if on_gpu else {})


def gpu_state() -> str:
    """Return clock, power, temperature and reasons for throttling right after the steps; empty without a GPU."""
    if not torch.cuda.is_available():
        return ""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
