"""Will it fit? Estimates of every phase beside what this machine has, and settings that would fit."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.models.fused.costs import H200, HOST_SHARE, SPARE
from core.models.fused.main_memory import free_main_memory
from core.models.resources import (
    GB,
    ONNX_TRACE_BYTES,
    PYTORCH_ROUND_BYTES,
    Advice,
    Memory,
    ModelShape,
    Outlook,
    TrainingLoad,
    count_parameters,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_training,
    find_outlook,
    fit,
    fused_obstacle,
    hardware_row,
    recommended_settings,
    storage_of,
)
from flows.preflight.machine import Device, nearest_folder
from flows.preflight.report import Estimate, Finding
from flows.run_config import RunConfig

MERGE_PROBE = 256
"""Tokens that merging compares logits on (tasks.finetune)."""
RUNTIME_BYTES = GB
"""What a process holds before the first weight: libraries, and on a GPU the CUDA context."""
GPU_HOST_BYTES = 4 * GB
"""Main memory of a process that computes on a GPU: libraries, and weights on their way there."""
CLOSE = 1.1
"""An estimate this much above what is free may still fit: estimates are within a tenth of what was measured."""
HEADROOM = 0.92
"""Share of the free memory that a recommendation fills: the allocator leaves gaps between tensors."""
RATED = 0.93
"""A card sold as 24 GB reports at least this share of it."""


def find_estimates(
    config: RunConfig, shape: ModelShape, device: Device, workspace: Path, *, must_download: bool
) -> list[Estimate]:
    """Estimate memory by phase, and disk, for a model of a known shape."""
    width = _width(config, device)
    rows = _memory_estimates(config, shape, device, width)
    files = estimate_disk(shape, config.lora, width, config.gguf_formats, *_beside(config))
    rows.append(_disk_estimate("all files", sum(files.values()), workspace))
    if must_download:
        # Imported here: only a model from the Hub needs it.
        from huggingface_hub import constants

        rows.append(_disk_estimate("download", 2 * count_parameters(shape), Path(constants.HF_HUB_CACHE)))
    return rows


def find_shortfalls(
    config: RunConfig, shape: ModelShape, device: Device, estimates: Iterable[Estimate]
) -> list[Finding]:
    """Turn every estimate that exceeds what there is into a finding with a way out."""
    return [_shortfall(config, shape, device, each) for each in estimates if not each.is_enough]


def find_advice(config: RunConfig, shape: ModelShape, device: Device) -> Iterator[Finding]:
    """Say what the product's tables ask for, and how a card that is left half empty would be used better."""
    if not device.is_gpu:
        return
    total = device.total / GB
    asked = hardware_row(shape)
    if asked and config.model.load_in_4bit and total < RATED * asked.min_gb:
        what = f"this model is meant for cards of {asked.min_gb} GB and more; this one has {total:.1f} GB"
        fix = f"recommended: {asked.recommended_gb} GB"
        yield Finding(level="warning", kind="hardware", where="model.name", what=what, fix=fix)
    usual = " ".join(f"{key}={value}" for key, value in recommended_settings(total / RATED).items())
    what = f"usual settings for a card of {total:.0f} GB: {usual}"
    yield Finding(level="note", kind="hardware", where="training", what=what)
    if config.model.framework == "fused":
        yield _fused_finding(config, shape, device)
        if config.training.activation_budget == "auto":
            return
    advice = _fit(config, shape, device)
    asked_for = _load(config, device)
    if advice and advice.load.micro_batch > asked_for.micro_batch and advice.load.window == asked_for.window:
        what = (
            f"micro-batches of {advice.load.micro_batch} would fit as well (about {advice.need.total / GB:.1f} of "
            f"{device.free / GB:.1f} GB): the same result, faster"
        )
        yield Finding(level="note", kind="hardware", where="training", what=what, fix=advice.line)


def _fused_finding(config: RunConfig, shape: ModelShape, device: Device) -> Finding:
    """Say what the fused layers will keep, or why there will be none."""
    obstacle = fused_obstacle(shape, config.lora, is_8bit=config.model.load_in_8bit)
    if obstacle:
        what = f"{obstacle}: the model's own code runs instead, and hf is as fast"
        return Finding(level="warning", kind="setting", where="model.framework", what=what)
    outlook = _outlook(config, shape, device)
    what = f"for the backward pass fused {outlook.words}" if outlook else "fused keeps what there is room for"
    if outlook and not device.rates and "H200" not in device.words:
        what += " (reckoned with the speeds of an H200; the run reckons with this card's)"
    return Finding(level="note", kind="hardware", where="training.activation_budget", what=what)


def _outlook(config: RunConfig, shape: ModelShape, device: Device) -> Outlook | None:
    """Plan as the fused engine will; None for the other engines, and for models it has no layers for."""
    if not device.is_gpu:
        return None
    training, load = config.training, _load(config, device)
    budget = training.activation_budget
    return find_outlook(
        shape,
        config.lora,
        load,
        per_step=load.micro_batch * training.gradient_accumulation_steps,
        free=int((1 - SPARE) * (device.free - RUNTIME_BYTES)),
        host=int(HOST_SHARE * free_main_memory()),
        budget=None if budget == "auto" else budget,
        rates=device.rates or H200,
    )


