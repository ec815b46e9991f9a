"""Will it fit? Estimates of every phase beside what this machine has."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from core.models.resources import (
    GB,
    Memory,
    ModelShape,
    TrainingLoad,
    count_parameters,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_training,
    recommended_settings,
)
from flows.preflight.machine import Device, nearest_folder
from flows.preflight.report import Estimate, Finding
from flows.run_config import RunConfig

RUNTIME_BYTES = GB
"""What a process holds before the first weight: libraries, and on a GPU the CUDA context."""


def find_estimates(
    config: RunConfig, shape: ModelShape, device: Device, workspace: Path, *, must_download: bool
) -> list[Estimate]:
    """Estimate memory by phase, and disk, for a model of a known shape."""
    width = _width(config, device)
    rows = _memory_estimates(config, shape, device, width)
    files = estimate_disk(shape, config.lora, width, config.gguf_formats)
    rows.append(_disk_estimate("all files", sum(files.values()), workspace))
    if must_download:
        # Imported here: only a model from the Hub needs it.
        from huggingface_hub import constants

        rows.append(_disk_estimate("download", 2 * count_parameters(shape), Path(constants.HF_HUB_CACHE)))
    return rows


def find_shortfalls(config: RunConfig, estimates: Iterable[Estimate]) -> list[Finding]:
    """Turn every estimate that exceeds what there is into a finding with a way out."""
    return [_shortfall(config, estimate) for estimate in estimates if not estimate.is_enough]


def _width(config: RunConfig, device: Device) -> int:
    """Return the bytes of a weight: as the dtype says, else 2 on a GPU and 4 on a CPU."""
    if config.model.dtype:
        return 4 if config.model.dtype == "float32" else 2
    return 2 if device.is_gpu else 4


def _memory_estimates(config: RunConfig, shape: ModelShape, device: Device, width: int) -> list[Estimate]:
    window = config.model.max_seq_length
    training = config.training
    load = TrainingLoad(
        micro_batch=training.per_device_train_batch_size,
        window=window,
        optimizer=training.optim,
        is_checkpointed=bool(config.lora.use_gradient_checkpointing),
        is_4bit=config.model.load_in_4bit,
        width=width,
    )
    asking = estimate_inference(
        shape, width, batch=config.evaluation.batch_size, window=window + config.evaluation.max_new_tokens
    )
    phases: dict[str, Memory] = {
        "baseline, evaluate": asking,
        "finetune": estimate_training(shape, config.lora, load),
        "merge": estimate_merge(shape, config.lora, width),
    }
    place = "GPU memory" if device.is_gpu else "memory"
    rows = [
        _estimate(phase, place, need.total + RUNTIME_BYTES, device.free) for phase, need in phases.items()
    ]
    largest = max(estimate_gguf(shape, gguf_type) for gguf_type in config.gguf_formats)
    memory = psutil.virtual_memory().available
    return [*rows, _estimate("quantize, serve", "memory", largest + RUNTIME_BYTES, memory)]


def _disk_estimate(phase: str, needed: int, folder: Path) -> Estimate:
    place = nearest_folder(folder)
    return _estimate(phase, f"disk of {place}", needed, shutil.disk_usage(place).free)


def _estimate(phase: str, place: str, needed: int, available: int) -> Estimate:
    return Estimate(
        phase=phase, place=place, needed_gb=round(needed / GB, 2), available_gb=round(available / GB, 2)
    )


def _shortfall(config: RunConfig, estimate: Estimate) -> Finding:
    what = (
        f"{estimate.phase} needs about {estimate.needed_gb:.1f} GB of {estimate.place}, "
        f"{estimate.available_gb:.1f} GB are free"
    )
    if estimate.place.startswith("disk"):
        where, fix = "workspace", "free some space, or put it on another disk (--workspace)"
    elif estimate.phase == "finetune":
        where, fix = "training", _lighter_training(config, estimate.available_gb)
    elif estimate.phase == "baseline, evaluate":
        where = "evaluation.batch_size"
        fix = "a smaller evaluation.batch_size or model.max_seq_length, or a smaller model"
    else:
        where, fix = "model.name", "a smaller model, or a machine with more memory"
    return Finding(level="error", kind="hardware", where=where, what=what, fix=fix)


def _lighter_training(config: RunConfig, available_gb: float) -> str:
    """Name the settings of the table that are lighter than the config's, and what else helps."""
    settings = config.model_dump()
    lighter = [
        f"-o {key}={value}"
        for key, value in recommended_settings(available_gb).items()
        if not key.endswith("accumulation_steps") and value < settings[key.split(".")[0]][key.split(".")[1]]
    ]
    if not config.model.load_in_4bit:
        lighter.insert(0, "-o model.load_in_4bit=true")
    return " ".join([*lighter, "or a smaller model"] if lighter else ["a smaller model, or a larger machine"])