def _beside(config: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the types of ONNX and of PyTorch models that are made beside the GGUF files."""
    made = config.quantization
    return (made.onnx, made.pytorch) if made else ((), ())


def _width(config: RunConfig, device: Device) -> int:
    """Return the bytes of a weight: as the dtype says, else 2 on a GPU and 4 on a CPU."""
    if config.model.dtype:
        return 4 if config.model.dtype == "float32" else 2
    return 2 if device.is_gpu else 4


def _load(config: RunConfig, device: Device) -> TrainingLoad:
    training, checkpointing = config.training, config.lora.use_gradient_checkpointing
    fused = config.model.framework == "fused"
    # Without a GPU unsloth cannot work, and hf takes its place or the run is refused; fused keeps everything there.
    return TrainingLoad(
        micro_batch=training.per_device_train_batch_size,
        window=config.model.max_seq_length,
        optimizer=training.optim,
        is_checkpointed=bool(checkpointing) and (device.is_gpu or not fused),
        storage=storage_of(config.model),
        width=_width(config, device),
        framework=config.model.framework if device.is_gpu or fused else "hf",
        offloads=checkpointing == "unsloth",
        is_packed=training.packing,
        is_aware=config.quantized.aware is not None,
    )


def _fit(config: RunConfig, shape: ModelShape, device: Device) -> Advice | None:
    free = int(HEADROOM * (device.free - RUNTIME_BYTES))
    return fit(shape, config.lora, _load(config, device), config.training.gradient_accumulation_steps, free)


def _memory_estimates(config: RunConfig, shape: ModelShape, device: Device, width: int) -> list[Estimate]:
    load, asked = _load(config, device), config.evaluation
    outlook = _outlook(config, shape, device)
    phases: dict[str, Memory] = {
        "baseline, evaluate": _asking(config, shape, width, asked.batch_size),
        "finetune": outlook.need if outlook else estimate_training(shape, config.lora, load),
        "merge": estimate_merge(shape, config.lora, width, probe=min(MERGE_PROBE, load.window)),
    }
    place = "GPU memory" if device.is_gpu else "memory"
    rows = [
        _estimate(phase, place, need.total + RUNTIME_BYTES, device.free) for phase, need in phases.items()
    ]
    memory = free_main_memory()
    if device.is_gpu:
        offloaded = load.tokens * shape.hidden * shape.layers * load.width
        waiting = offloaded if load.framework == "unsloth" and load.offloads and load.is_checkpointed else 0
        waiting = outlook.kept.host_bytes if outlook else waiting
        rows.append(_estimate("finetune", "memory", GPU_HOST_BYTES + waiting, memory))
    exported = max(estimate_gguf(shape, gguf_type) for gguf_type in config.gguf_formats)
    onnx, pytorch = _beside(config)
    each = max(ONNX_TRACE_BYTES if onnx else 0, PYTORCH_ROUND_BYTES if pytorch else 0)
    exported = max(exported, each * count_parameters(shape._replace(vision=None)))
    return [*rows, _estimate("quantize, serve", "memory", exported + RUNTIME_BYTES, memory)]


def _asking(config: RunConfig, shape: ModelShape, width: int, batch: int) -> Memory:
    asked = config.evaluation
    return estimate_inference(
        shape,
        width,
        batch=batch,
        window=config.model.max_seq_length,
        more=asked.max_new_tokens,
        scores="perplexity" in asked.metrics,
    )


def _disk_estimate(phase: str, needed: int, folder: Path) -> Estimate:
    place = nearest_folder(folder)
    return _estimate(phase, f"disk of {place}", needed, shutil.disk_usage(place).free)


def _estimate(phase: str, place: str, needed: int, available: int) -> Estimate:
    return Estimate(
        phase=phase, place=place, needed_gb=round(needed / GB, 2), available_gb=round(available / GB, 2)
    )


def _shortfall(config: RunConfig, shape: ModelShape, device: Device, estimate: Estimate) -> Finding:
    what = (
        f"{estimate.phase} needs about {estimate.needed_gb:.1f} GB of {estimate.place}, "
        f"{estimate.available_gb:.1f} GB are free"
    )
    where, fix = "model.name", "a smaller model, or a machine with more memory"
    gives_way = False
    on_device = estimate.place != "memory" or not device.is_gpu
    if estimate.place.startswith("disk"):
        where, fix = "workspace", "free some space, or put it on another disk (--workspace)"
    elif estimate.phase == "finetune" and on_device:
        where, fix = "training", _lighter_training(config, shape, device)
        gives_way = config.training.shrink_on_oom and estimate.needed_gb <= CLOSE * estimate.available_gb
    elif estimate.phase == "baseline, evaluate":
        where = "evaluation.batch_size"
        fix = "a smaller evaluation.batch_size or model.max_seq_length, or a smaller model"
        gives_way = _answers_one(config, shape, device)
    if gives_way:
        what += "; batches are halved if it runs out"
    return Finding(
        level="warning" if gives_way else "error", kind="hardware", where=where, what=what, fix=fix
    )


def _answers_one(config: RunConfig, shape: ModelShape, device: Device) -> bool:
    """Tell whether at least one question at a time fits: evaluation halves its batches until they do."""
    alone = _asking(config, shape, _width(config, device), 1)
    return alone.total + RUNTIME_BYTES <= device.free


def _lighter_training(config: RunConfig, shape: ModelShape, device: Device) -> str:
    """Name the settings that fit and change least."""
    advice = _fit(config, shape, device)
    if advice and advice.overrides:
        return f"{advice.line} (about {(advice.need.total + RUNTIME_BYTES) / GB:.1f} GB), or a smaller model"
    return "no settings make it fit: a smaller model, or a larger machine"
